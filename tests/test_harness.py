"""The harness itself, against a server that is not ours: it must find what is wrong, and only that."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.harness.nbd import FUA, Command, NbdConnection
from tests.harness.waiting import WaitedInVainError, wait_until
from tests.harness.writer import BLOCK_BYTES, Writer

MIB = 1 << 20


@contextlib.contextmanager
def serving(program: str, folder: Path, *words: str) -> Iterator[str]:
    path = folder / "nbd.sock"
    with subprocess.Popen([program, "-f", "-U", str(path), *words]) as process:
        try:
            wait_until(path.exists, 10, "nbdkit")
            yield f"nbd+unix:///?socket={path}"
        finally:
            process.kill()


@pytest.fixture
def memory(tmp_path: Path, nbdkit: str) -> Iterator[str]:
    with serving(nbdkit, tmp_path, "memory", "4M") as uri:
        yield uri


def test_the_client_reads_what_it_wrote(memory: str) -> None:
    with NbdConnection(memory) as volume:
        assert volume.size_bytes == 4 * MIB
        assert not volume.is_read_only
        volume.call(Command.WRITE, 8192, data=b"x" * 4096)
        volume.call(Command.WRITE, 4096, data=b"y" * 4096, flags=FUA)
        volume.call(Command.FLUSH)
        assert volume.call(Command.READ, 4096, 8192) == b"y" * 4096 + b"x" * 4096
        volume.call(Command.WRITE_ZEROES, 0, 8192)
        assert volume.call(Command.READ, 4096, 4096) == bytes(4096)


def test_the_client_tells_an_export_it_cannot_have(tmp_path: Path, nbdkit: str) -> None:
    with (
        serving(nbdkit, tmp_path, "-e", "name", "memory", "1M") as uri,
        NbdConnection(uri) as volume,
    ):
        assert volume.size_bytes == MIB
    with pytest.raises(OSError, match="No such file"):
        NbdConnection(f"nbd+unix:///?socket={tmp_path}/none.sock")


def test_a_server_that_is_right_is_found_right(memory: str) -> None:
    with Writer(memory, blocks=512, reads=0.2, flush_every=50, seed=1) as writer:
        wait_until(lambda: writer.answered > 3000, 30, "3000 answers")
    outcome = writer.outcome
    assert outcome.writes > 2000
    assert outcome.reads > 300
    assert outcome.flushes > 20
    assert not outcome.errors
    assert not outcome.wrong_reads
    assert writer.books.verify(memory) == []


def test_a_lost_write_is_found(memory: str) -> None:
    with Writer(memory, blocks=64, seed=2) as writer:
        wait_until(lambda: len(writer.books.acknowledged) == 64, 30, "every block")
    with NbdConnection(memory) as volume:
        stale = writer.books.content(5, writer.books.acknowledged[5] - 1)
        volume.call(Command.WRITE, 5 * BLOCK_BYTES, data=stale)
        volume.call(Command.WRITE_ZEROES, 6 * BLOCK_BYTES, BLOCK_BYTES)
        volume.call(Command.WRITE, 7 * BLOCK_BYTES, data=b"rubbish!" * 512)
        other = writer.books.content(9, writer.books.acknowledged[9])
        volume.call(Command.WRITE, 8 * BLOCK_BYTES, data=other)
    wrong = writer.books.verify(memory)
    assert [each.block for each in wrong] == [5, 6, 7, 8]
    assert ["rubbish" in each.found for each in wrong] == [False, False, True, False]


def test_a_write_without_an_answer_may_be_there_or_not(memory: str) -> None:
    writer = Writer(memory, blocks=64, seed=3)
    writer.books.acknowledged[1] = 7
    writer.books.sent[1] = [9]
    for version, right in ((7, True), (9, True), (8, False)):
        fault = writer.books.check(1, writer.books.content(1, version))
        assert (fault is None) == right, version


def test_a_pause_is_measured(tmp_path: Path, nbdkit: str) -> None:
    signal_file = tmp_path / "slow"
    # nbdkit delays each write while the file exists.
    script = tmp_path / "plugin.sh"
    script.write_text(
        "case $1 in get_size) echo 4194304;; can_write) exit 0;; pwrite) cat >/dev/null;"
        f" while [ -e {signal_file} ]; do sleep 0.02; done;;"
        " pread) head -c $3 /dev/zero;; *) exit 2;; esac\n"
    )
    script.chmod(0o755)
    with serving(nbdkit, tmp_path, "sh", str(script)) as uri:
        with Writer(uri, blocks=64, depth=2, seed=4) as writer:
            wait_until(lambda: writer.answered > 10, 30, "first answers")
            signal_file.touch()
            wait_until(lambda: writer.silence_s > 0.5, 30, "a pause of 0.5 s")
            signal_file.unlink()
            before = writer.answered
            wait_until(lambda: writer.answered > before + 5, 30, "answers after the pause")
        assert 0.5 <= writer.outcome.longest_pause_s < 5


def test_a_server_that_dies_is_told(tmp_path: Path, nbdkit: str) -> None:
    with serving(nbdkit, tmp_path, "memory", "4M") as uri:
        writer = Writer(uri, blocks=512, seed=5).start()
        wait_until(lambda: writer.answered > 100, 30, "first answers")
    wait_until(lambda: writer.failure, 30, "the writer to notice")
    with pytest.raises(ConnectionError):
        writer.stop()


def test_waiting_in_vain_tells_what_was_seen() -> None:
    with pytest.raises(WaitedInVainError, match="for the end; seen last: 0"):
        wait_until(lambda: 0, 0.01, "the end")
    with pytest.raises(WaitedInVainError, match="ZeroDivisionError"):
        wait_until(lambda: 1 // 0, 0.01, "the end")
