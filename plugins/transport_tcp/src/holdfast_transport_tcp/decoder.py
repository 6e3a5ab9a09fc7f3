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
from holdfast.op_table import OP_ENTRY, unpack_ops
from holdfast.sockets import Counters
from holdfast.units import Epoch
from holdfast_transport_tcp.compression import Codec
from holdfast_transport_tcp.encoder import (
    CARRYING_REQUESTS,
    COLD,
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
_HEADER_BYTES: Final = HEADER.size
_unpack_header = HEADER.unpack_from
_U32: Final = 0xFFFFFFFF
_DAMAGED: Final = "A frame's contents do not match their checksum."
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
        start = inbox.start
        end = inbox.end = inbox.end + count
        counters = self._counters
        counters.bytes_wire_received += count
        if end - start < inbox.needed:
            return
        view = memoryview(inbox.slab).toreadonly()
        needed = 0
        while end - start >= _HEADER_BYTES:
            header = _unpack_header(view, start)
            (magic, version, kind, stored, reserved, epoch, first, mark, items, size, plain,
             checksum, head_sum) = header  # fmt: skip
            if magic != MAGIC or version != VERSION:
                _refuse_foreign(magic, version)
            if xxh3_64_intdigest(view[start : start + HEADER_CHECKED_BYTES]) & _U32 != head_sum:
                raise RemoteProtocolError("A frame's header does not match its checksum.")
            table_size = ENTRY_BYTES.get(kind, 0) * items
            payload = table_size + plain
            is_rare = stored or self._limits
            if (
                is_rare
                or reserved
                or size != plain
                or items > ITEMS_MAX
                or payload > BATCH_BYTES_MAX
            ):
                self._check(header, table_size)
            needed = _HEADER_BYTES + table_size + size
            if end - start < needed:
                break
            table = start + _HEADER_BYTES
            start += needed
            data = view[table + table_size : start]
            if is_rare:
                data = self._unpack(header, view[table : table + table_size], data)
            elif (xxh3_64_intdigest(view[table:start]) if payload else 0) != checksum:
                raise RemoteProtocolError(_DAMAGED)
            hot = _HOT.get(kind)
            try:
                if hot is not None:
                    table_view = view[table : table + table_size]
                    into.append(hot(epoch, first, mark, items, table_view, data))
                else:
                    into.append(_cold(header, data))
            except ValueError as error:
                sentence = f"A frame of type {kind} is not valid: {error}."
                raise RemoteProtocolError(sentence) from error
            counters.frames_received += 1
            counters.bytes_plain_received += _HEADER_BYTES + payload
            needed = 0
        if 0 < end - start < _HEADER_BYTES:
            _check_magic(view[start : min(end, start + len(MAGIC))])
        inbox.start, inbox.needed = start, needed

    def _check(self, header: tuple[Any, ...], table_size: int) -> None:
        """Refuse a header that is not the common one, unless all of it was agreed."""
        _, _, _, stored, reserved, _, _, _, items, size, plain, _, _ = header
        payload = table_size + plain
        if (
            payload > FRAME_BYTES_MAX
            or size > plain
            or items > FRAME_BYTES_MAX // HASH_INDEX_BYTES
            or (table_size and items > 1 and (payload > BATCH_BYTES_MAX or items > ITEMS_MAX))
        ):
            raise RemoteProtocolError(
                f"A frame of {items} items and {payload} bytes passes the limits."
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

    def _unpack(self, header: tuple[Any, ...], table: memoryview, data: memoryview) -> memoryview:
        """Return the data of a frame that is compressed or one of the first."""
        if self._limits:
            del self._limits[0]
        plain, checksum = header[10:12]
        if header[3]:
            assert self._codec is not None
            try:
                data = memoryview(self._codec.decompress(data, plain))
            except ValueError as error:
                raise RemoteProtocolError(f"A frame cannot be unpacked: {error}.") from error
            if len(data) != plain:
                raise RemoteProtocolError("A frame unpacks to another length than its header says.")
        found = 0
        if table or data:
            digest = xxh3_64(table)
            digest.update(data)
            found = digest.intdigest()
        if found != checksum:
            raise RemoteProtocolError(_DAMAGED)
        return data


def _cold(header: tuple[Any, ...], data: Payload) -> Any:
    """Return a message that travels as JSON."""
    _, _, kind, _, _, epoch, first, mark, items, _, _, _, _ = header
    codec = _COLD_BY_TYPE.get(kind)
    if codec is None:
        raise RemoteProtocolError(f"Frame type {kind} is unknown.")
    if epoch or first or mark or items != 1:
        raise ValueError("a JSON frame has numbers in its header")
    return codec.decode(bytes(data))


def _refuse_foreign(magic: bytes, version: int) -> None:
    if magic != MAGIC:
        _check_magic(magic)
    raise OtherVersionError(version)


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
    return _new(m.Ack, (epoch, first, mark))


def _batch(
    epoch: int, first: int, mark: int, _count: int, table: memoryview, data: memoryview
) -> m.Batch:
    return _new(m.Batch, (epoch, first, mark, unpack_ops(table, data)))


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
    return _new(m.Requests, (first, requests))


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
    return _new(m.Replies, (replies,))


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


_Hot = Callable[[int, int, int, int, memoryview, memoryview], Any]
_HOT: Final[dict[int, _Hot]] = {
    FrameType.BATCH.value: _batch,
    FrameType.ACK.value: _ack,
    FrameType.REQUESTS.value: _requests,
    FrameType.REPLIES.value: _replies,
    FrameType.HASH_QUERY.value: _hash_query,
    FrameType.HASH_ANSWER.value: _hash_answer,
    FrameType.READ_ANSWER.value: _read_answer,
}
