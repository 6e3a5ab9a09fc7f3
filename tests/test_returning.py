"""Copies that come back beside replacements that are being made, and nodes that come back without.

A volume of 4 GiB whose only replica is lost gets a replacement at once. When the lost copy returns
while that is synced, the one that differs less from the primary is kept and the other removed; both
numbers are in the volume's events.
"""

import itertools
import random
import re
import shutil
from collections.abc import Callable

from tests.harness.cluster import RunningCluster
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until

Start = Callable[..., RunningCluster]
MIB = 1 << 20
CHUNK_BYTES = 64 * 1024
SIZE_MIB = 4096
DATA_MIB = 128
"""So much of the volume is data, all over it."""
SLOW_SYNC = "[sync]\nceiling_mib_s = 1.0\n"
"""A replacement takes two minutes on any machine: whatever returns meets it half-made."""
VERDICT = re.compile(
    r"The copy on (?P<kept>\w+) differs by (?P<less>[\d.]+ \w+), "
    r"the one on (?P<gone>\w+) by (?P<more>[\d.]+ \w+); the former is kept\."
)


def fill(uri: str) -> None:
    """Write data of which no MiB is like another."""
    noise = random.Random(4).randbytes(MIB)
    with NbdConnection(uri, timeout_s=120) as volume:
        for number in range(DATA_MIB + 8):
            if number < DATA_MIB:
                data = number.to_bytes(8, "big") + noise[8:]
                volume.send(Command.WRITE, number * (SIZE_MIB // DATA_MIB) * MIB, data=data)
            if number >= 8:
                assert volume.receive().errno == 0
        volume.call(Command.FLUSH)


def nodes_of(cluster: RunningCluster) -> set[str]:
    return {copy["node"] for copy in cluster.show("db")["copies"]}


def verdicts(cluster: RunningCluster) -> list[tuple[str, str]]:
    """Return which node's copy was kept and which went, of every competition so far."""
    client = cluster.node(cluster.primary("db")).client()
    matches = [VERDICT.match(event["sentence"]) for event in client.events("db")]
    return [(match["kept"], match["gone"]) for match in matches if match is not None]


def test_of_a_returning_copy_and_its_replacement_the_one_that_differs_less_is_kept(
    start_cluster: Start,
) -> None:
    cluster = start_cluster(nodes=3, config=SLOW_SYNC)
    cluster.create("db", f"{SIZE_MIB}MiB", replicas=1)
    primary, victim = cluster.primary("db"), cluster.replicas("db")[0]
    (spare,) = cluster.bystanders("db")
    fill(cluster.url("db", primary))

    cluster.kill(victim)
    wait_until(lambda: spare in nodes_of(cluster), 20, "a replacement")
    with NbdConnection(cluster.url("db", primary)) as volume:
        volume.call(Command.WRITE, 0, data=b"n" * CHUNK_BYTES)
    cluster.start(victim)
    wait_until(lambda: cluster.replicas("db") == [victim], 60, "the copy that returned")
    wait_until(lambda: nodes_of(cluster) == {primary, victim}, 20, "the other to go")
    assert verdicts(cluster) == [(victim, spare)]
    cluster.verify("db")

    cluster.kill(victim)
    shutil.rmtree(cluster.node(victim).data / "copies")
    wait_until(lambda: _sent(cluster, spare) > MIB, 60, "some of a replacement")
    cluster.start(victim)
    # The one that was wiped is as far away as can be.
    wait_until(lambda: verdicts(cluster)[1:] == [(spare, victim)], 60, "the choice")
    wait_until(lambda: nodes_of(cluster) == {primary, spare}, 20, "the other to go")
    with NbdConnection(cluster.url("db", primary)) as volume:
        # Holes are not sent: what the replacement still lacks is soon there.
        for offset in range(64 * MIB, SIZE_MIB * MIB, 64 * MIB):
            volume.call(Command.TRIM, offset, 64 * MIB)
    wait_until(lambda: cluster.replicas("db") == [spare], 60, "the replacement")


def _sent(cluster: RunningCluster, node: str) -> int:
    copy = cluster.copy_on("db", node)
    return 0 if copy is None or copy["sync"] is None else int(copy["sync"]["bytes_sent"])


def test_nodes_come_back_in_every_order_and_with_the_wrong_disks(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    cluster.create("db", "16MiB", "--member-missing-timeout", "600")
    content = {}
    orders = list(itertools.permutations(cluster.names))
    for number, order in enumerate((orders[0], orders[3], orders[5])):
        with NbdConnection(cluster.url("db", order[0])) as volume:
            for chunk in range(number, 64, 7):
                content[chunk] = bytes([number + 1]) * CHUNK_BYTES
                volume.call(Command.WRITE, chunk * CHUNK_BYTES, data=content[chunk])
        for node in cluster.names:
            cluster.kill(node)
        for node in order:
            cluster.start(node)
        cluster.wait_healthy("db")
    check(cluster, content)
    empty_disk(cluster)
    check(cluster, content)
    another_nodes_disk(cluster)
    check(cluster, content)
    old_copy_of_its_own(cluster, content)
    check(cluster, content)


def check(cluster: RunningCluster, content: dict[int, bytes]) -> None:
    cluster.wait_healthy("db")
    with NbdConnection(cluster.url("db", cluster.names[1])) as volume:
        for chunk, data in content.items():
            assert volume.call(Command.READ, chunk * CHUNK_BYTES, CHUNK_BYTES) == data, chunk
    cluster.verify("db")


def lose(cluster: RunningCluster, node: str) -> None:
    cluster.kill(node)
    wait_until(lambda: node not in cluster.replicas("db"), 20, "the drop")


def empty_disk(cluster: RunningCluster) -> None:
    """A replica's disk is replaced by an empty one."""
    victim = cluster.replicas("db")[0]
    cluster.kill(victim)
    shutil.rmtree(cluster.node(victim).data)
    cluster.node(victim).data.mkdir()
    cluster.start(victim)


def another_nodes_disk(cluster: RunningCluster) -> None:
    """A replica comes back with a copy of what another node has on its disk."""
    victim, other = cluster.replicas("db")
    lose(cluster, victim)
    lose(cluster, other)
    (mine,) = (cluster.node(victim).data / "copies").iterdir()
    (theirs,) = (cluster.node(other).data / "copies").iterdir()
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    cluster.start(victim)
    cluster.start(other)


def old_copy_of_its_own(cluster: RunningCluster, content: dict[int, bytes]) -> None:
    """A replica comes back with what was on its disk some time ago."""
    victim = cluster.replicas("db")[0]
    lose(cluster, victim)
    (mine,) = (cluster.node(victim).data / "copies").iterdir()
    saved = cluster.dir / "saved"
    shutil.copytree(mine, saved)
    cluster.start(victim)
    cluster.wait_healthy("db")
    with NbdConnection(cluster.url("db", cluster.names[0])) as volume:
        for chunk in (3, 60):
            content[chunk] = b"new" + bytes(CHUNK_BYTES - 3)
            volume.call(Command.WRITE, chunk * CHUNK_BYTES, data=content[chunk])
        volume.call(Command.FLUSH)
    lose(cluster, victim)
    shutil.rmtree(mine)
    shutil.copytree(saved, mine)
    cluster.start(victim)


def test_a_cluster_without_a_spare_node_heals_when_one_appears(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    cluster.create("db", "16MiB", replicas=1)
    primary, victim = cluster.primary("db"), cluster.replicas("db")[0]
    (spare,) = cluster.bystanders("db")
    cluster.stop(spare)
    with NbdConnection(cluster.url("db", primary)) as volume:
        volume.call(Command.WRITE, 0, data=b"x" * CHUNK_BYTES)
        lose(cluster, victim)
        told = cluster.ask("explain", "db")
        assert told["health"] == "degraded"
        assert any("node" in each["sentence"] for each in told["help"]), told
        cluster.start(spare)
        wait_until(lambda: cluster.replicas("db") == [spare], 30, "the spare node's copy")
        volume.call(Command.WRITE, CHUNK_BYTES, data=b"y" * CHUNK_BYTES)
    cluster.start(victim)
    wait_until(lambda: nodes_of(cluster) == {primary, spare}, 20, "the old copy to go")
    cluster.verify("db")
