"""State store `sqlite`: the kit, and what one file on one disk brings with it.

`test_sqlite_processes.py` has what needs several processes.
"""
# ruff: noqa: ASYNC240 - tests may touch the disk while nobody else waits.

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
import uvloop

from holdfast.errors import StateConflictError, StateError, UsageError
from holdfast.interfaces import API_VERSION
from holdfast.interfaces.state import StateStore
from holdfast.local import sqlite_file
from holdfast.local.sqlite_file import SqliteFile
from holdfast.local.sqlite_state import SqliteStateDriver, SqliteStateStore
from holdfast.testing.checks.state import OpenStore
from holdfast.testing.conformance_state import StateConformance


class TestSqlite(StateConformance):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        options = SqliteStateDriver.Options(path=str(tmp_path / "state.db"))

        async def open_one() -> StateStore:
            return await SqliteStateDriver.open(options)

        return open_one


class TestSqliteWithoutBells(TestSqlite):
    """Every ring is lost: the clock alone keeps the promises."""

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        (tmp_path / "state.db.watch").write_text("a file where the sockets should stand")
        options = SqliteStateDriver.Options(path=str(tmp_path / "state.db"), reread_s=0.05)

        async def open_one() -> StateStore:
            return await SqliteStateDriver.open(options)

        return open_one


class TestSqliteOnUvloop(TestSqlite):
    """The loop that the node runs on."""

    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, object]]:
        return "asyncio", {"loop_factory": uvloop.new_event_loop}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStateStore]:
    opened = await SqliteStateDriver.open(SqliteStateDriver.Options(path=str(path)))
    yield opened
    await opened.aclose()


async def _refused(path: Path, **options: float) -> StateError:
    with pytest.raises(StateError) as raised:
        await SqliteStateDriver.open(SqliteStateDriver.Options(path=str(path), **options))
    assert str(path) in raised.value.message
    assert raised.value.hint
    return raised.value


def test_driver_names_itself_and_its_api() -> None:
    assert (SqliteStateDriver.name, SqliteStateDriver.API_VERSION) == ("sqlite", API_VERSION)


@pytest.mark.anyio
async def test_the_file_is_for_its_owner_only(store: SqliteStateStore, path: Path) -> None:
    await store.compare_and_set("a", b"1", None)
    async with store.watch("a"):
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
    assert {file.name for file in path.parent.iterdir()} >= {"state.db", "state.db-wal"}


@pytest.mark.anyio
async def test_missing_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state.db"
    store = await SqliteStateDriver.open(SqliteStateDriver.Options(path=str(path)))
    await store.aclose()
    assert path.exists()
    assert [file.name for file in path.parent.iterdir()] == ["state.db"]


@pytest.mark.anyio
async def test_an_empty_path_is_the_operators_mistake() -> None:
    with pytest.raises(UsageError, match="path"):
        await SqliteStateDriver.open(SqliteStateDriver.Options(path=""))


@pytest.mark.anyio
async def test_a_directory_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = await _refused(tmp_path / "file" / "state.db")
    assert "directory" in error.hint


@pytest.mark.anyio
async def test_a_directory_that_may_not_be_written_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:  # Root may write everywhere, so be somebody else for a moment.
        os.seteuid(65534)
    try:
        error = await _refused(tmp_path / "state.db")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)
    assert "write" in error.hint


@pytest.mark.anyio
async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("shopping list: milk, more milk, and then some bread for the weekend" * 20)
    before = path.read_bytes()
    error = await _refused(path)
    assert "is not a state file" in error.message
    assert path.read_bytes() == before


@pytest.mark.anyio
async def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE recipes (name TEXT)")
    foreign.close()
    before = path.read_bytes()
    error = await _refused(path)
    assert "another program" in error.message
    assert path.read_bytes() == before


@pytest.mark.anyio
async def test_a_newer_format_is_refused(store: SqliteStateStore, path: Path) -> None:
    await store.aclose()
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION + 1}")
    newer.close()
    error = await _refused(path)
    assert "Upgrade" in error.hint


