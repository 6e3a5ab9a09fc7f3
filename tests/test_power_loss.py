"""Machines lose power: what was flushed is there, and a copy that may have forgotten waits."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.power import COPIES, ROLES, PowerCuts
from tests.harness.cluster import RunningCluster
from tests.harness.disks import can_make_disks
from tests.harness.nbd import FUA, Command, NbdConnection
from tests.harness.power import boot_anew, powered_cluster
from tests.harness.waiting import wait_until

from holdfast.node.processes import wait_gone

Start = Callable[..., RunningCluster]
BLOCK_BYTES = 4096


def lose_power(cluster: RunningCluster, *nodes: str) -> None:
    """End the processes of several nodes at one moment."""
    pids = [cluster.pid(node) for node in nodes]
    for pid in pids:
        os.kill(pid, 9)
    assert not wait_gone(pids, 10)


def test_a_copy_that_may_have_forgotten_waits_until_it_is_forced(start_cluster: Start) -> None:
    """And a consumer that was told of writes since its last flush gets no other until it is back."""
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
        block = b"w" * BLOCK_BYTES
        with pytest.raises(OSError, match="FLUSH"):
            volume.call(Command.FLUSH)
        with pytest.raises(OSError, match="WRITE"):
            volume.call(Command.WRITE, 0, data=block, flags=FUA)
        volume.call(Command.WRITE, 0, data=block)
    with NbdConnection(cluster.url("db", lost)) as volume:
        volume.call(Command.FLUSH)
    assert cluster.do("volume", "events", "db").count("No copy is known to have kept") == 1
    cluster.start(kept)
    cluster.wait_healthy("db")
    cluster.verify("db")


def test_a_primary_that_is_up_is_not_forced_aside(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=2)
    cluster.create("db", "16MiB", replicas=1)
    refused = cluster.run("volume", "promote", "db", cluster.replicas("db")[0], "--force")
    assert refused.code == 6
    assert "which is up" in refused.err


@pytest.mark.skipif(not can_make_disks(), reason="file systems of their own take root")
def test_what_was_flushed_outlives_the_power_of_any_machine(tmp_path: Path) -> None:
    with powered_cluster(tmp_path, nodes=COPIES + 1, machines=COPIES) as powered:
        cuts = PowerCuts(powered.cluster, powered, seed=5)
        cuts.prepare()
        for number, role in enumerate(ROLES):
            cuts.round(number, role)
