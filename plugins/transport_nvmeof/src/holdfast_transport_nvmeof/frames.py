"""Messages of the core as frames, the data of SEND and RECEIVE; sans-IO, both ways.

A frame is a header of 32 bytes, a table of fixed entries for the kinds that have one, and data, padded
with zeros to whole dwords. The rare messages are JSON. A frame's checksum is its PDU's data digest, so
there is none in here. `Batch` is here for completeness: a primary's goes as plain NVMe commands
(`host_stream.py`), and nobody else sends any.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any, Final

from holdfast import messages as m
from holdfast.cold import ColdCodec
from holdfast.errors import RemoteProtocolError
from holdfast.messages import Message, Payload
from holdfast.units import MIB, Epoch, Sequence

HEADER = struct.Struct("<BxHIQQQ")
"""Kind, count of table entries, length of the data in bytes, epoch, first, mark."""
assert HEADER.size == 32
OP_ENTRY = struct.Struct("<BQQ")
REQUEST_ENTRY = struct.Struct("<QBHQQ")
REPLY_ENTRY = struct.Struct("<QiI")
SEVERAL_BYTES_MAX = 4 * MIB
"""Table and data of a frame with more than one item; more goes as several frames."""
ITEMS_MAX = 32_768
ACK_BYTES = HEADER.size
_new = tuple.__new__


class Kind(enum.IntEnum):
    """What a frame holds."""

    READ_LEASE_QUERY = 14
    READ_LEASE = 15
    ATTACH = 16
    ATTACHED = 17
    REFUSED = 18
    BATCH = 19
    ACK = 20
    EPOCH_CHANGE = 21
    BEGIN_SYNC = 22
    SYNC_BEGUN = 23
    HASH_QUERY = 24
    HASH_ANSWER = 25
    READ_QUERY = 26
    READ_ANSWER = 27
    COPY_FAILED = 28
    RESIZE = 29
    RESIZED = 30
    SESSION_OPEN = 32
    SESSION_OPENED = 33
    REQUESTS = 34
    REPLIES = 35
    VOLUME_CHANGED = 36
    SESSION_CLOSE = 37
    PEER_HELLO = 48
    HEARTBEAT = 49
    HEARTBEAT_ANSWER = 50


_COLD: Final[dict[type[Any], tuple[Kind, ColdCodec]]] = {
    cls: (kind, ColdCodec(cls))
    for cls, kind in (
        (m.Attach, Kind.ATTACH),
        (m.Attached, Kind.ATTACHED),
        (m.Refused, Kind.REFUSED),
        (m.EpochChange, Kind.EPOCH_CHANGE),
        (m.BeginSync, Kind.BEGIN_SYNC),
        (m.SyncBegun, Kind.SYNC_BEGUN),
        (m.ReadQuery, Kind.READ_QUERY),
        (m.CopyFailed, Kind.COPY_FAILED),
        (m.Resize, Kind.RESIZE),
        (m.Resized, Kind.RESIZED),
        (m.ReadLeaseQuery, Kind.READ_LEASE_QUERY),
        (m.ReadLease, Kind.READ_LEASE),
        (m.SessionOpen, Kind.SESSION_OPEN),
        (m.SessionOpened, Kind.SESSION_OPENED),
        (m.VolumeChanged, Kind.VOLUME_CHANGED),
        (m.SessionClose, Kind.SESSION_CLOSE),
        (m.PeerHello, Kind.PEER_HELLO),
        (m.Heartbeat, Kind.HEARTBEAT),
        (m.HeartbeatAnswer, Kind.HEARTBEAT_ANSWER),
    )
}
_COLD_BY_KIND: Final = {kind.value: codec for kind, codec in _COLD.values()}
_ACK: Final = int(Kind.ACK)
CARRYING_OPS: Final = frozenset({int(m.OpKind.WRITE), int(m.OpKind.SYNC_WRITE)})
_OP_KINDS: Final = frozenset(map(int, m.OpKind))
_REQUEST_KINDS: Final = frozenset(map(int, m.RequestKind))
_WRITE: Final = int(m.RequestKind.WRITE)
_ENTRY_BYTES: Final = {
    Kind.BATCH.value: OP_ENTRY.size,
    Kind.REQUESTS.value: REQUEST_ENTRY.size,
    Kind.REPLIES.value: REPLY_ENTRY.size,
}

Frame = tuple[list[Payload], int]
"""Pieces one after the other, and how many bytes they are, a multiple of 4."""


def frames_of(message: Message) -> Iterator[Frame]:
    """Yield the frames of a message: one, unless its items are too many for one.

    Raises:
        ValueError: The message contradicts itself, or a number does not fit (`struct.error`).
    """
    packer = _PACKERS.get(type(message))
    if packer is not None:
        yield from packer(message)
        return
    kind, codec = _COLD[type(message)]
    data = codec.encode(message)
    yield _frame((kind, 0, len(data), 0, 0, 0), b"", [data], len(data))


def message_of(view: memoryview) -> Any:
    """Return the message in a frame; payloads are slices of `view`.

    Raises:
        RemoteProtocolError: It is none.
    """
    if len(view) < HEADER.size:
        raise RemoteProtocolError(f"A frame of {len(view)} bytes is too short.")
    kind, count, length, epoch, first, mark = HEADER.unpack_from(view)
    if kind == _ACK and not count and not length and len(view) == ACK_BYTES:
        return m.Ack(Epoch(epoch), Sequence(first), Sequence(mark))
    table_end = HEADER.size + _ENTRY_BYTES.get(kind, 0) * count
    end = table_end + length
    if end > len(view) or len(view) - end > 3:
        raise RemoteProtocolError(f"A frame of {len(view)} bytes says that it has {end}.")
    table, data = view[HEADER.size : table_end], view[table_end:end]
    try:
        reader = _READERS.get(kind)
        if reader is not None:
            return reader(epoch, first, mark, count, table, data)
        if epoch or first or mark or count:
            raise ValueError("a JSON frame has numbers in its header")  # noqa: TRY301
        return _COLD_BY_KIND[kind].decode(bytes(data))
    except KeyError:
        raise RemoteProtocolError(f"There is no frame of kind {kind}.") from None
    except (ValueError, struct.error) as error:
        raise RemoteProtocolError(f"A frame of kind {kind} is not valid: {error}.") from error


# --- writing -----------------------------------------------------------------------------------


def _frame(
    head: tuple[int, ...], table: bytes | bytearray, pieces: list[Payload], size: int
) -> Frame:
    """Return a frame; `size` is the length of `pieces` together."""
    total = HEADER.size + len(table) + size
    parts: list[Payload] = [HEADER.pack(*head) + table, *pieces]
    if total % 4:
        parts.append(bytes(-total % 4))
    return parts, -(-total // 4) * 4


def _runs(items: SequenceOf[Any], entry_bytes: int) -> Iterator[SequenceOf[Any]]:
    """Yield runs of items that go into one frame each; one empty run when there are none."""
    begin = size = 0
    for index, item in enumerate(items):
        own = len(item[-1]) + entry_bytes
        if index > begin and (size + own > SEVERAL_BYTES_MAX or index - begin == ITEMS_MAX):
            yield items[begin:index]
            begin, size = index, 0
        size += own
    yield items[begin:]


def ack_frame(ack: m.Ack) -> bytes:
    """Return the one piece of an acknowledgement's frame, which has `ACK_BYTES`."""
    return HEADER.pack(_ACK, 0, 0, ack.epoch, ack.applied, ack.durable)