@pytest.mark.anyio
async def test_a_file_locked_too_long_is_a_state_error(path: Path) -> None:
    options = SqliteStateDriver.Options(path=str(path), lock_timeout_s=0.05)
    store = await SqliteStateDriver.open(options)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateError, match=r"locked by another process for 0\.05 s") as raised:
        await store.compare_and_set("a", b"1", None)
    assert "fuser" in raised.value.hint
    assert await store.get("a") is None, "reading needs no lock"
    holder.execute("ROLLBACK")
    holder.close()
    assert await store.compare_and_set("a", b"1", None) is not None
    await store.aclose()


@pytest.mark.anyio
async def test_a_full_disk_is_a_state_error_and_loses_nothing(store: SqliteStateStore) -> None:
    entry = await store.compare_and_set("a", b"1", None)

    def fill(file: SqliteFile) -> None:
        pages = file._durable.execute("PRAGMA page_count").fetchone()[0]
        file._durable.execute(f"PRAGMA max_page_count = {pages}")

    await store.call(fill)
    with pytest.raises(StateError, match="no room") as raised:
        await store.compare_and_set("b", bytes(60_000), None)
    assert raised.value.hint
    assert await store.get("a") == entry
    assert await store.get("b") is None


@pytest.mark.anyio
async def test_a_replaced_file_is_refused_so_that_no_two_truths_exist(
    store: SqliteStateStore, path: Path
) -> None:
    await store.compare_and_set("a", b"1", None)
    path.rename(path.with_name("moved.db"))
    with pytest.raises(StateError):
        await store.compare_and_set("b", b"1", None)
    path.touch()
    with pytest.raises(StateError, match="replaced") as raised:
        await store.get("a")
    assert "Restart" in raised.value.hint


