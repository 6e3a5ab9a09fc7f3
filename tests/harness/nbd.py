"""A small NBD client of our own: one connection, simple replies, requests in any number under way.

It shares no line with Holdfast, and does the least that the protocol asks of a client. Source: the
NBD specification, doc/proto.md of NetworkBlockDevice/nbd.
"""

from __future__ import annotations

import enum
import select
import socket
import struct
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

_OPTION_MAGIC: Final = 0x49484156454F5054
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
_REQUEST_MAGIC: Final = 0x25609513
_REPLY_MAGIC: Final = 0x67446698
_OPTION: Final = struct.Struct(">QII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")
_GO: Final = 7
_ACK: Final = 1
_INFO: Final = 3
_ERROR_BIT: Final = 1 << 31
FUA: Final = 1
"""Command flag: answer when it is on stable storage."""


class Command(enum.IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


class Disconnected(ConnectionError):  # noqa: N818 - it is what happened, not always an error.
    """The server closed the connection."""


@attrs.frozen
class Reply:
    """One answer."""

    cookie: int
    errno: int
    """0, or why not."""
    data: bytes
    """What was read; empty for other commands."""


class NbdConnection:
    """One connection to an export."""

    size_bytes: int
    flags: int

    def __init__(self, uri: str, *, timeout_s: float = 30.0) -> None:
        """Connect and negotiate.

        Args:
            uri: `nbd://HOST:PORT/NAME` or `nbd+unix:///NAME?socket=PATH`.
            timeout_s: Longest time that any single send or receive may stand still.

        Raises:
            OSError: No connection, or the server refuses the export.
        """
        parts = urlsplit(uri)
        if parts.scheme == "nbd+unix":
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(timeout_s)
            try:
                self._socket.connect(parse_qs(parts.query)["socket"][0])
            except OSError:
                self._socket.close()
                raise
        else:
            address = (parts.hostname or "localhost", parts.port or 10809)
            self._socket = socket.create_connection(address, timeout=timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._lengths: dict[int, int] = {}
        self._cookie = 0
        try:
            self._negotiate(unquote(parts.path.removeprefix("/")).encode())
        except BaseException:
            self._socket.close()
            raise

    @property
    def is_read_only(self) -> bool:
        """Whether the server said so in the handshake."""
        return bool(self.flags & 2)

    def has_reply(self, timeout_s: float) -> bool:
        """Return whether `receive` has something to read, waiting up to `timeout_s` for it.

        Apart from the socket's own timeout, which would cut a large send in two.
        """
        if len(self._buffer) >= _REPLY.size:
            return True
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def send(
        self, command: Command, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> int:
        """Send a request and return its cookie; the answer comes from `receive`."""
        self._cookie += 1
        cookie = self._cookie
        length = len(data) or length
        self._lengths[cookie] = length if command == Command.READ else 0
        header = _REQUEST.pack(_REQUEST_MAGIC, flags, command, cookie, offset, length)
        self._socket.sendall(header + data)
        return cookie

    def receive(self) -> Reply:
        """Return the next answer, whichever request it belongs to.

        Raises:
            TimeoutError: None came in time.
            Disconnected: The server closed the connection.
        """
        self._fill(_REPLY.size)
        magic, errno, cookie = _REPLY.unpack_from(self._buffer)
        assert magic == _REPLY_MAGIC, f"no simple reply begins with {magic:#x}"
        length = 0 if errno else self._lengths[cookie]
        self._fill(_REPLY.size + length)
        del self._lengths[cookie]
        data = bytes(self._buffer[_REPLY.size : _REPLY.size + length])
        del self._buffer[: _REPLY.size + length]
        return Reply(cookie, errno, data)

    def call(
        self, command: Command, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> bytes:
        """Send a request, wait for its answer, return the data; nothing else may be under way.

        Raises:
            OSError: The server's error, with its number.
        """
        cookie = self.send(command, offset, length, data, flags)
        reply = self.receive()
        assert reply.cookie == cookie, "a reply to something else"
        if reply.errno:
            raise OSError(reply.errno, f"{command.name} at {offset} failed")
        return reply.data

    def close(self) -> None:
        """Say good-bye and close. Idempotent."""
        try:
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, Command.DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        finally:
            self._socket.close()

    def __enter__(self) -> Self:
        """Return the connection."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _fill(self, count: int) -> None:
        while len(self._buffer) < count:
            data = self._socket.recv(max(65536, count - len(self._buffer)))
            if not data:
                raise Disconnected("The NBD server closed the connection.")
            self._buffer += data

    def _take(self, count: int) -> bytes:
        self._fill(count)
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _negotiate(self, name: bytes) -> None:
        greeting = self._take(18)
        assert greeting[:8] == b"NBDMAGIC", greeting
        self._socket.sendall(struct.pack(">I", 3))  # Fixed newstyle, no zeroes.
        query = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._socket.sendall(_OPTION.pack(_OPTION_MAGIC, _GO, len(query)) + query)
        while True:
            magic, _, kind, length = _OPTION_REPLY.unpack(self._take(_OPTION_REPLY.size))
            assert magic == _OPTION_REPLY_MAGIC, f"no option reply begins with {magic:#x}"
            body = self._take(length)
            if kind == _ACK:
                return
            if kind & _ERROR_BIT:
                text = body.decode("utf-8", "replace")
                raise ConnectionRefusedError(f"The NBD server refused {name!r}: {kind:#x} {text}")
            if kind == _INFO and body[:2] == b"\0\0":
                self.size_bytes, self.flags = struct.unpack_from(">QH", body, 2)
