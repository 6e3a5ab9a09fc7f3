"""The simplest NBD client that may have several requests unanswered: for the conformance kit.

What import, export and the demonstration use is another one, blocking, in the command line.
"""

from __future__ import annotations

import asyncio
import errno as errnos
import struct
from typing import Self
from urllib.parse import unquote, urlsplit

from holdfast.node.nbd.protocol import (
    IHAVEOPT,
    NBD_REQUEST_MAGIC,
    OPTION,
    OPTION_REPLY,
    REQUEST,
    SIMPLE_REPLY,
    Command,
    Option,
    Rep,
)


class NbdClient:
    """One connection to one export; implements `testing.checks.frontend.Client`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a fresh connection; `connect` is the way to one that is ready."""
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, tuple[int, asyncio.Future[bytes]]] = {}
        self._cookie = 0
        self._is_lost = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, uri: str) -> Self:
        """Return a client of `nbd://HOST:PORT/NAME`; raises `OSError` when it is refused."""
        parts = urlsplit(uri)
        self = cls(*await asyncio.open_connection(parts.hostname, parts.port))
        try:
            await self._go(unquote(parts.path[1:]).encode())
        except BaseException:
            self._writer.transport.abort()
            raise
        self._task = asyncio.get_running_loop().create_task(self._read_on())
        return self

    async def _go(self, name: bytes) -> None:
        await self._reader.readexactly(18)
        data = struct.pack(">I", len(name)) + name + b"\0\0"
        self._writer.write(b"\0\0\0\3" + OPTION.pack(IHAVEOPT, Option.GO, len(data)) + data)
        while True:
            header = await self._reader.readexactly(OPTION_REPLY.size)
            _, _, rep, length = OPTION_REPLY.unpack(header)
            said = await self._reader.readexactly(length)
            if rep == Rep.ACK:
                return
            if rep >> 31:
                raise OSError(errnos.EACCES, said.decode())

    async def _read_on(self) -> None:
        try:
            while True:
                _, error, cookie = SIMPLE_REPLY.unpack(await self._reader.readexactly(16))
                length, future = self._waiting.pop(cookie)
                if error:
                    future.set_exception(OSError(error, "refused"))
                else:
                    future.set_result(await self._reader.readexactly(length))
        except (OSError, EOFError):
            self._is_lost = True
            for _, future in self._waiting.values():
                future.set_exception(OSError(errnos.EIO, "the connection is gone"))

    async def _do(
        self, kind: int, offset: int, length: int, data: bytes = b"", flags: int = 0
    ) -> bytes:
        if self._is_lost:
            raise OSError(errnos.EIO, "the connection is gone")
        self._cookie += 1
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[self._cookie] = (length if kind == Command.READ else 0, future)
        header = REQUEST.pack(NBD_REQUEST_MAGIC, flags, kind, self._cookie, offset, length)
        self._writer.write(header + data)
        return await future

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes; raises `OSError` with the server's errno, as all of these."""
        return await self._do(Command.READ, offset, length)

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """Write bytes."""
        await self._do(Command.WRITE, offset, len(data), data, int(fua))

    async def flush(self) -> None:
        """Return when everything is on stable storage."""
        await self._do(Command.FLUSH, 0, 0)

    async def discard(self, offset: int, length: int) -> None:
        """Give space back."""
        await self._do(Command.TRIM, offset, length)

    async def aclose(self) -> None:
        """Disconnect at once."""
        self._writer.transport.abort()
        if self._task is not None:
            await self._task
