"""State store `sqlite`: one file for all node processes of one machine.

For development, single hosts and tests; it refuses to be shared between machines. SQLite is used in
one thread per store and never on the event loop (`sqlite_file.py`). Watches share one reader: a commit
rings a bell in every process (`doorbell.py`), and one query then serves all watches of the store. A
lost ring is only a delay, for the reader also looks every `reread_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import anyio
import attrs

from holdfast.errors import StateConflictError, StateError, UsageError
from holdfast.interfaces import API_VERSION
from holdfast.interfaces.state import (
    Change,
    Entry,
    check_key,
    check_prefix,
    check_ttl,
    check_value,
)
from holdfast.local.doorbell import Doorbell
from holdfast.local.sqlite_file import Reading, SqliteFile
from holdfast.local.watching import Watch

_T = TypeVar("_T")


@attrs.frozen
class SqliteStateOptions:
    """Options of `[state.sqlite]`."""

    path: str = attrs.field(default="/var/lib/holdfast/state.db", metadata={"path": True})
    """The file; made with mode 0600 if it is missing. Sockets stand in `PATH.watch` beside it."""
    lock_timeout_s: float = 5.0
    """How long another process's transaction is waited for; they take milliseconds."""
    reread_s: float = 1.0
    """How often the file is looked at without a ring; bounds the delay after a lost one."""


class SqliteSession:
    """A lease kept as a row of the file."""

    def __init__(self, store: SqliteStateStore, session: str, ttl_s: float) -> None:
        """Describe a lease that the file already holds."""
        self.id = session
        self._store = store
        self._ttl_s = ttl_s

    async def renew(self) -> None:
        """Live for another `ttl_s`; see `NodeSession.renew`."""
        if not await self._store.call(SqliteFile.renew_session, self.id, self._ttl_s):
            raise StateConflictError(f"The session {self.id} is over.")

    async def end(self) -> None:
        """End at once; see `NodeSession.end`."""
        await self._store.call(SqliteFile.end_session, self.id)


