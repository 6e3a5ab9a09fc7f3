"""Copies after a power loss at any moment, and state stores after a kill; `tests/crash` says how.

The long form is `make crash`.
"""

from __future__ import annotations

import itertools
import random
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.crash.lives import LEAN, PLAIN, Life, memory
from tests.crash.mutants import LATE, MUTANTS
from tests.crash.promises import BrokenPromiseError

from holdfast.local.copy import files
from holdfast.local.sqlite_file import SqliteFile


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder in memory: thousands of directories come and go."""
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        yield Path(folder)


def test_nothing_changes_the_disk_but_through_the_port() -> None:
    """Else a power loss would be tried on a disk that lacks what was written past it."""
    calls = "pwrite|pwritev|write|ftruncate|truncate|fdatasync|fsync|mkdir|rename|replace|unlink"
    past = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(files.__file__).parent.glob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(rf"\bos\.({calls})\(|\bshutil\.rmtree\(", line)
    ]
    assert not past


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_keeps_its_promises_whatever_a_power_loss_leaves(seed: int, place: Path) -> None:
    life = Life(seed, place, LEAN)
    life.run()
    assert life.states > 300


def test_a_process_killed_at_any_call_leaves_nothing_to_lean_on_that_is_not_on_disk(
    place: Path,
) -> None:
    # Every other call, for time; the long form kills at each.
    for calls in itertools.count(step=2):
        folder = place / str(calls)
        folder.mkdir()
        if not Life(0, folder, PLAIN).run_interrupted(calls):
            break
    assert calls > 20


@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_mistake_in_the_store_is_found(
    mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTANTS[mistake](monkeypatch.setattr)

    def live() -> None:
        for seed in range(40 if mistake in LATE else 6):
            folder = place / str(seed)
            folder.mkdir()
            if mistake in LATE:
                Life(0, folder, PLAIN).run_interrupted(seed)
            else:
                Life(seed, folder, LEAN).run()

    with pytest.raises(BrokenPromiseError, match="See it again"):
        live()


# --- the state store ------------------------------------------------------------------------------

SECTOR = 512


def _files(path: Path) -> dict[str, bytes]:
    """What SQLite keeps beside its shared memory, which no power loss leaves anyway."""
    return {suffix: (path.with_name(path.name + suffix)).read_bytes() for suffix in ("", "-wal")}


def _torn(before: bytes, after: bytes, dice: random.Random) -> bytes:
    """A file that was being changed: some sectors are as before, some as after."""
    length = dice.choice([len(before), len(after)])
    mixed = bytearray(before[:length].ljust(length, b"\0"))
    changed = [
        at for at in range(0, length, SECTOR) if before[at : at + SECTOR] != after[at : at + SECTOR]
    ]
    for at in dice.sample(changed, dice.randrange(len(changed) + 1)):
        part = after[at : min(at + SECTOR, length)]
        mixed[at : at + len(part)] = part
    return bytes(mixed)


def _value_in(folder: Path, contents: dict[str, bytes]) -> int:
    """Open a state store on what a power loss left, and return the number in it."""
    folder.mkdir()
    for suffix, raw in contents.items():
        (folder / f"state.db{suffix}").write_bytes(raw)
    store = SqliteFile.open(folder / "state.db", 1.0)
    try:
        entry = store.get("key")
    finally:
        store.close()
    database = sqlite3.connect(folder / "state.db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    assert entry is not None
    return int(entry.value[:8])


def test_a_state_store_keeps_every_commit_through_a_power_loss_during_the_next(
    tmp_path: Path,
) -> None:
    """A commit has synced the log when it returns; folding the log into the file comes after."""
    dice = random.Random(5)
    path = tmp_path / "state.db"
    store = SqliteFile.open(path, 1.0)
    version = None
    before: dict[str, bytes] = {}
    folded = 0
    for number in range(60):
        # Large values, so that the log is folded into the file on the way.
        value = b"%08d" % number + dice.randbytes(100_000)
        entry = store.compare_and_set("key", value, version)
        assert entry is not None
        version = entry.version
        after = _files(path)
        if before:
            folded += before[""] != after[""]
            # While the log is written the file is as before; while it is folded, the log is as after.
            while_logging = {"": before[""], "-wal": _torn(before["-wal"], after["-wal"], dice)}
            while_folding = {"": _torn(before[""], after[""], dice), "-wal": after["-wal"]}
            assert _value_in(tmp_path / f"l{number}", while_logging) in {number - 1, number}
            assert _value_in(tmp_path / f"f{number}", while_folding) == number
        before = after
    store.close()
    assert folded