def _pack_ack(ack: m.Ack) -> Iterator[Frame]:
    yield [ack_frame(ack)], ACK_BYTES


def _pack_batch(batch: m.Batch) -> Iterator[Frame]:
    first = batch.first
    for ops in _runs(batch.ops, OP_ENTRY.size):
        table, pieces, size = bytearray(), [], 0
        for kind, offset, length, data in ops:
            if len(data) != (length if kind in CARRYING_OPS else 0):
                raise ValueError(f"an operation of {length} bytes holds {len(data)}")
            if data:
                pieces.append(data)
                size += length
            table += OP_ENTRY.pack(kind, offset, length)
        head = (Kind.BATCH, len(ops), size, batch.epoch, first, batch.commit)
        yield _frame(head, table, pieces, size)
        first = Sequence(first + len(ops))


def _pack_requests(message: m.Requests) -> Iterator[Frame]:
    for requests in _runs(message.requests, REQUEST_ENTRY.size):
        table, pieces, size = bytearray(), [], 0
        for id_, kind, flags, offset, length, data in requests:
            if len(data) != (length if kind == _WRITE else 0):
                raise ValueError(f"a request of {length} bytes holds {len(data)}")
            if data:
                pieces.append(data)
                size += length
            table += REQUEST_ENTRY.pack(id_, kind, flags, offset, length)
        head = (Kind.REQUESTS, len(requests), size, 0, message.generation, 0)
        yield _frame(head, table, pieces, size)


def _pack_replies(message: m.Replies) -> Iterator[Frame]:
    for replies in _runs(message.replies, REPLY_ENTRY.size):
        table, pieces, size = bytearray(), [], 0
        for id_, errno, data in replies:
            if data:
                pieces.append(data)
                size += len(data)
            table += REPLY_ENTRY.pack(id_, errno, len(data))
        yield _frame((Kind.REPLIES, len(replies), size, 0, 0, 0), table, pieces, size)


def _pack_hash_query(query: m.HashQuery) -> Iterator[Frame]:
    data = struct.pack(f"<{len(query.indexes)}I", *query.indexes)
    head = (Kind.HASH_QUERY, 0, len(data), query.epoch, query.id, query.level)
    yield _frame(head, b"", [data], len(data))