class SqliteStateStore:
    """An open file; see `interfaces.state.StateStore`. Belongs to the event loop that opened it."""

    def __init__(
        self, options: SqliteStateOptions, file: SqliteFile, thread: ThreadPoolExecutor
    ) -> None:
        """Take over `file`, which lives in `thread`, and the thread with it."""
        self._options = options
        self._file = file
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._watches: set[Watch] = set()
        self._bell = Doorbell(file.path.with_name(file.path.name + ".watch"))
        self._bell_number: int | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._reading: asyncio.Future[Reading] | None = None
        self._read_again = False

    async def call(self, method: Callable[..., _T], *args: object) -> _T:
        """Run a method of `SqliteFile` in the store's thread.

        When the caller is cancelled in the meantime, what has begun is carried through.
        """
        self._check_open()
        return await self._loop.run_in_executor(self._thread, partial(method, self._file, *args))

    def _check_open(self) -> None:
        if self._closed:
            raise StateError(f"The handle on the state file {self._file.path} is closed.")

    async def get(self, key: str) -> Entry | None:
        """Return the entry under `key`, or None."""
        check_key(key)
        return await self.call(SqliteFile.get, key)

    async def list(self, prefix: str) -> Sequence[Entry]:
        """Return the entries whose keys begin with `prefix`, by key, of one instant."""
        check_prefix(prefix)
        return (await self.call(SqliteFile.list, prefix)).listing or ()

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        """Write or delete if `expected` is in force; see `StateStore.compare_and_set`.

        It is on the disk when this returns. Watches of other processes are rung before.
        """
        check_key(key)
        if value is not None:
            check_value(key, value)
        entry = await self.call(self._write_and_ring, key, value, expected)
        self._read()
        return entry

    def _write_and_ring(
        self, file: SqliteFile, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        entry = file.compare_and_set(key, value, expected)
        self._bell.ring()
        return entry

    async def open_session(self, name: str, ttl_s: float) -> SqliteSession:
        """Begin the lease of the node `name`; see `StateStore.open_session`."""
        check_key(name)
        check_ttl(ttl_s)
        session = await self.call(SqliteFile.begin_session, name, ttl_s)
        return SqliteSession(self, session, ttl_s)

    async def session_alive(self, name: str) -> str | None:
        """Return the id of the living session of the node `name`, or None."""
        check_key(name)
        return await self.call(SqliteFile.living_session, name)

    async def aclose(self) -> None:
        """Release everything; watches end with `StateError`. Idempotent, and not to be cancelled.

        Waits for what has begun, at most the lock timeout and a little.
        """
        if self._closed:
            return
        self._closed = True
        self._stop_listening()
        for watch in self._watches:
            watch.fail(StateError(f"The handle on the state file {self._file.path} was closed."))
        closing = self._loop.run_in_executor(self._thread, self._file.close)
        self._thread.shutdown(wait=False)
        with anyio.move_on_after(self._options.lock_timeout_s + 1, shield=True):
            with suppress(StateError):
                await closing

    # --- watches --------------------------------------------------------------------------------

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        """Open a stream of changes; see `StateStore.watch`."""
        check_prefix(prefix)
        self._check_open()
        watch = Watch(prefix)
        if not self._watches:
            self._listen()
        self._watches.add(watch)
        try:
            opening = await self.call(SqliteFile.list, prefix)
            watch.relist(opening.version, opening.listing or ())
            self._read()  # A ring may have come between that listing and this line.
            yield watch
        finally:
            self._watches.discard(watch)
            watch.close()
            if not self._watches:
                self._stop_listening()

    def _listen(self) -> None:
        """Hang the bell and wind the clock; without a bell the clock alone must do."""
        with suppress(OSError):
            bell = self._bell.listen()
            self._bell_number = bell.fileno()
            self._loop.add_reader(self._bell_number, self._on_ring)
        self._tick = self._loop.call_later(self._options.reread_s, self._on_tick)

    def _stop_listening(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if self._bell_number is not None:
            self._loop.remove_reader(self._bell_number)
            self._bell_number = None
        self._bell.hush()

    def _on_ring(self) -> None:
        self._bell.answer()
        self._read()

    def _on_tick(self) -> None:
        if not self._bell.is_hung:
            self._stop_listening()
            self._listen()
        else:
            self._tick = self._loop.call_later(self._options.reread_s, self._on_tick)
        self._read()

    def _read(self) -> None:
        """Ask the thread what changed, unless it is at it; then once more afterwards."""
        if self._reading is not None:
            self._read_again = True
            return
        watches = [watch for watch in self._watches if watch.seen >= 0]
        if not watches or self._closed:
            return
        since = min(watch.seen for watch in watches)
        prefixes = tuple({watch.prefix for watch in watches})
        self._reading = self._loop.run_in_executor(
            self._thread, self._file.changes, since, prefixes
        )
        self._reading.add_done_callback(partial(self._on_read, watches))

    def _on_read(self, watches: Sequence[Watch], reading: asyncio.Future[Reading]) -> None:
        self._reading = None
        try:
            found = reading.result()
        except StateError:
            return  # The clock asks again; until then the watches are late, which they may be.
        except Exception as error:  # noqa: BLE001 - a bug; whoever watches must not wait for ever.
            for watch in watches:
                watch.fail(error)
            return
        for watch in watches:
            if found.listing is None:
                watch.offer(found.version, found.rows)
            else:
                watch.relist(
                    found.version, [e for e in found.listing if e.key.startswith(watch.prefix)]
                )
        if self._read_again:
            self._read_again = False
            self._read()


class SqliteStateDriver:
    """The driver that `[state] driver = "sqlite"` names."""

    API_VERSION: ClassVar[int] = API_VERSION
    name: ClassVar[str] = "sqlite"
    Options: ClassVar[type[SqliteStateOptions]] = SqliteStateOptions
    CONFORMANCE: ClassVar[Mapping[str, Any]] = {"options": {"path": "{folder}/state.db"}}

    @staticmethod
    async def open(options: SqliteStateOptions) -> SqliteStateStore:
        """Open the file that `options` names; see `SqliteFile.open` for what may stand in the way.

        Raises:
            StateError: The file cannot be used; the hint says what to do.
            UsageError: The path is empty.
        """
        if not options.path:
            raise UsageError(
                "The state store sqlite needs a path.", hint="Set [state.sqlite] path."
            )
        path = _path_of(options)
        thread = ThreadPoolExecutor(1, thread_name_prefix="holdfast-state")
        try:
            file = await asyncio.get_running_loop().run_in_executor(
                thread, SqliteFile.open, path, options.lock_timeout_s
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return SqliteStateStore(options, file, thread)


def _path_of(options: SqliteStateOptions) -> Path:
    return Path(options.path).expanduser().absolute()
