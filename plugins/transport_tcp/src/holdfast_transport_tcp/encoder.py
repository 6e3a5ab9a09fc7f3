"""Messages in, buffers for the socket out; sans-IO.

Large payloads are never copied: a frame is a list of buffers. Small ones are, because one buffer of
64 KiB costs less to write than 17 small ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any, Final

from xxhash import xxh3_64, xxh3_64_intdigest

from holdfast import messages as m
from holdfast.cold import ColdCodec
from holdfast.errors import LocalProtocolError
from holdfast.messages import Message, Payload
from holdfast.op_table import OP_ENTRY, pack_ops
from holdfast.sockets import Counters
from holdfast.units import KIB, Sequence
from holdfast_transport_tcp.compression import Squeezer
from holdfast_transport_tcp.layout import (
    BATCH_BYTES_MAX,
    FRAME_BYTES_MAX,
    HEADER,
    ITEMS_MAX,
    MAGIC,
    REPLY_ENTRY,
    REQUEST_ENTRY,
    VERSION,
    FrameType,
)
from holdfast_transport_tcp.preface import Preface, Welcome

JOIN_PIECE_BYTES_MAX: Final = 32 * KIB
"""Payloads below this on average are copied into one buffer."""

HEAD_BYTES_MAX: Final = 16 * KIB
"""A table (with the small payloads behind it) below this is copied behind the header."""

CARRYING_REQUESTS: Final = frozenset({int(m.RequestKind.WRITE)})
REQUEST_KINDS: Final = frozenset(map(int, m.RequestKind))

COLD: Final[dict[type[Any], tuple[FrameType, ColdCodec]]] = {
    cls: (kind, ColdCodec(cls))
    for cls, kind in (
        (Preface, FrameType.PREFACE),
        (Welcome, FrameType.WELCOME),
        (m.Attach, FrameType.ATTACH),
        (m.Attached, FrameType.ATTACHED),
        (m.Refused, FrameType.REFUSED),
        (m.EpochChange, FrameType.EPOCH_CHANGE),
        (m.BeginSync, FrameType.BEGIN_SYNC),
        (m.SyncBegun, FrameType.SYNC_BEGUN),
        (m.ReadQuery, FrameType.READ_QUERY),
        (m.CopyFailed, FrameType.COPY_FAILED),
        (m.Resize, FrameType.RESIZE),
        (m.Resized, FrameType.RESIZED),
        (m.ReadLeaseQuery, FrameType.READ_LEASE_QUERY),
        (m.ReadLease, FrameType.READ_LEASE),
        (m.SessionOpen, FrameType.SESSION_OPEN),
        (m.SessionOpened, FrameType.SESSION_OPENED),
        (m.VolumeChanged, FrameType.VOLUME_CHANGED),
        (m.SessionClose, FrameType.SESSION_CLOSE),
        (m.PeerHello, FrameType.PEER_HELLO),
        (m.Heartbeat, FrameType.HEARTBEAT),
        (m.HeartbeatAnswer, FrameType.HEARTBEAT_ANSWER),
    )
}

_HEADER_BYTES: Final = HEADER.size
_ACK: Final = int(FrameType.ACK)
_BATCH: Final = int(FrameType.BATCH)
_pack_head = struct.Struct(HEADER.format.removesuffix("I")).pack
"""The header without its own checksum."""
_pack_u32 = struct.Struct(">I").pack


class Press:
    """The frames of the batch that was packed last, for the other copies that it goes to as well.

    A primary sends each batch to all its copies in one wake-up. Links of one transport that have
    agreed on the same compression share the bytes. Whoever receives next empties the press, so that
    no payload is kept alive for longer than a batch is under way.
    """

    __slots__ = ("buffers", "bytes_plain", "bytes_wire", "frames", "message", "stored")

    def __init__(self) -> None:
        self.message: m.Batch | None = None
        self.stored = 0
        """How compressed blocks are stored by the link that packed it."""
        self.buffers: list[Payload] = []
        self.frames = self.bytes_plain = self.bytes_wire = 0

    def empty(self) -> None:
        """Let go of the payloads."""
        self.message = None
        self.buffers = []


class Encoder:
    """Packs the messages of one link into frames."""

    __slots__ = ("_batch_bytes_max", "_buffers", "_counters", "_squeezer", "press")

    def __init__(
        self,
        counters: Counters,
        squeezer: Squeezer | None = None,
        batch_bytes_max: int = BATCH_BYTES_MAX,
        press: Press | None = None,
    ) -> None:
        """Make an encoder.

        Args:
            counters: Where frames and bytes are counted.
            squeezer: The link's compression; None stores everything plain.
            batch_bytes_max: Most bytes of table and data in a frame with several items.
            press: Shared by the links of a transport; by default this link's own.
        """
        self.press = press or Press()
        self._counters = counters
        self._squeezer = squeezer or Squeezer(None, counters)
        self._batch_bytes_max = batch_bytes_max
        self._buffers: list[Payload] = []

    def use(self, squeezer: Squeezer) -> None:
        """Compress from here on as `squeezer` decides; the handshake has chosen."""
        self._squeezer = squeezer

    def encode(self, messages: SequenceOf[Message | Preface | Welcome]) -> list[Payload]:
        """Return the buffers to send, in order.

        An `Ack` with another one of its epoch right behind it is left out: acknowledgements are
        cumulative. The buffers refer to the messages' payloads, which must not change until sent.

        Raises:
            LocalProtocolError: A message does not fit the protocol; names what and why.
        """
        last = len(messages) - 1
        if last == 0 and type(messages[0]) is m.Batch:
            return self._pressed(messages[0])
        buffers: list[Payload] = []
        self._buffers = buffers
        for index, message in enumerate(messages):
            cls = type(message)
            if cls is m.Ack and index < last:
                follower = messages[index + 1]
                if type(follower) is m.Ack and follower.epoch == message.epoch:  # type: ignore[union-attr]
                    continue
            try:
                hot = _HOT.get(cls)
                if hot is not None:
                    hot(self, message)
                else:
                    self._cold(message)
            except (struct.error, ValueError, KeyError) as error:
                raise LocalProtocolError(
                    f"A {cls.__name__} cannot be put into a frame: {error}."
                ) from error
        return buffers

    def _pressed(self, batch: m.Batch) -> list[Payload]:
        """Return the buffers of one batch, packed for this link or for another one before it."""
        press, counters = self.press, self._counters
        if press.message is batch and press.stored == self._squeezer.stored:
            counters.frames_sent += press.frames
            counters.bytes_plain_sent += press.bytes_plain
            counters.bytes_wire_sent += press.bytes_wire
            return press.buffers
        buffers: list[Payload] = []
        self._buffers = buffers
        frames, plain, wire = (
            counters.frames_sent,
            counters.bytes_plain_sent,
            counters.bytes_wire_sent,
        )
        try:
            self._batch(batch)
        except (struct.error, ValueError, KeyError) as error:
            raise LocalProtocolError(f"A Batch cannot be put into a frame: {error}.") from error
        press.message, press.buffers, press.stored = batch, buffers, self._squeezer.stored
        press.frames = counters.frames_sent - frames
        press.bytes_plain = counters.bytes_plain_sent - plain
        press.bytes_wire = counters.bytes_wire_sent - wire
        return buffers

    # --- one method per hot message ---------------------------------------------------------

    def _ack(self, ack: m.Ack) -> None:
        epoch, applied, durable = ack
        head = _pack_head(MAGIC, VERSION, _ACK, 0, 0, epoch, applied, durable, 0, 0, 0, 0)
        self._buffers.append(head + _pack_u32(xxh3_64_intdigest(head) & 0xFFFFFFFF))
        counters = self._counters
        counters.frames_sent += 1
        counters.bytes_plain_sent += _HEADER_BYTES
        counters.bytes_wire_sent += _HEADER_BYTES

    def _batch(self, batch: m.Batch) -> None:
        epoch, first, commit, ops = batch
        count = len(ops)
        table, pieces, size = pack_ops(ops)
        if count == 1 or (count <= ITEMS_MAX and len(table) + size <= self._batch_bytes_max):
            self._frame(_BATCH, epoch, first, commit, count, table, pieces, size)
            return
        for run in self._runs(ops, OP_ENTRY.size):
            table, pieces, size = pack_ops(run)
            self._frame(_BATCH, epoch, first, commit, len(run), table, pieces, size)
            first = Sequence(first + len(run))

    def _requests(self, message: m.Requests) -> None:
        for requests in self._split(message.requests, REQUEST_ENTRY.size):
            table = bytearray()
            pieces: list[Payload] = []
            size = 0
            for id_, kind, flags, offset, length, data in requests:
                if kind in CARRYING_REQUESTS:
                    if len(data) != length:
                        raise ValueError(f"a write of {length} bytes holds {len(data)}")
                    pieces.append(data)
                    size += length
                elif data or kind not in REQUEST_KINDS:
                    raise ValueError(f"request kind {kind} with {len(data)} bytes")
                table += _pack_request(id_, kind, flags, offset, length)
            self._frame(
                FrameType.REQUESTS, 0, message.generation, 0, len(requests), table, pieces, size
            )

    def _replies(self, message: m.Replies) -> None:
        for replies in self._split(message.replies, REPLY_ENTRY.size):
            table = bytearray()
            pieces: list[Payload] = []
            size = 0
            for id_, errno, data in replies:
                length = len(data)
                if length:
                    pieces.append(data)
                    size += length
                table += _pack_reply(id_, errno, length)
            self._frame(FrameType.REPLIES, 0, 0, 0, len(replies), table, pieces, size)

    def _hash_query(self, query: m.HashQuery) -> None:
        count = len(query.indexes)
        data = struct.pack(f">{count}I", *query.indexes)
        self._frame(
            FrameType.HASH_QUERY, query.epoch, query.id, query.level, count, b"", [data], len(data)
        )

    def _hash_answer(self, answer: m.HashAnswer) -> None:
        data = answer.hashes
        self._frame(FrameType.HASH_ANSWER, answer.epoch, answer.id, 0, 1, b"", [data], len(data))

    def _read_answer(self, answer: m.ReadAnswer) -> None:
        data = answer.data
        self._frame(
            FrameType.READ_ANSWER, answer.epoch, answer.id, answer.errno, 1, b"", [data], len(data)
        )

    def _cold(self, message: Any) -> None:
        kind, codec = COLD[type(message)]
        data = codec.encode(message)
        self._frame(kind, 0, 0, 0, 1, b"", [data], len(data))

    # --- frames -----------------------------------------------------------------------------

    def _split(self, items: SequenceOf[Any], entry_size: int) -> Iterable[SequenceOf[Any]]:
        """Return runs of `items` that fit a frame each; one empty run when there are none."""
        count = len(items)
        if count == 1:
            return (items,)
        total = entry_size * count
        for item in items:
            total += len(item[-1])
        if total <= self._batch_bytes_max and count <= ITEMS_MAX:
            return (items,)
        return self._runs(items, entry_size)

    def _runs(self, items: SequenceOf[Any], entry_size: int) -> Iterator[SequenceOf[Any]]:
        begin = size = 0
        for index, item in enumerate(items):
            item_size = len(item[-1]) + entry_size
            if index > begin and (
                size + item_size > self._batch_bytes_max or index - begin == ITEMS_MAX
            ):
                yield items[begin:index]
                begin, size = index, 0
            size += item_size
        yield items[begin:]

    def _frame(
        self,
        kind: int,
        epoch: int,
        first: int,
        mark: int,
        count: int,
        table: bytes | bytearray,
        pieces: list[Payload],
        size: int,
    ) -> None:
        """Append the buffers of one frame whose plain data are `pieces`, `size` bytes together."""
        table_size = len(table)
        if table_size + size > FRAME_BYTES_MAX:
            raise ValueError(f"{table_size + size} bytes pass the limit of {FRAME_BYTES_MAX}")
        counters = self._counters
        stored, stored_size = 0, size
        if self._squeezer.wants(size):
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            digest = xxh3_64(table)
            digest.update(data)
            checksum = digest.intdigest()
            pieces = [data]
            squeezed = self._squeezer.squeeze(data, size)
            if squeezed is not None:
                stored, block = squeezed
                pieces, stored_size = [block], len(block)
        elif size <= JOIN_PIECE_BYTES_MAX * len(pieces):
            table = b"".join((table, *pieces))
            pieces = []
            checksum = xxh3_64_intdigest(table) if table else 0
        else:
            digest = xxh3_64(table)
            for piece in pieces:
                digest.update(piece)
            checksum = digest.intdigest()
        head = _pack_head(
            MAGIC, VERSION, kind, stored, 0, epoch, first, mark, count, stored_size, size, checksum
        )
        head += _pack_u32(xxh3_64_intdigest(head) & 0xFFFFFFFF)
        if len(table) <= HEAD_BYTES_MAX:
            self._buffers.append(head + table)
        else:
            self._buffers += (head, table)
        self._buffers += pieces
        counters.frames_sent += 1
        counters.bytes_plain_sent += _HEADER_BYTES + table_size + size
        counters.bytes_wire_sent += _HEADER_BYTES + table_size + stored_size


_pack_request = REQUEST_ENTRY.pack
_pack_reply = REPLY_ENTRY.pack

_HOT: Final[dict[type[Any], Callable[[Encoder, Any], None]]] = {
    m.Ack: Encoder._ack,  # noqa: SLF001 - the table of this class's own methods.
    m.Batch: Encoder._batch,  # noqa: SLF001
    m.Requests: Encoder._requests,  # noqa: SLF001
    m.Replies: Encoder._replies,  # noqa: SLF001
    m.HashQuery: Encoder._hash_query,  # noqa: SLF001
    m.HashAnswer: Encoder._hash_answer,  # noqa: SLF001
    m.ReadAnswer: Encoder._read_answer,  # noqa: SLF001
}
