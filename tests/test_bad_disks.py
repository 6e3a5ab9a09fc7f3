"""Disks that lose sectors or stop answering under real nodes, by a library that is preloaded into them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from tests.harness.cluster import RunningCluster
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until
from tests.harness.writer import Writer

Start = Callable[..., RunningCluster]
CHUNK_BYTES = 64 * 1024
SOURCE = Path(__file__).parent / "harness" / "bad_disk.c"
ACK_TIMEOUT_S = 8.0
FAILOVER_S = 4.0
"""Beyond the time-out itself, on a busy machine."""


@attrs.frozen
class Disks:
    """What is wrong with the disks of which nodes."""

    folder: Path

    def lose(self, node: str, *ranges: tuple[int, int]) -> None:
        """Let reads of these (offset, length) of the node's data files fail."""
        lines = "".join(f"{offset} {length}\n" for offset, length in ranges)
        (self.folder / f"bad-{node}").write_text(lines)

    def stall(self, node: str) -> None:
        """Let the node's disk answer nothing any more."""
        (self.folder / f"stall-{node}").touch()

    def go_on(self, node: str) -> None:
        """End a stall."""
        (self.folder / f"stall-{node}").unlink()


@pytest.fixture
def disks(tmp_path: Path, tool: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Disks:
    """Return a hand on the disks of the clusters that the test starts from here on."""
    library = tmp_path / "bad_disk.so"
    options = ("-O1", "-Wall", "-shared", "-fPIC", "-ldl", "-lpthread")
    subprocess.run([tool("gcc"), SOURCE, *options, "-o", library], check=True)
    folder = tmp_path / "disks"
    folder.mkdir()
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("HOLDFAST_TEST_DISKS", str(folder))
    return Disks(folder)


def test_sectors_that_the_primary_cannot_read_are_served_by_a_replica_and_repaired(
    start_cluster: Start, disks: Disks
) -> None:
    cluster = start_cluster(nodes=3)
    cluster.create("db", "16MiB")
    primary, epoch = cluster.primary("db"), cluster.show("db")["epoch"]
    content = {chunk: bytes([chunk + 1]) * CHUNK_BYTES for chunk in range(40)}
    with NbdConnection(cluster.url("db", primary)) as volume:
        for chunk, data in content.items():
            volume.call(Command.WRITE, chunk * CHUNK_BYTES, data=data)
        volume.call(Command.FLUSH)
        disks.lose(primary, (5 * CHUNK_BYTES + 512, 512), (30 * CHUNK_BYTES - 10, 20))
        read = volume.call(Command.READ, 4 * CHUNK_BYTES, 4 * CHUNK_BYTES)
        assert read == b"".join(content[chunk] for chunk in range(4, 8))
        # What nobody has asked for yet is found by a scrub.
        assert cluster.ask("volume", "scrub", "db")["repaired"] == 2
        for chunk, data in content.items():
            assert volume.call(Command.READ, chunk * CHUNK_BYTES, CHUNK_BYTES) == data
    cluster.verify("db")
    assert cluster.show("db")["epoch"] == epoch, "no copy was lost"
    assert "could not be read on" in cluster.do("volume", "events", "db")
    for replica in cluster.replicas("db"):
        disks.lose(replica, (9 * CHUNK_BYTES, 512))
    disks.lose(primary, (9 * CHUNK_BYTES, 512))
    with NbdConnection(cluster.url("db", primary)) as volume:
        with pytest.raises(OSError, match="Errno 5"):
            volume.call(Command.READ, 9 * CHUNK_BYTES, 4096)
        assert volume.call(Command.READ, 9 * CHUNK_BYTES + 4096, 4096) == content[9][:4096]
        told = cluster.ask("explain", "db")
        assert any("64 KiB at 576 KiB cannot be read" in sentence for sentence in told["why"])
        (given_up,) = [h["command"] for h in told["help"] if "volume zero" in h["command"]]
        cluster.do(*given_up.split()[1:])
        assert volume.call(Command.READ, 9 * CHUNK_BYTES, CHUNK_BYTES) == bytes(CHUNK_BYTES)
        assert cluster.ask("explain", "db")["why"] == ["All copies are in sync."]
    assert cluster.run("volume", "zero", "db", "--offset", "16MiB", "--length", "4KiB").code == 2


def test_a_disk_that_stalls_holds_nobody_longer_than_its_time_out(
    start_cluster: Start, disks: Disks
) -> None:
    cluster = start_cluster(nodes=4)
    cluster.create("db", "64MiB", "--member-missing-timeout", "600")
    outside = cluster.bystanders("db")[0]
    with Writer(cluster.url("db", outside), blocks=2048, reads=0.1, flush_every=500) as writer:
        for victim in (cluster.primary("db"), cluster.replicas("db")[0]):
            wait_until(lambda: writer.answered > 200, 30, "answers")
            disks.stall(victim)
            wait_until(lambda v=victim: _is_out(cluster, v), 30, "the copy to be left out")  # type: ignore[misc]
            # Its other copies and its control API know nothing of it.
            assert cluster.node(victim).client().node()["name"] == victim
            answered = writer.answered
            wait_until(lambda a=answered: writer.answered > a + 100, 30, "answers")  # type: ignore[misc]
            assert cluster.primary("db") != victim
            disks.go_on(victim)
            cluster.wait_healthy("db", 60)
    outcome = writer.outcome
    assert not outcome.errors
    assert not outcome.wrong_reads
    assert outcome.longest_pause_s < ACK_TIMEOUT_S + FAILOVER_S, str(outcome)
    assert not writer.books.verify(cluster.url("db"))
    cluster.verify("db")


def _is_out(cluster: RunningCluster, node: str) -> bool:
    copy = cluster.copy_on("db", node)
    return copy is not None and (copy["state"], copy["reason"]) == ("offline", "ack-timeout")
