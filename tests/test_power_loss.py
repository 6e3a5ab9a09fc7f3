"""A copy whose machine lost power waits for one whose did not, until an operator says otherwise."""

import os
from collections.abc import Callable
from pathlib import Path

import attrs
from tests.harness.cluster import RunningCluster
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until

from holdfast.local.copy.superblock import SuperblockFile
from holdfast.node.processes import wait_gone

Start = Callable[..., RunningCluster]
BLOCK_BYTES = 4096


def lose_power(cluster: RunningCluster, *nodes: str) -> None:
    """End the processes of several nodes at one moment."""
    pids = [cluster.pid(node) for node in nodes]
    for pid in pids:
        os.kill(pid, 9)
    assert not wait_gone(pids, 10)


def boot_anew(cluster: RunningCluster, node: str) -> None:
    """Make the copies of a node look as if the machine had been started since."""
    paths = list(cluster.node(node).data.glob("copies/*/superblock"))
    assert paths
    for path in paths:
        fd = os.open(path, os.O_RDWR)
        try:
            file, _ = SuperblockFile.open(fd, Path(path))
            file.save(attrs.evolve(file.current, boot="the boot before"))
        finally:
            os.close(fd)


def test_a_copy_that_may_have_forgotten_waits_until_it_is_forced(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    cluster.create("db", "16MiB", replicas=1)
    kept, lost = cluster.primary("db"), cluster.replicas("db")[0]
    with NbdConnection(cluster.url("db", cluster.bystanders("db")[0])) as volume:
        volume.call(Command.WRITE, 0, data=b"f" * BLOCK_BYTES)
        volume.call(Command.FLUSH)
        volume.call(Command.WRITE, BLOCK_BYTES, data=b"u" * BLOCK_BYTES)
        lose_power(cluster, lost, kept)
        boot_anew(cluster, lost)
        cluster.start(lost)

        def told() -> bool:
            return any(
                "--force" in each["command"] for each in cluster.ask("explain", "db")["help"]
            )

        wait_until(told, 30, "the volume to say what would help")
        assert cluster.show("db")["health"] == "offline"
        refused = cluster.run("volume", "promote", "db", cluster.bystanders("db")[0], "--force")
        assert refused.code == 6
        assert "has no in-sync copy" in refused.err
        done = cluster.ask("volume", "promote", "db", lost, "--force")
        assert done["primary"] == lost
        assert volume.call(Command.READ, 0, BLOCK_BYTES) == b"f" * BLOCK_BYTES
    cluster.start(kept)
    cluster.wait_healthy("db")
    cluster.verify("db")


def test_a_primary_that_is_up_is_not_forced_aside(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=2)
    cluster.create("db", "16MiB", replicas=1)
    refused = cluster.run("volume", "promote", "db", cluster.replicas("db")[0], "--force")
    assert refused.code == 6
    assert "which is up" in refused.err