@pytest.mark.anyio
async def test_a_session_of_another_boot_is_over(
    store: SqliteStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await store.open_session("n1", 3600.0)
    assert await store.session_alive("n1") == session.id
    monkeypatch.setattr(sqlite_file, "boot_id", lambda: "00000000-another-boot")
    assert await store.session_alive("n1") is None
    with pytest.raises(StateConflictError):
        await session.renew()


@pytest.mark.anyio
async def test_a_commit_is_on_the_disk_before_it_is_told(store: SqliteStateStore) -> None:
    def settings(file: SqliteFile) -> tuple[str, int, int]:
        mode = file._durable.execute("PRAGMA journal_mode").fetchone()[0]
        full = file._durable.execute("PRAGMA synchronous").fetchone()[0]
        return mode, full, file._light.execute("PRAGMA synchronous").fetchone()[0]

    assert await store.call(settings) == ("wal", 2, 1)


def test_a_watch_behind_the_forgotten_deletions_is_listed_anew(path: Path) -> None:
    file = SqliteFile.open(path, 1.0, tombstones_max=4)
    for number in range(8):
        file.compare_and_set(f"k{number}", b"", None)
    since = file.list("").version
    for number in range(3):
        file.compare_and_set(f"k{number}", None, number + 1)
    few = file.changes(since, ("",))
    assert [row.change.key for row in few.rows] == ["k0", "k1", "k2"]
    for number in range(3, 6):
        file.compare_and_set(f"k{number}", None, number + 1)
    many = file.changes(since, ("k6", "k0"))
    assert many.listing is not None
    assert [entry.key for entry in many.listing] == ["k6"]
    assert file._durable.execute("SELECT COUNT(*) FROM gone").fetchone()[0] <= 4
    file.close()


@pytest.mark.anyio
async def test_a_watch_that_is_listed_anew_tells_what_is_gone(
    store: SqliteStateStore, path: Path
) -> None:
    first = await store.compare_and_set("k1", b"", None)
    await store.compare_and_set("k2", b"", None)
    assert first is not None
    async with store.watch("k") as stream:
        assert {(await anext(stream)).key for _ in range(2)} == {"k1", "k2"}
        other = SqliteFile.open(path, 1.0, tombstones_max=0)  # Rings nobody, forgets at once.
        other.compare_and_set("k1", None, first.version)
        other.close()
        with anyio.fail_after(60):
            change = await anext(stream)
        assert (change.key, change.entry) == ("k1", None)


@pytest.mark.anyio
async def test_a_bell_that_was_taken_away_is_hung_again(path: Path) -> None:
    bells = path.with_name("state.db.watch")
    options = SqliteStateDriver.Options(path=str(path), reread_s=0.02)
    watcher = await SqliteStateDriver.open(options)
    async with watcher.watch("a"):
        for bell in bells.iterdir():
            bell.unlink()
        bells.rmdir()
        with anyio.fail_after(60):
            while not (bells.is_dir() and list(bells.iterdir())):  # noqa: ASYNC110 - a file.
                await anyio.sleep(0.01)
    await watcher.aclose()
    assert not list(bells.iterdir())


@pytest.mark.anyio
async def test_a_dead_listeners_bell_is_removed_by_the_next_ring(
    path: Path, store: SqliteStateStore
) -> None:
    watcher = await SqliteStateDriver.open(SqliteStateDriver.Options(path=str(path)))
    bells = path.with_name("state.db.watch")
    async with watcher.watch("a"):
        watcher._loop.remove_reader(watcher._bell_number or 0)
        assert watcher._bell._socket is not None
        watcher._bell._socket.close()  # As a kill leaves it: closed, and its name still there.
        assert len(list(bells.iterdir())) == 1
        await store.compare_and_set("a", b"1", None)
        assert not list(bells.iterdir())
    watcher._bell_number = None
    await watcher.aclose()


@pytest.mark.anyio
async def test_a_path_longer_than_a_sockets_address_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / ("e" * 120) / "state.db"
    options = SqliteStateDriver.Options(path=str(path), reread_s=3600.0)
    watcher, writer = await SqliteStateDriver.open(options), await SqliteStateDriver.open(options)
    async with watcher.watch("a") as stream:
        await writer.compare_and_set("a", b"1", None)
        with anyio.fail_after(60):
            assert (await anext(stream)).key == "a"
    await watcher.aclose()
    await writer.aclose()


@pytest.mark.anyio
async def test_a_cancelled_caller_leaves_the_store_usable(store: SqliteStateStore) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.compare_and_set("a", b"1", None)
    entry = await store.get("a")
    written = await store.compare_and_set("a", b"2", None if entry is None else entry.version)
    assert written is not None


@pytest.mark.anyio
async def test_ten_idle_watches_cost_next_to_nothing(store: SqliteStateStore) -> None:
    """One query per second for all watches together; the budget of a node is 0.5 % of a core."""
    queries: list[str] = []
    contexts = [store.watch(f"group/{number}") for number in range(10)]
    for context in contexts:
        await context.__aenter__()
    await store.call(lambda file: file._durable.set_trace_callback(queries.append))
    began_s = time.process_time()
    await anyio.sleep(2.0)  # The one place where time itself is the subject.
    spent_s = time.process_time() - began_s
    await store.call(lambda file: file._durable.set_trace_callback(None))
    for context in contexts:
        await context.__aexit__(None, None, None)
    assert 2 <= len(queries) <= 3 * 4, queries
    print(f"ten idle watches: {spent_s / 2.0:.3%} of a core")  # noqa: T201


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """Whoever comes while the tables are being made waits, and takes nobody's file for foreign."""
    openers = 6
    failures: list[BaseException] = []

    def open_and_close(path: Path, together: threading.Barrier) -> None:
        together.wait()
        try:
            SqliteFile.open(path, 10.0).close()
        except BaseException as error:  # noqa: BLE001 - told by the main thread.
            failures.append(error)

    for turn in range(20):
        together = threading.Barrier(openers)
        threads = [
            threading.Thread(target=open_and_close, args=(tmp_path / f"{turn}.db", together))
            for _ in range(openers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
