"""A small blocking NBD client: what import, export and the demonstration need, and no more.

It speaks newstyle negotiation with GO, structured replies where offered, and keeps many requests
under way. The command line uses the same door as every other consumer, so it also proves that
door. It knows no volumes, only a URI.

Source: github.com/NetworkBlockDevice/nbd doc/proto.md.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

from holdfast.errors import (
    ConflictError,
    HoldfastError,
    NotFoundError,
    RefusedError,
    RemoteProtocolError,
    UnavailableError,
    UsageError,
    VolumeError,
)

READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 3, 4, 6, 7
FUA, NO_HOLE, REQUEST_ONE = 1, 2, 8

DEPTH = 16
"""Requests under way at once; beyond it a local server gains nothing."""
PORT = 10809

_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IQ")
_STRUCTURED = struct.Struct(">HHQI")
_EXTENT = struct.Struct(">II")
_OPTION_MAGIC, _OPTION_REPLY_MAGIC = 0x49484156454F5054, 0x3E889045565A9
_REQUEST_MAGIC, _SIMPLE_MAGIC, _STRUCTURED_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_GO, _STRUCTURED_REPLY, _SET_META_CONTEXT = 7, 8, 10
_ACK, _INFO, _META_CONTEXT = 1, 3, 4
_UNKNOWN_EXPORT = 0x80000006
_REFUSALS: dict[int, type[HoldfastError]] = {
    0x80000002: ConflictError,
    0x80000007: UnavailableError,
}
"""By policy, such as another writer; and not now."""
_REPLY_BYTES_MAX = 64 << 20
_CONTEXT = b"base:allocation"
_ERRNO_MAX = 4096
"""No system has higher ones; what comes from a server may be anything."""
_CHUNK_BYTES_MIN = {1: 8, 2: 12, 5: 4}
"""By the type of a chunk: an offset, an offset and a length, a context's id."""
_OPTION_REPLIES_MAX = 1024
"""A server that never comes to an end with an option is left."""


class Request(NamedTuple):
    """One request; `data` only for WRITE."""

    kind: int
    offset: int
    length: int
    data: bytes | memoryview = b""
    flags: int = 0