def _pack_hash_answer(answer: m.HashAnswer) -> Iterator[Frame]:
    size = len(answer.hashes)
    yield _frame(
        (Kind.HASH_ANSWER, 0, size, answer.epoch, answer.id, 0), b"", [answer.hashes], size
    )


def _pack_read_answer(answer: m.ReadAnswer) -> Iterator[Frame]:
    size = len(answer.data)
    head = (Kind.READ_ANSWER, 0, size, answer.epoch, answer.id, answer.errno)
    yield _frame(head, b"", [answer.data], size)


_PACKERS: Final[dict[type[Any], Callable[[Any], Iterator[Frame]]]] = {
    m.Ack: _pack_ack,
    m.Batch: _pack_batch,
    m.Requests: _pack_requests,
    m.Replies: _pack_replies,
    m.HashQuery: _pack_hash_query,
    m.HashAnswer: _pack_hash_answer,
    m.ReadAnswer: _pack_read_answer,
}


# --- reading: (epoch, first, mark, count, table, data) -> message --------------------------------


def _read_ack(
    epoch: int, first: int, mark: int, count: int, _table: memoryview, data: memoryview
) -> m.Ack:
    if count or data:
        raise ValueError("an acknowledgement has no contents")
    return m.Ack(Epoch(epoch), Sequence(first), Sequence(mark))


def _read_batch(
    epoch: int, first: int, mark: int, _count: int, table: memoryview, data: memoryview
) -> m.Batch:
    ops, at = [], 0
    for kind, offset, length in OP_ENTRY.iter_unpack(table):
        if kind not in _OP_KINDS:
            raise ValueError(f"operation kind {kind}")
        end = at + length if kind in CARRYING_OPS else at
        ops.append(_new(m.Op, (kind, offset, length, data[at:end] if end > at else b"")))
        at = end
    if at != len(data):
        raise ValueError(f"operations of {at} bytes stand over {len(data)}")
    return m.Batch(Epoch(epoch), Sequence(first), Sequence(mark), ops)


def _read_requests(
    epoch: int, first: int, mark: int, _count: int, table: memoryview, data: memoryview
) -> m.Requests:
    if epoch or mark:
        raise ValueError("requests have no epoch and no mark")
    requests, at = [], 0
    for id_, kind, flags, offset, length in REQUEST_ENTRY.iter_unpack(table):
        if kind not in _REQUEST_KINDS:
            raise ValueError(f"request kind {kind}")
        end = at + length if kind == _WRITE else at
        payload = data[at:end] if end > at else b""
        requests.append(_new(m.Request, (id_, kind, flags, offset, length, payload)))
        at = end
    if at != len(data):
        raise ValueError(f"requests of {at} bytes stand over {len(data)}")
    return m.Requests(first, requests)


def _read_replies(
    epoch: int, first: int, mark: int, _count: int, table: memoryview, data: memoryview
) -> m.Replies:
    if epoch or first or mark:
        raise ValueError("replies have no numbers in their header")
    replies, at = [], 0
    for id_, errno, length in REPLY_ENTRY.iter_unpack(table):
        end = at + length
        replies.append(_new(m.Reply, (id_, errno, data[at:end] if length else b"")))
        at = end
    if at != len(data):
        raise ValueError(f"replies of {at} bytes stand over {len(data)}")
    return m.Replies(replies)


def _read_hash_query(
    epoch: int, first: int, mark: int, count: int, _table: memoryview, data: memoryview
) -> m.HashQuery:
    if count or len(data) % 4:
        raise ValueError(f"{len(data)} bytes are not a list of indexes")
    return m.HashQuery(Epoch(epoch), first, mark, struct.unpack(f"<{len(data) // 4}I", data))


def _read_hash_answer(
    epoch: int, first: int, mark: int, count: int, _table: memoryview, data: memoryview
) -> m.HashAnswer:
    if mark or count:
        raise ValueError("a hash answer has no mark and no items")
    return m.HashAnswer(Epoch(epoch), first, bytes(data))


def _read_read_answer(
    epoch: int, first: int, mark: int, count: int, _table: memoryview, data: memoryview
) -> m.ReadAnswer:
    if count:
        raise ValueError("a read answer has no items")
    return m.ReadAnswer(Epoch(epoch), first, mark, data)


_READERS: Final[dict[int, Callable[..., Any]]] = {
    Kind.ACK.value: _read_ack,
    Kind.BATCH.value: _read_batch,
    Kind.REQUESTS.value: _read_requests,
    Kind.REPLIES.value: _read_replies,
    Kind.HASH_QUERY.value: _read_hash_query,
    Kind.HASH_ANSWER.value: _read_hash_answer,
    Kind.READ_ANSWER.value: _read_read_answer,
}
