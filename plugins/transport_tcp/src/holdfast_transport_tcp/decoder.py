"""Received bytes in, messages out; sans-IO. Everything a peer could get wrong is checked here.

A frame is believed in this order: its header when the header's checksum holds, its lengths when they
keep the limits, its contents when their checksum holds and every entry adds up. What fails raises
`RemoteProtocolError`, after which the decoder must not be used again; messages of the frames before
it are good.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from xxhash import xxh3_64, xxh3_64_intdigest

from holdfast import messages as m
from holdfast.errors import RemoteProtocolError
from holdfast.messages import Payload
from holdfast.units import Epoch, Sequence
from holdfast_transport_tcp.compression import Codec
from holdfast_transport_tcp.counters import Counters
from holdfast_transport_tcp.encoder import (
    CARRYING_OPS,
    CARRYING_REQUESTS,
    COLD,
    OP_KINDS,
    REQUEST_KINDS,
)
from holdfast_transport_tcp.layout import (
    BATCH_BYTES_MAX,
    FRAME_BYTES_MAX,
    HASH_INDEX_BYTES,
    HEADER,
    HEADER_CHECKED_BYTES,
    ITEMS_MAX,
    MAGIC,
    OP_ENTRY,
    REPLY_ENTRY,
    REQUEST_ENTRY,
    VERSION,
    FrameType,
)
from holdfast_transport_tcp.slab import Inbox

ENTRY_BYTES: Final = {
    FrameType.BATCH.value: OP_ENTRY.size,
    FrameType.REQUESTS.value: REQUEST_ENTRY.size,
    FrameType.REPLIES.value: REPLY_ENTRY.size,
}
_COLD_BY_TYPE: Final = {kind.value: codec for kind, codec in COLD.values()}
_new = tuple.__new__
"""Builds a named tuple without its Python-level `__new__`, at half the price."""


class OtherVersionError(RemoteProtocolError):
    """The header is of another protocol version; everything behind its version byte is unknown."""

    def __init__(self, version: int) -> None:
        super().__init__(f"The peer speaks protocol version {version}, this node {VERSION}.")
        self.version = version


class Decoder:
    """Turns the bytes of one link into messages."""

    __slots__ = ("_codec", "_counters", "_inbox", "_limits")

    def __init__(
        self,
        inbox: Inbox,
        counters: Counters,
        codec: Codec | None = None,
        limits: tuple[int, ...] = (),
    ) -> None:
        """Make a decoder.

        Args:
            inbox: Where the bytes arrive.
            counters: Where frames and bytes are counted.
            codec: The compression that the handshake chose; None allows plain frames only.
            limits: Limits in bytes of the first frames, one each; later ones have the protocol's.
        """
        self._inbox = inbox
        self._counters = counters
        self._codec = codec
        self._limits = list(limits)

    def use(self, codec: Codec | None) -> None:
        """Allow frames compressed by `codec` from here on."""
        self._codec = codec

    def receive(self, count: int, into: list[Any]) -> None:
        """Take `count` bytes that were written into the inbox's buffer.

        Args:
            count: How many bytes arrived.
            into: Gets the messages of every frame that is complete now, in order.

        Raises:
            RemoteProtocolError: The peer broke the protocol; says how.
        """
        inbox = self._inbox
        inbox.end += count
        self._counters.bytes_wire_received += count
        if inbox.end - inbox.start < inbox.needed:
            return
        view = memoryview(inbox.slab).toreadonly()
        counters = self._counters
        start, end = inbox.start, inbox.end
        needed = 0
        while end - start >= HEADER.size:
            header = HEADER.unpack_from(view, start)
            needed, table_size = self._check_header(view, start, header)
            if end - start < needed:
                break
            at = start + HEADER.size
            into.append(self._message(header, view[at : start + needed], table_size))
            counters.frames_received += 1
            counters.bytes_plain_received += HEADER.size + table_size + header[10]
            start += needed
            needed = 0
        if 0 < end - start < HEADER.size:
            _check_magic(view[start : min(end, start + len(MAGIC))])
        inbox.read_up_to(start, needed)

    def _check_header(
        self, view: memoryview, start: int, header: tuple[Any, ...]
    ) -> tuple[int, int]:
        """Return the length of the frame and that of its table."""
        magic, version, kind, stored, reserved, _, _, _, count, size, plain, _, head_sum = header
        if magic != MAGIC:
            _check_magic(magic)
        if version != VERSION:
            raise OtherVersionError(version)
        checked = view[start : start + HEADER_CHECKED_BYTES]
        if xxh3_64_intdigest(checked) & 0xFFFFFFFF != head_sum:
            raise RemoteProtocolError("A frame's header does not match its checksum.")
        table_size = ENTRY_BYTES.get(kind, 0) * count
        payload = table_size + plain
        if (
            payload > FRAME_BYTES_MAX
            or size > plain
            or count > FRAME_BYTES_MAX // HASH_INDEX_BYTES
            or (table_size and count > 1 and (payload > BATCH_BYTES_MAX or count > ITEMS_MAX))
        ):
            raise RemoteProtocolError(
                f"A frame of {count} items and {payload} bytes passes the limits."
            )
        if stored:
            if self._codec is None or stored != self._codec.stored or reserved or size == plain:
                raise RemoteProtocolError(f"A frame is stored as {stored}, which was not agreed.")
        elif size != plain or reserved:
            raise RemoteProtocolError("A frame stored plain has two lengths, or unknown bits.")
        if self._limits:
            limit = self._limits[0]
            if payload > limit:
                raise RemoteProtocolError(f"A first frame of {payload} bytes; {limit} are allowed.")
        return HEADER.size + table_size + size, table_size

    def _message(self, header: tuple[Any, ...], body: memoryview, table_size: int) -> Any:
        """Return the message of a complete frame."""
        _, _, kind, stored, _, epoch, first, mark, count, _, plain, checksum, _ = header
        if self._limits:
            del self._limits[0]
        data: Payload = body[table_size:]
        if stored:
            assert self._codec is not None
            try:
                data = self._codec.decompress(data, plain)
            except ValueError as error:
                raise RemoteProtocolError(f"A frame cannot be unpacked: {error}.") from error
            if len(data) != plain:
                raise RemoteProtocolError("A frame unpacks to another length than its header says.")
            digest = xxh3_64(body[:table_size])
            digest.update(data)
            found = digest.intdigest()
            data = memoryview(data)
        else:
            found = xxh3_64_intdigest(body) if body else 0
        if found != checksum:
            raise RemoteProtocolError("A frame's contents do not match their checksum.")
        try:
            hot = _HOT.get(kind)
            if hot is not None:
                return hot(epoch, first, mark, count, body[:table_size], data)
            if epoch or first or mark or count != 1:
                raise ValueError("a JSON frame has numbers in its header")  # noqa: TRY301
            return _COLD_BY_TYPE[kind].decode(bytes(data))
        except KeyError:
            raise RemoteProtocolError(f"Frame type {kind} is unknown.") from None
        except ValueError as error:
            raise RemoteProtocolError(f"A frame of type {kind} is not valid: {error}.") from error


def _check_magic(beginning: Payload) -> None:
    """Refuse foreign bytes at once, even when they are too few for a header."""
    if beginning != MAGIC[: len(beginning)]:
        raise RemoteProtocolError(
            f"Foreign bytes: {bytes(beginning)!r} begins no frame of this protocol."
        )


# --- one function per hot message: (epoch, first, mark, count, table, data) -> message -----------


def _ack(epoch: int, first: int, mark: int, count: int, _table: Payload, data: Payload) -> m.Ack:
    if count or data:
        raise ValueError("an acknowledgement has no contents")
    return m.Ack(Epoch(epoch), Sequence(first), Sequence(mark))


def _batch(
    epoch: int, first: int, mark: int, _count: int, table: Payload, data: Payload
) -> m.Batch:
    ops = []
    at = 0
    op = m.Op
    for kind, offset, length in OP_ENTRY.iter_unpack(table):
        if kind in CARRYING_OPS:
            end = at + length
            ops.append(_new(op, (kind, offset, length, data[at:end])))
            at = end
        elif kind in OP_KINDS:
            ops.append(_new(op, (kind, offset, length, b"")))
        else:
            raise ValueError(f"operation kind {kind}")
    if at != len(data):
        raise ValueError(f"operations of {at} bytes stand over {len(data)}")
    return m.Batch(Epoch(epoch), Sequence(first), Sequence(mark), ops)


def _requests(
    epoch: int, first: int, mark: int, _count: int, table: Payload, data: Payload
) -> m.Requests:
    if epoch or mark:
        raise ValueError("requests have no epoch and no mark")
    requests = []
    at = 0
    request = m.Request
    for id_, kind, flags, offset, length in REQUEST_ENTRY.iter_unpack(table):
        if kind in CARRYING_REQUESTS:
            end = at + length
            requests.append(_new(request, (id_, kind, flags, offset, length, data[at:end])))
            at = end
        elif kind in REQUEST_KINDS:
            requests.append(_new(request, (id_, kind, flags, offset, length, b"")))
        else:
            raise ValueError(f"request kind {kind}")
    if at != len(data):
        raise ValueError(f"requests of {at} bytes stand over {len(data)}")
    return m.Requests(first, requests)


def _replies(
    epoch: int, first: int, mark: int, _count: int, table: Payload, data: Payload
) -> m.Replies:
    if epoch or first or mark:
        raise ValueError("replies have no numbers in their header")
    replies = []
    at = 0
    reply = m.Reply
    for id_, errno, length in REPLY_ENTRY.iter_unpack(table):
        if length:
            end = at + length
            replies.append(_new(reply, (id_, errno, data[at:end])))
            at = end
        else:
            replies.append(_new(reply, (id_, errno, b"")))
    if at != len(data):
        raise ValueError(f"replies of {at} bytes stand over {len(data)}")
    return m.Replies(replies)


def _hash_query(
    epoch: int, first: int, mark: int, count: int, _table: Payload, data: Payload
) -> m.HashQuery:
    if len(data) != HASH_INDEX_BYTES * count:
        raise ValueError(f"{count} indexes in {len(data)} bytes")
    return m.HashQuery(Epoch(epoch), first, mark, struct.unpack(f">{count}I", data))


def _hash_answer(
    epoch: int, first: int, mark: int, count: int, _table: Payload, data: Payload
) -> m.HashAnswer:
    if mark or count != 1:
        raise ValueError("a hash answer is one item without a mark")
    return m.HashAnswer(Epoch(epoch), first, bytes(data))


def _read_answer(
    epoch: int, first: int, mark: int, count: int, _table: Payload, data: Payload
) -> m.ReadAnswer:
    if count != 1:
        raise ValueError("a read answer is one item")
    return m.ReadAnswer(Epoch(epoch), first, mark, data)


_Hot = Callable[[int, int, int, int, Payload, Payload], Any]
_HOT: Final[dict[int, _Hot]] = {
    FrameType.BATCH.value: _batch,
    FrameType.ACK.value: _ack,
    FrameType.REQUESTS.value: _requests,
    FrameType.REPLIES.value: _replies,
    FrameType.HASH_QUERY.value: _hash_query,
    FrameType.HASH_ANSWER.value: _hash_answer,
    FrameType.READ_ANSWER.value: _read_answer,
}
