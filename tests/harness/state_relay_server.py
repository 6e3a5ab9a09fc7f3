"""Lets machines that share no file use a state store: `python -m tests.harness.state_relay_server FILE HOST`.

It has the SQLite file open and does what drivers `relay` ask for; it prints its port once it listens.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
from tests.harness.state_relay import LINE_BYTES_MAX, Json, error_line, pack

from holdfast.errors import HoldfastError, StateConflictError
from holdfast.interfaces.state import NodeSession, StateStore
from holdfast.local.sqlite_state import SqliteStateDriver

SILENT_S_MAX = 10
"""A machine without power answers nothing; its connections are given up after so long."""


@attrs.define(eq=False)
class Relay:
    """One store, and the sessions that were opened through it."""

    store: StateStore
    _sessions: dict[str, NodeSession] = attrs.field(factory=dict)

    @asynccontextmanager
    async def serving(self, host: str) -> AsyncIterator[int]:
        """Serve on a port of its own choice while the context lasts."""
        server = await asyncio.start_server(self._serve, host, 0, limit=LINE_BYTES_MAX)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S_MAX)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENT_S_MAX)
        with suppress(OSError):
            try:
                do, *args = json.loads(await reader.readline())
                if do == "watch":
                    await self._watch(args[0], reader, writer)
                else:
                    await _say(writer, {"result": await self._do(do, *args)})
            except HoldfastError as error:
                await _say(writer, error_line(error))
            finally:
                writer.close()

    async def _do(self, do: str, *args: Json) -> Json:
        match do, args:
            case "get", [key]:
                return pack(await self.store.get(key))
            case "list", [prefix]:
                return [pack(entry) for entry in await self.store.list(prefix)]
            case "compare_and_set", [key, value, expected]:
                decoded = None if value is None else b64decode(value)
                return pack(await self.store.compare_and_set(key, decoded, expected))
            case "open_session", [name, ttl_s]:
                session = await self.store.open_session(name, ttl_s)
                self._sessions[session.id] = session
                return session.id
            case "session_alive", [name]:
                return await self.store.session_alive(name)
            case (("renew" | "end"), [id_]):
                if id_ not in self._sessions:
                    raise StateConflictError(f"The relay knows no session {id_}.")
                await getattr(self._sessions[id_], do)()
                return None
        raise AssertionError((do, args))

    async def _watch(
        self, prefix: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Tell changes until the other side goes away."""
        async with self.store.watch(prefix) as changes:
            await _say(writer, {"result": None})
            gone = asyncio.ensure_future(reader.read())
            telling = asyncio.ensure_future(_tell(changes, writer))
            try:
                await asyncio.wait((gone, telling), return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                telling.cancel()
                for each in (gone, telling):
                    with suppress(asyncio.CancelledError, OSError):
                        await each


async def _tell(changes: AsyncIterator[Json], writer: asyncio.StreamWriter) -> None:
    async for change in changes:
        await _say(writer, {"result": [change.key, pack(change.entry)]})


async def _say(writer: asyncio.StreamWriter, what: Json) -> None:
    writer.write(json.dumps(what).encode("ascii") + b"\n")
    await writer.drain()


async def main(path: str, host: str) -> None:
    """Serve until killed."""
    store = await SqliteStateDriver.open(SqliteStateDriver.Options(path=path))
    async with Relay(store).serving(host) as port:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
