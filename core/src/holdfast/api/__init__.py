"""Volumes for programs: read and write a volume from Python, without a device or a server.

    async with Cluster.open() as cluster, cluster.volume("db") as volume:
        await volume.write(0, data)

`Cluster` and `Volume` are for asyncio (and anyio on asyncio), `BlockingCluster` and
`BlockingVolume` are their twins for scripts. A volume wraps a session of a `VolumeProvider`, so a
failover is a pause here too, never an error, unless the volume's policy says so. One future per
call is spent here; who needs every microsecond talks to the session itself, in batches. A program has no
copies and takes no part in any group; it needs no node on its machine.
"""

from holdfast.api.cluster import BlockingCluster, Cluster
from holdfast.api.volume import BlockingVolume, Volume

__all__ = ["BlockingCluster", "BlockingVolume", "Cluster", "Volume"]
