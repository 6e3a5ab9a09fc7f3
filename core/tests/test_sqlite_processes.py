"""State store `sqlite` among several processes: nothing lost, nothing torn, nothing left waiting.

Each process is a fresh interpreter that runs one role of this very file.
"""
# ruff: noqa: ASYNC240, T201 - the roles are small programs that print.

from __future__ import annotations

import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import anyio
import pytest

from holdfast.errors import StateConflictError
from holdfast.local.sqlite_state import SqliteStateDriver, SqliteStateOptions, SqliteStateStore

Start = Callable[..., "subprocess.Popen[str]"]

DEADLINE_S = 60.0
"""Far beyond what anything here takes; a machine may be busy."""


# --- roles ----------------------------------------------------------------------------------------


async def _open(path: str) -> SqliteStateStore:
    return await SqliteStateDriver.open(SqliteStateOptions(path=path, lock_timeout_s=30.0))


async def _increment(path: str, key: str, rounds: str) -> None:
    """Add one to `key`, by compare-and-set; tell each number that is safely written."""
    store = await _open(path)
    done = 0
    while done < int(rounds):
        entry = await store.get(key)
        number = 0 if entry is None else int(entry.value)
        try:
            await store.compare_and_set(
                key, b"%d" % (number + 1), None if entry is None else entry.version
            )
        except StateConflictError:
            continue
        done += 1
        print(number + 1, flush=True)
    await store.aclose()


async def _follow(path: str, key: str, last: str) -> None:
    """Tell when each value of `key` was told here, until it is `last`."""
    store = await _open(path)
    async with store.watch(key) as stream:
        print("ready", flush=True)
        async for change in stream:
            value = b"" if change.entry is None else change.entry.value
            print(value.decode() or "gone", time.monotonic(), flush=True)
            if value == last.encode():
                break
    await store.aclose()


async def _live(path: str, name: str, ttl_s: str) -> None:
    """Hold the lease of `name` for as long as this process lives."""
    store = await _open(path)
    session = await store.open_session(name, float(ttl_s))
    print(session.id, flush=True)
    while True:
        await anyio.sleep(float(ttl_s) / 4)
        await session.renew()


ROLES = {"increment": _increment, "follow": _follow, "live": _live}


# --- tests ----------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start_role(role: str, *args: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, __file__, role, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        started.append(process)
        return process

    yield start_role
    for process in started:
        process.kill()
        process.communicate()


def _finish(process: subprocess.Popen[str]) -> list[str]:
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    return output.split("\n")[:-1]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    return line.strip()


def _check_file(path: str) -> None:
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


@pytest.mark.anyio
async def test_processes_that_start_together_on_no_file_lose_no_update(
    path: str, start: Start
) -> None:
    processes, rounds = 4, 40
    began_s = time.monotonic()
    runs = [start("increment", path, "counter", rounds) for _ in range(processes)]
    told = [int(line) for run in runs for line in _finish(run)]
    assert sorted(told) == list(range(1, processes * rounds + 1))
    print(f"{processes * rounds / (time.monotonic() - began_s):.0f} increments/s, start included")
    _check_file(path)


@pytest.mark.anyio
async def test_a_watch_follows_another_process_within_milliseconds(path: str, start: Start) -> None:
    store = await _open(path)
    follower = start("follow", path, "a", "last")
    assert _line(follower) == "ready"
    written_s: dict[str, float] = {}
    version = None
    for value in [*(f"v{number}" for number in range(50)), "last"]:
        entry = await store.compare_and_set("a", value.encode(), version)
        assert entry is not None
        version = entry.version
        written_s[value] = time.monotonic()
        await anyio.sleep(0.005)
    told_s = {value: float(when) for value, when in map(str.split, _finish(follower))}
    delays_ms = sorted((told_s[value] - written_s[value]) * 1000 for value in told_s)
    assert len(delays_ms) > 25, "on a quiet machine hardly any two writes are told as one"
    print(
        f"watch delay after the commit: median {statistics.median(delays_ms):.2f} ms, "
        f"most {delays_ms[-1]:.2f} ms, {len(delays_ms)} of 51 told"
    )
    await store.aclose()


@pytest.mark.anyio
async def test_a_writer_killed_in_mid_load_leaves_a_whole_store(path: str, start: Start) -> None:
    """Everything that it told as written is there, and the others go on at once."""
    highest = 0
    for kill in range(4):
        victim = start("increment", path, "counter", 1_000_000)
        for _ in range(10 + 7 * kill):
            highest = int(_line(victim))
        victim.send_signal(signal.SIGKILL)
        rest, _ = victim.communicate()
        # What had left the pipe before the kill; the last line may be cut.
        highest = max([highest, *(int(line) for line in rest.split("\n")[:-1])])
        store = await _open(path)
        entry = await store.get("counter")
        assert entry is not None
        # One more may be written than could be told.
        assert int(entry.value) in {highest, highest + 1}
        highest = int(entry.value)
        assert await store.compare_and_set("other", b"%d" % kill, await _version(store, "other"))
        await store.aclose()
        _check_file(path)


async def _version(store: SqliteStateStore, key: str) -> int | None:
    entry = await store.get(key)
    return None if entry is None else entry.version


@pytest.mark.anyio
async def test_the_lease_of_a_killed_process_runs_out(path: str, start: Start) -> None:
    ttl_s = 1.0
    store = await _open(path)
    process = start("live", path, "n1", ttl_s)
    session = _line(process)
    alive_until_s = time.monotonic() + 2 * ttl_s
    while time.monotonic() < alive_until_s:
        assert await store.session_alive("n1") == session
        await anyio.sleep(0.02)
    process.kill()
    killed_s = time.monotonic()
    with anyio.fail_after(DEADLINE_S):
        while await store.session_alive("n1") is not None:  # noqa: ASYNC110 - nothing tells.
            await anyio.sleep(0.01)
    over_s = time.monotonic() - killed_s
    print(f"over {over_s:.2f} s after the kill, of a lease of {ttl_s} s")
    await store.aclose()


@pytest.mark.anyio
async def test_a_killed_watchers_bell_does_not_stay(path: str, start: Start) -> None:
    bells = Path(path + ".watch")
    follower = start("follow", path, "a", "never")
    assert _line(follower) == "ready"
    assert len(list(bells.iterdir())) == 1
    follower.kill()
    follower.wait()
    store = await _open(path)
    await store.compare_and_set("a", b"1", None)
    assert not list(bells.iterdir())
    await store.aclose()


@pytest.mark.anyio
async def test_a_stopped_watcher_holds_nobody_and_catches_up(path: str, start: Start) -> None:
    """Its bell is full after some rings; it is told the end all the same, and in order."""
    follower = start("follow", path, "a", "last")
    assert _line(follower) == "ready"
    follower.send_signal(signal.SIGSTOP)
    store = await _open(path)
    version = None
    for value in [*(b"%d" % number for number in range(600)), b"last"]:
        entry = await store.compare_and_set("a", value, version)
        assert entry is not None
        version = entry.version
    follower.send_signal(signal.SIGCONT)
    told = [line.split()[0] for line in _finish(follower)]
    assert told[-1] == "last"
    numbers = [int(value) for value in told[:-1]]
    assert numbers == sorted(set(numbers))
    await store.aclose()


if __name__ == "__main__":
    role: Callable[..., Coroutine[None, None, None]] = ROLES[sys.argv[1]]
    anyio.run(role, *sys.argv[2:])
