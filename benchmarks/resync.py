"""What it costs when a copy returns to a volume in which nothing changed: `python -m benchmarks.resync`.

A sparse volume of three copies with a little data, at rest. First a replica is killed and started
again, so that the primary's dirty map tells what it missed. Then both replicas are killed, the first to
return becomes primary, and the other one returns to a primary that never saw it leave, so that the hash
trees must be compared. Told are the time from the start of the node's process until its copy is in
sync, of that the sync itself, and the bytes on the wire to and from the primary's node meanwhile.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.harness.cluster import Json, RunningCluster
from tests.harness.waiting import wait_until

from benchmarks.summary import finish, goal, spread

VOLUME = "db"
MIB = 1 << 20
SYNC_S, WIRE_BYTES = 2.0, 64 * 1024
"""What is promised."""
_WIRE = re.compile(
    r"^holdfast_transport_bytes_wire_(?:sent|received)_total\{[^}]*\} (\S+)", re.MULTILINE
)


def wire_bytes(cluster: RunningCluster, node: str) -> float:
    """Return how many bytes a node has sent and received over the transport, with heartbeats."""
    return sum(float(value) for value in _WIRE.findall(cluster.node(node).client().metrics()))


def return_of(cluster: RunningCluster, node: str) -> Json:
    """Start a node and return what the return of its copy cost."""
    primary = cluster.primary(VOLUME)
    client = cluster.node(primary).client()
    wire, began = wire_bytes(cluster, primary), time.monotonic()
    cluster.start(node)
    ready = time.monotonic()

    def copy_in_sync() -> Json | None:
        for copy in client.volume(VOLUME)["copies"]:
            if copy["node"] == node and copy["state"] == "in-sync":
                found: Json = copy
                return found
        return None

    copy = wait_until(copy_in_sync, 300, f"the copy on {node}", every_s=0.01)
    assert copy is not None
    return {
        "how": copy["sync"]["how"],
        "total_s": time.monotonic() - began,
        "after_ready_s": time.monotonic() - ready,
        "sync_s": copy["sync"]["seconds"],
        "wire_bytes": wire_bytes(cluster, primary) - wire,
    }


def drop(cluster: RunningCluster, *nodes: str) -> None:
    """Kill nodes and wait until the record says so."""
    for node in nodes:
        cluster.kill(node)
    for node in nodes:
        wait_until(
            lambda n=node: (cluster.copy_on(VOLUME, n) or {}).get("state") == "offline",  # type: ignore[misc]
            30,
            f"the copy on {node} to be dropped",
        )


def by_dirty_map(cluster: RunningCluster) -> Json:
    """Kill a replica and let it return."""
    node = cluster.replicas(VOLUME)[0]
    drop(cluster, node)
    return return_of(cluster, node)


def by_hash_tree(cluster: RunningCluster) -> Json:
    """Kill both replicas; let one return and become primary, then the other one."""
    first, last = cluster.replicas(VOLUME)
    drop(cluster, first, last)
    return_of(cluster, first)
    cluster.hand_over(VOLUME, first)
    return return_of(cluster, last)


def fill(uri: str, data_mib: int) -> None:
    """Write some data and flush it."""
    command = [
        *("fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", f"--size={data_mib}m"),
        *("--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1", "--output-format=json"),
    ]
    subprocess.run(command, capture_output=True, check=True, cwd=tempfile.gettempdir())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resync",
        description="Let copies return to a volume in which nothing has changed.",
    )
    add = parser.add_argument
    add("--size", type=int, default=64, help="of the volume, in GiB (%(default)s)")
    add("--data", type=int, default=256, help="of it written, in MiB (%(default)s)")
    add("--rounds", type=int, default=3, help="how often each (%(default)s)")
    add("--folder", type=Path, help="where the copies are (the temporary folder)")
    add("--json", type=Path, help="write the figures there")
    chosen = parser.parse_args()
    told: dict[str, list[Json]] = {"dirty map": [], "hash tree": []}
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-resync-", dir=chosen.folder) as folder,
        RunningCluster(Path(folder) / "cluster", nodes=3) as cluster,
    ):
        cluster.create(VOLUME, f"{chosen.size}GiB", replicas=2)
        fill(cluster.url(VOLUME, cluster.primary(VOLUME)), chosen.data)
        for kind, measure in (("dirty map", by_dirty_map), ("hash tree", by_hash_tree)):
            for _ in range(chosen.rounds):
                cluster.wait_healthy(VOLUME)
                # What was written last carries write intent for some seconds, and would be compared.
                time.sleep(12)
                one = measure(cluster)
                told[kind].append(one)
                print(f"{kind}: {json.dumps(one)}", flush=True)
        cluster.verify(VOLUME)
    figures: dict[str, Any] = {"size_gib": chosen.size, "data_mib": chosen.data, "runs": told}
    for kind, runs in told.items():
        seconds = spread([run["after_ready_s"] for run in runs])
        wire = spread([run["wire_bytes"] for run in runs])
        figures[kind] = {"after_ready_s": seconds, "wire_bytes": wire}
        print(goal(f"{kind}, in sync after its node was ready", seconds["max"], SYNC_S, "s"))
        print(goal(f"{kind}, on the wire", wire["max"] / 1024, WIRE_BYTES / 1024, "KiB"))
    finish(figures, chosen.json)


if __name__ == "__main__":
    main()