class NbdClient:
    """One connection to one export; use it as a context manager."""

    def __init__(self, uri: str, *, timeout_s: float | None = None) -> None:
        """Connect and negotiate.

        Args:
            uri: `nbd://HOST:PORT/NAME` or `nbd+unix:///NAME?socket=PATH`.
            timeout_s: Longest silence of the server; None waits, as failover is a pause.

        Raises:
            UnavailableError: Nobody listens there, the connection was cut, or nobody serves it now.
            NotFoundError: The server has no such export.
            ConflictError: Somebody else has it.
            RefusedError: The server will not serve it, or is none that we know.
        """
        self.uri = uri
        self.size_bytes = 0
        self._flags = 0
        self._has_extents = False
        self._cookie = 0
        self._read_data: dict[int, bytearray] = {}
        self._read_bytes: dict[int, int] = {}
        self._socket, name = _connect(uri)
        try:
            self._negotiate(name)
            self._socket.settimeout(timeout_s)
        except BaseException:
            self._socket.close()
            raise

    @property
    def read_only(self) -> bool:
        """Whether the server refuses writes."""
        return bool(self._flags & 2)

    @property
    def can_zero(self) -> bool:
        """Whether the server takes WRITE_ZEROES."""
        return bool(self._flags & 64)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        ((_, data),) = self.pipeline([Request(READ, offset, length)])
        return data

    def write(self, offset: int, data: bytes | memoryview, *, fua: bool = False) -> None:
        """Write `data` and wait for its acknowledgement."""
        request = Request(WRITE, offset, len(data), data, FUA if fua else 0)
        deque(self.pipeline([request]), maxlen=0)

    def flush(self) -> None:
        """Wait until everything acknowledged is on stable storage."""
        deque(self.pipeline([Request(FLUSH, 0, 0)]), maxlen=0)

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return runs of (length, reads as zeros) that cover the range; all data when unknown."""
        if not self._has_extents:
            return [(length, False)]
        runs: list[tuple[int, bool]] = []
        end = offset + length
        while offset < end:
            ((_, data),) = self.pipeline([Request(BLOCK_STATUS, offset, end - offset)])
            if not data or len(data) % _EXTENT.size:
                raise RemoteProtocolError("The NBD server sent no whole block status.")
            for run, state in _EXTENT.iter_unpack(data):
                if not run:
                    raise RemoteProtocolError("The NBD server sent an extent of no bytes.")
                taken = min(run, end - offset)
                # Bit 1 says that it reads as zeros; a hole that does not is data to us.
                runs.append((taken, bool(state & 2)))
                offset += taken
                if offset >= end:
                    break
        return runs

    def pipeline(
        self, requests: Iterable[Request], *, depth: int = DEPTH
    ) -> Iterator[tuple[Request, bytes]]:
        """Send requests with up to `depth` under way; yield each with its data when it is done.

        The order of completion is the server's.

        Raises:
            VolumeError: The server answered with an error; the connection is still in step only
                when nothing else was under way.
            UnavailableError: The connection was cut or stayed silent for too long.
        """
        pending: dict[int, Request] = {}
        try:
            for request in requests:
                while len(pending) >= depth:
                    yield self._complete(pending)
                self._cookie += 1
                pending[self._cookie] = request
                self._send(self._cookie, request)
            while pending:
                yield self._complete(pending)
        except TimeoutError as error:
            raise UnavailableError(
                f"The NBD server at {self.uri} did not answer in time.",
                hint="`holdfast volume show` says what the volume waits for.",
            ) from error
        except OSError as error:
            raise _cut(self.uri) from error

    def close(self) -> None:
        """Say good-bye and close. Idempotent."""
        try:
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        finally:
            self._socket.close()

    def __enter__(self) -> Self:
        """Return the connected client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    # --- transmission --------------------------------------------------------------------------

    def _send(self, cookie: int, request: Request) -> None:
        header = _REQUEST.pack(
            _REQUEST_MAGIC, request.flags, request.kind, cookie, request.offset, request.length
        )
        if request.kind == WRITE:
            self._send_all(header, request.data)
        else:
            self._socket.sendall(header)

    def _send_all(self, header: bytes, data: bytes | memoryview) -> None:
        sent = self._socket.sendmsg([header, data])
        if sent < len(header):
            self._socket.sendall(header[sent:])
            sent = len(header)
        if sent < len(header) + len(data):
            self._socket.sendall(memoryview(data)[sent - len(header) :])

    def _complete(self, pending: dict[int, Request]) -> tuple[Request, bytes]:
        """Read replies until one request is done; return it with its data."""
        while True:
            (magic,) = struct.unpack(">I", self._receive(4))
            if magic == _SIMPLE_MAGIC:
                code, cookie = _SIMPLE.unpack(self._receive(_SIMPLE.size))
                request = self._expected(pending, cookie)
                if code:
                    raise self._error(request, code, "")
                data = bytes(self._receive(request.length)) if request.kind == READ else b""
                return pending.pop(cookie), data
            if magic != _STRUCTURED_MAGIC:
                raise RemoteProtocolError(f"The NBD server at {self.uri} sent rubbish.")
            if (done := self._chunk(pending)) is not None:
                return done

    def _chunk(self, pending: dict[int, Request]) -> tuple[Request, bytes] | None:
        """Take one chunk of a structured reply; return the request when it was the last."""
        flags, kind, cookie, length = _STRUCTURED.unpack(self._receive(_STRUCTURED.size))
        request = self._expected(pending, cookie)
        if length > _REPLY_BYTES_MAX:
            raise RemoteProtocolError(f"The NBD server at {self.uri} sent {length} bytes at once.")
        body = memoryview(self._receive(length))
        if length < (6 if kind & 0x8000 else _CHUNK_BYTES_MIN.get(kind, 0)):
            raise RemoteProtocolError(f"The NBD server at {self.uri} sent a chunk cut short.")
        if kind & 0x8000:
            code, size = struct.unpack_from(">IH", body)
            raise self._error(request, code, bytes(body[6 : 6 + size]).decode("utf-8", "replace"))
        if kind in {1, 2}:
            data = self._read_data.setdefault(cookie, bytearray(request.length))
            (at,) = struct.unpack_from(">Q", body)
            at -= request.offset
            size = length - 8 if kind == 1 else struct.unpack_from(">I", body, 8)[0]
            if not 0 <= at <= at + size <= request.length:
                raise RemoteProtocolError(f"The NBD server at {self.uri} sent data out of range.")
            if kind == 1:
                data[at : at + size] = body[8:]
            self._read_bytes[cookie] = self._read_bytes.get(cookie, 0) + size
        elif kind == 5:
            self._read_data[cookie] = bytearray(body[4:])
        if not flags & 1:
            return None
        if request.kind == READ and self._read_bytes.pop(cookie, 0) != request.length:
            # Bytes that were never sent would be taken for zeros.
            raise RemoteProtocolError(
                f"The NBD server at {self.uri} did not send all of what was read."
            )
        return pending.pop(cookie), bytes(self._read_data.pop(cookie, b""))

    def _expected(self, pending: dict[int, Request], cookie: int) -> Request:
        try:
            return pending[cookie]
        except KeyError:
            raise RemoteProtocolError(
                f"The NBD server at {self.uri} answered what was not asked."
            ) from None

    def _error(self, request: Request, code: int, sentence: str) -> VolumeError:
        what = {READ: "read", WRITE: "write", FLUSH: "flush", TRIM: "trim"}.get(
            request.kind, "request"
        )
        reason = sentence.rstrip(".") or (
            os.strerror(code) if code < _ERRNO_MAX else f"error {code}"
        )
        hint = "The volume is read-only now." if code == errno.EPERM else ""
        return VolumeError(
            f"The {what} of {request.length} bytes at {request.offset} failed: {reason}.",
            errno=code,
            hint=hint or "`holdfast volume show` says how the volume is.",
        )

    def _receive(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise _cut(self.uri)
            view = view[got:]
        return data

    # --- negotiation ---------------------------------------------------------------------------

    def _negotiate(self, name: str) -> None:
        try:
            greeting = self._receive(18)
            magic, option_magic, _flags = struct.unpack(">8sQH", greeting)
            if magic != b"NBDMAGIC" or option_magic != _OPTION_MAGIC:
                raise RefusedError(f"No NBD server of the new style answers at {self.uri}.")
            self._socket.sendall(struct.pack(">I", 3))
            if self._option(_STRUCTURED_REPLY, b"", lambda _kind, _data: None):
                self._negotiate_extents(name)
            self._go(name)
        except TimeoutError as error:
            raise UnavailableError(
                f"The NBD server at {self.uri} does not answer.",
                hint="No primary may be serving the volume; see `holdfast volume show`.",
            ) from error
        except OSError as error:
            raise _cut(self.uri) from error

    def _negotiate_extents(self, name: str) -> None:
        export = name.encode()
        query = struct.pack(">I", len(export)) + export
        query += struct.pack(">II", 1, len(_CONTEXT)) + _CONTEXT

        def take(kind: int, _data: bytes) -> None:
            self._has_extents |= kind == _META_CONTEXT

        self._option(_SET_META_CONTEXT, query, take)

    def _go(self, name: str) -> None:
        refusal: list[tuple[int, str]] = []

        def take(kind: int, data: bytes) -> None:
            if kind == _INFO and len(data) >= 12 and data[:2] == b"\0\0":
                self.size_bytes, self._flags = struct.unpack_from(">QH", data, 2)
            elif kind & 0x80000000:
                refusal.append((kind, data.decode("utf-8", "replace")))

        export = name.encode()
        query = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        if not self._option(_GO, query, take):
            kind, sentence = refusal[0]
            if kind == _UNKNOWN_EXPORT:
                raise NotFoundError(
                    f"No volume is named {name!r} at {self.uri}.",
                    hint="See `holdfast volume list`.",
                )
            refusal_of = _REFUSALS.get(kind, RefusedError)
            raise refusal_of(
                f"The NBD server at {self.uri} refuses: {sentence.rstrip('.') or hex(kind)}.",
                # Our own frontend's sentence has its hint with it.
                hint="" if "`" in sentence else "`holdfast volume show` says how the volume is.",
            )

    def _option(self, option: int, data: bytes, take: Callable[[int, bytes], None]) -> bool:
        """Send an option, pass its replies to `take`; return whether it ended with ACK."""
        self._socket.sendall(_OPTION.pack(_OPTION_MAGIC, option, len(data)) + data)
        for _ in range(_OPTION_REPLIES_MAX):
            magic, echoed, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if magic != _OPTION_REPLY_MAGIC or echoed != option or length > 65536:
                raise RemoteProtocolError(f"The NBD server at {self.uri} sent rubbish.")
            body = bytes(self._receive(length))
            if kind == _ACK:
                return True
            take(kind, body)
            if kind & 0x80000000:
                return False
        raise RemoteProtocolError(f"The NBD server at {self.uri} answers an option without end.")


def _connect(uri: str) -> tuple[socket.socket, str]:
    """Return a connected socket and the export's name."""
    parts = urlsplit(uri)
    name = unquote(parts.path.removeprefix("/"))
    try:
        if parts.scheme == "nbd":
            address = (parts.hostname or "localhost", parts.port or PORT)
            connection = socket.create_connection(address, timeout=30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection, name
        path = parse_qs(parts.query).get("socket", [""])[0]
        if parts.scheme != "nbd+unix" or not path:
            raise UsageError(f"{uri!r} is not an NBD URI.", hint="Write nbd://HOST:PORT/NAME.")
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        connection.connect(path)
    except ValueError as error:
        raise UsageError(f"{uri!r} is not an NBD URI: {error}.") from error
    except OSError as error:
        raise UnavailableError(
            f"No NBD server answers at {uri}: {error.strerror or error}.",
            hint="Is the node running? `holdfast status` shows.",
        ) from error
    return connection, name


def _cut(uri: str) -> HoldfastError:
    return UnavailableError(
        f"The NBD server at {uri} closed the connection.",
        hint="Its node may have stopped; `holdfast status` shows. Others serve the volume too.",
    )
