"""State store `relay`: asks a store on another machine, for nodes that share no file with the others.

SQLite's file is for the processes of one kernel. Nodes in guests ask a process of the host instead, which
has the file open (`state_relay_server.py`). One connection carries one call, a watch keeps its own:
nothing has to be mended after a machine has lost its power in the middle of it.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import attrs

from holdfast.errors import HoldfastError, StateConflictError, StateError
from holdfast.interfaces import API_VERSION
from holdfast.interfaces.state import (
    VALUE_BYTES_MAX,
    Change,
    Entry,
    NodeSession,
    check_key,
    check_prefix,
    check_ttl,
    check_value,
)

LINE_BYTES_MAX = 4 * VALUE_BYTES_MAX * 64
"""A listing of 128 of the largest values; base64 makes four bytes of three."""
ANSWER_S_MAX = 10.0
_ERRORS = (StateConflictError, StateError)

Json = Any


@attrs.frozen
class RelayStateOptions:
    """Options of `[state.relay]`."""

    host: str = "127.0.0.1"
    """Where the server listens."""
    port: int = attrs.field(default=0, metadata={"min": 0, "max": 65535})
    """Its port."""


def pack(entry: Entry | None) -> Json:
    """Return what travels of an entry."""
    if entry is None:
        return None
    return [entry.key, b64encode(entry.value).decode("ascii"), entry.version]


def unpack(packed: Json) -> Entry | None:
    """Return the entry of which `packed` travelled."""
    return None if packed is None else Entry(packed[0], b64decode(packed[1]), packed[2])


def error_line(error: HoldfastError) -> Json:
    """Return what travels of an error."""
    return {"error": error.code, "message": error.message, "hint": error.hint}


def _result(line: bytes) -> Json:
    """Return what an answer says, or raise what it tells."""
    if not line.endswith(b"\n"):
        raise StateError("The state relay broke off.")
    answer = json.loads(line)
    for kind in _ERRORS:
        if answer.get("error") == kind.code:
            raise kind(answer["message"], hint=answer["hint"])
    if "error" in answer:
        raise StateError(answer["message"])
    return answer["result"]


@attrs.define(eq=False)
class RelaySession:
    """A lease that the server keeps."""

    store: RelayStateStore
    id: str

    async def renew(self) -> None:
        """Live for another `ttl_s`; see `NodeSession.renew`."""
        await self.store.call("renew", self.id)

    async def end(self) -> None:
        """End at once; see `NodeSession.end`."""
        await self.store.call("end", self.id)


@attrs.define(eq=False)
class _Changes:
    """The lines of one watch."""

    store: RelayStateStore
    reader: asyncio.StreamReader

    def __aiter__(self) -> _Changes:
        return self

    async def __anext__(self) -> Change:
        self.store.check_open()
        try:
            key, packed = _result(await self.reader.readline())
        except OSError as error:
            raise StateError(f"A watch of the state relay ended: {error}.") from error
        return Change(key, unpack(packed))


@attrs.define(eq=False)
class RelayStateStore:
    """A handle on the server's store; see `interfaces.state.StateStore`."""

    options: RelayStateOptions
    _closed: bool = False
    _open: set[asyncio.StreamWriter] = attrs.field(factory=set)

    def check_open(self) -> None:
        """Raise `StateError` when this handle is closed."""
        if self._closed:
            raise StateError("The handle on the state relay is closed.")

    async def call(self, do: str, *args: Json) -> Json:
        """Have the server do something and return what it says."""
        async with self._asking(do, *args) as (_, result):
            return result

    @asynccontextmanager
    async def _asking(
        self, do: str, *args: Json
    ) -> AsyncIterator[tuple[asyncio.StreamReader, Json]]:
        """Ask, and keep the connection while the context lasts."""
        self.check_open()
        host, port = self.options.host, self.options.port
        writer = None
        try:
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    reader, writer = await asyncio.open_connection(host, port, limit=LINE_BYTES_MAX)
                    self._open.add(writer)
                    writer.write(json.dumps([do, *args]).encode("ascii") + b"\n")
                    result = _result(await reader.readline())
            except OSError as error:
                raise StateError(f"The state relay at {host}:{port} fails: {error!r}.") from error
            self.check_open()
            yield reader, result
        finally:
            if writer is not None:
                self._open.discard(writer)
                writer.close()

    async def get(self, key: str) -> Entry | None:
        """Return the entry under `key`, or None."""
        check_key(key)
        return unpack(await self.call("get", key))

    async def list(self, prefix: str) -> Sequence[Entry]:
        """Return the entries whose keys begin with `prefix`, by key, of one instant."""
        check_prefix(prefix)
        found = map(unpack, await self.call("list", prefix))
        return [entry for entry in found if entry is not None]

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        """Write or delete if `expected` is in force; see `StateStore.compare_and_set`."""
        check_key(key)
        if value is not None:
            check_value(key, value)
        encoded = None if value is None else b64encode(value).decode("ascii")
        return unpack(await self.call("compare_and_set", key, encoded, expected))

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        """Open a stream of changes; see `StateStore.watch`."""
        check_prefix(prefix)
        async with self._asking("watch", prefix) as (reader, _):
            yield _Changes(self, reader)

    async def open_session(self, name: str, ttl_s: float) -> NodeSession:
        """Begin the lease of the node `name`; see `StateStore.open_session`."""
        check_key(name)
        check_ttl(ttl_s)
        return RelaySession(self, await self.call("open_session", name, ttl_s))

    async def session_alive(self, name: str) -> str | None:
        """Return the id of the living session of the node `name`, or None."""
        check_key(name)
        found: str | None = await self.call("session_alive", name)
        return found

    async def aclose(self) -> None:
        """Release everything; whoever waits gets `StateError`. Idempotent."""
        self._closed = True
        for writer in self._open:
            writer.close()


class RelayStateDriver:
    """The driver that `[state] driver = "relay"` names."""

    API_VERSION: ClassVar[int] = API_VERSION
    name: ClassVar[str] = "relay"
    Options: ClassVar[type[RelayStateOptions]] = RelayStateOptions

    @staticmethod
    async def open(options: RelayStateOptions) -> RelayStateStore:
        """Return a handle on the server's store.

        Raises:
            StateError: Nobody answers there.
        """
        store = RelayStateStore(options)
        await store.list("relay-probe/")
        return store
