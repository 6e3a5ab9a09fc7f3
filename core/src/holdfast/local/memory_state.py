"""State store `memory`: a dictionary shared by the nodes of one process, for tests and embedding.

It keeps the whole contract of `interfaces/state.py` except one word: nothing outlives the process. It
may be used from several threads, each with its own event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

import anyio.lowlevel
import attrs

from holdfast.errors import StateConflictError, StateError
from holdfast.interfaces import API_VERSION
from holdfast.interfaces.state import (
    Change,
    Entry,
    check_key,
    check_prefix,
    check_ttl,
    check_value,
)
from holdfast.local.watching import Row, Watch


@attrs.frozen
class MemoryStateOptions:
    """Options of `[state.memory]`."""

    name: str = "default"
    """Handles of one name share their contents, which live while any of them is open."""


@attrs.define
class _Lease:
    """The session in force of one node name."""

    id: str
    ends_at_s: float
    """On this process's monotonic clock."""


@attrs.define(eq=False)
class _Shelf:
    """What the handles of one name share; every field is guarded by `lock`."""

    name: str
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    handles: int = 0
    version: int = 0
    entries: dict[str, Entry] = attrs.field(factory=dict)
    leases: dict[str, _Lease] = attrs.field(factory=dict)
    watches: dict[Watch, asyncio.AbstractEventLoop] = attrs.field(factory=dict)

    def tell(self, change: Change) -> None:
        """Hand `change` to every watch, each in its own loop and in the order of the versions."""
        rows = (Row(self.version, change),)
        for watch, loop in self.watches.items():
            with suppress(RuntimeError):  # Its loop is closed; nobody listens there any more.
                loop.call_soon_threadsafe(watch.offer, self.version, rows)


_shelves: dict[str, _Shelf] = {}
_shelves_lock = threading.Lock()


class MemorySession:
    """A lease kept in this process."""

    def __init__(self, store: MemoryStateStore, name: str, ttl_s: float) -> None:
        """Describe the lease; `MemoryStateStore.open_session` puts it in force."""
        self.id = uuid.uuid4().hex
        self._store = store
        self._name = name
        self._ttl_s = ttl_s

    async def renew(self) -> None:
        """Live for another `ttl_s`; see `NodeSession.renew`."""
        shelf = await self._store.ready()
        with shelf.lock:
            lease = shelf.leases.get(self._name)
            now_s = time.monotonic()
            if lease is None or lease.id != self.id or lease.ends_at_s <= now_s:
                raise StateConflictError(f"The session {self.id} of {self._name} is over.")
            lease.ends_at_s = now_s + self._ttl_s

    async def end(self) -> None:
        """End at once; see `NodeSession.end`."""
        shelf = await self._store.ready()
        with shelf.lock:
            lease = shelf.leases.get(self._name)
            if lease is not None and lease.id == self.id:
                del shelf.leases[self._name]


class MemoryStateStore:
    """One handle on a shared dictionary; see `interfaces.state.StateStore`."""

    def __init__(self, shelf: _Shelf) -> None:
        """Take a handle that `MemoryStateDriver.open` has counted."""
        self._shelf = shelf
        self._watches: set[Watch] = set()
        self._closed = False

    async def ready(self) -> _Shelf:
        """Let others run, as a real store would, and return the shelf if this handle is open."""
        await anyio.lowlevel.checkpoint()
        if self._closed:
            raise StateError(f"The handle on the state store memory:{self._shelf.name} is closed.")
        return self._shelf

    async def get(self, key: str) -> Entry | None:
        """Return the entry under `key`, or None."""
        check_key(key)
        shelf = await self.ready()
        with shelf.lock:
            return shelf.entries.get(key)

    async def list(self, prefix: str) -> Sequence[Entry]:
        """Return the entries whose keys begin with `prefix`, by key."""
        check_prefix(prefix)
        shelf = await self.ready()
        with shelf.lock:
            return _listed(shelf, prefix)

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        """Write or delete if `expected` is in force; see `StateStore.compare_and_set`."""
        check_key(key)
        if value is not None:
            check_value(key, value)
        shelf = await self.ready()
        with shelf.lock:
            present = shelf.entries.get(key)
            if (None if present is None else present.version) != expected:
                raise StateConflictError(f"{key} was written by somebody else.")
            if value is None and present is None:
                return None
            shelf.version += 1
            entry = None if value is None else Entry(key, bytes(value), shelf.version)
            if entry is None:
                del shelf.entries[key]
            else:
                shelf.entries[key] = entry
            shelf.tell(Change(key, entry))
            return entry

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        """Open a stream of changes; see `StateStore.watch`."""
        check_prefix(prefix)
        shelf = await self.ready()
        watch = Watch(prefix)
        with shelf.lock:
            watch.relist(shelf.version, _listed(shelf, prefix))
            shelf.watches[watch] = asyncio.get_running_loop()
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            with shelf.lock:
                shelf.watches.pop(watch, None)
            watch.close()

    async def open_session(self, name: str, ttl_s: float) -> MemorySession:
        """Begin the lease of the node `name`; see `StateStore.open_session`."""
        check_key(name)
        check_ttl(ttl_s)
        shelf = await self.ready()
        session = MemorySession(self, name, ttl_s)
        with shelf.lock:
            shelf.leases[name] = _Lease(session.id, time.monotonic() + ttl_s)
        return session

    async def session_alive(self, name: str) -> str | None:
        """Return the id of the living session of the node `name`, or None."""
        check_key(name)
        shelf = await self.ready()
        with shelf.lock:
            lease = shelf.leases.get(name)
            return None if lease is None or lease.ends_at_s <= time.monotonic() else lease.id

    async def aclose(self) -> None:
        """Release the handle; the contents go with the last one. Idempotent."""
        if self._closed:
            return
        self._closed = True
        error = StateError(f"The handle on the state store memory:{self._shelf.name} was closed.")
        for watch in self._watches:
            watch.fail(error)
        with _shelves_lock:
            self._shelf.handles -= 1
            if self._shelf.handles == 0:
                del _shelves[self._shelf.name]


class MemoryStateDriver:
    """The driver that `[state] driver = "memory"` names."""

    API_VERSION: ClassVar[int] = API_VERSION
    name: ClassVar[str] = "memory"
    IS_IN_PROCESS: ClassVar[bool] = True
    """Another process of the same node would not see it."""
    Options: ClassVar[type[MemoryStateOptions]] = MemoryStateOptions
    CONFORMANCE: ClassVar[Mapping[str, Any]] = {
        "capabilities": {"durable": False},
        "options": {"name": "{folder}"},
    }

    @staticmethod
    async def open(options: MemoryStateOptions) -> MemoryStateStore:
        """Return a handle on the contents of `options.name`, empty if this is the first."""
        with _shelves_lock:
            shelf = _shelves.setdefault(options.name, _Shelf(options.name))
            shelf.handles += 1
        return MemoryStateStore(shelf)


def _listed(shelf: _Shelf, prefix: str) -> list[Entry]:
    return [shelf.entries[key] for key in sorted(shelf.entries) if key.startswith(prefix)]
