"""The end of a link that connected: a primary's batches become NVMe commands, answers messages.

Sans-IO. Operations are plain commands with their place in the stream in fields that NVMe leaves unused;
other messages are SENDs. What the peer says comes in the data of RECEIVEs that are kept outstanding.
When all command identifiers of operations are in use, messages wait here, in order.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence as SequenceOf
from typing import Any, Final

import google_crc32c

from holdfast.errors import RemoteProtocolError
from holdfast.messages import Batch, Message, Op, OpKind, Payload
from holdfast.sockets import Counters
from holdfast.units import Sequence
from holdfast_transport_nvmeof.commands import (
    DSM_RANGE,
    DSM_RANGES_MAX,
    PSDT_SGL,
    IoOpcode,
    SglType,
)
from holdfast_transport_nvmeof.frames import CARRYING_OPS, frames_of, message_of
from holdfast_transport_nvmeof.namespace import NSID
from holdfast_transport_nvmeof.pdu import (
    COMMON,
    DATA,
    DIGEST,
    RESPONSE,
    FatalErrorStatus,
    Framing,
    Offset,
    Pdu,
    PduError,
    PduFlag,
    PduType,
    crc32c,
)
from holdfast_transport_nvmeof.replication import (
    BLOCKS_SHIFT,
    CAPSULE_BYTES_MAX,
    OPERATIONS,
    RECEIVE_BYTES,
    RECEIVE_CID,
    RECEIVES,
    SQE,
    STREAM_COMMANDS_MAX,
    Mark,
    ReplicationOpcode,
)
from holdfast_transport_nvmeof.status import name_of_status
from holdfast_transport_nvmeof.stream import SUCCESSES, Stream, is_intact, joined

_QUADS: Final = struct.Struct("<9Q")
"""A capsule's header by eights of bytes: the common one; opcode, flags, CID, NSID; epoch; sequence;
address; length and type of the SGL; SLBA; CDW12 and 13; commit."""
_HLEN: Final = 8 + SQE.size
assert _QUADS.size == _HLEN
_KIND: Final = int(PduType.CAPSULE_CMD)
_IN_CAPSULE, _TRANSPORT = int(SglType.DATA_BLOCK_OFFSET), int(SglType.TRANSPORT_DATA_BLOCK)
_SEND, _COMMIT = int(ReplicationOpcode.SEND), int(ReplicationOpcode.COMMIT)
_C2H: Final = struct.Struct("<BBBBIHHII4x")
_RESPONSE_KIND, _DATA_KIND = int(PduType.CAPSULE_RESP), int(PduType.C2H_DATA)
_RESPONSE_KINDS: Final = bytes([_RESPONSE_KIND])
_RUN_MAX: Final = 256
"""Successes compared at once: so those that do not belong together cost no more than in proportion."""
_WRITE_COMMAND: Final = int(IoOpcode.WRITE) | PSDT_SGL << 8 | NSID << 32
_FIRST: Final = int(Mark.FIRST)
_CID_MASK: Final = STREAM_COMMANDS_MAX - 1
_FLUSH: Final = int(OpKind.FLUSH)
_DISCARD: Final = int(OpKind.DISCARD)
_RANGE_BLOCKS_MAX: Final = 0xFFFF_FFFF
_WRITE_BLOCKS_MAX: Final = 0x1_0000


class Press:
    """The capsules of the last batch, so that another link that sends the same batch need not pack it.

    A primary sends each batch to all its copies in one wake-up. Whoever receives next empties the
    press, so that no payload is kept alive for longer than a batch is under way.
    """

    __slots__ = ("batch", "cids", "output", "size", "style")

    def __init__(self) -> None:
        """Begin empty."""
        self.batch: Batch | None = None
        self.cids: SequenceOf[int] = ()
        """Command identifiers of its operations."""
        self.style = (0, 0)
        """Flags of digests, and where data begins in a capsule."""
        self.output: list[Payload] = []
        self.size = 0
        """Of the output, in bytes."""

    def empty(self) -> None:
        """Let go of the payloads."""
        self.batch, self.output = None, []


class HostStream(Stream):
    """The host's end of a replication queue."""

    def __init__(self, framing: Framing, counters: Counters, press: Press | None = None) -> None:
        """Begin with RECEIVEs in the output; `press` is shared by the links of a transport."""
        framing.limits = {
            PduType.CAPSULE_RESP: 0,
            PduType.C2H_DATA: CAPSULE_BYTES_MAX,
            PduType.C2H_TERM_REQ: 128,
        }
        super().__init__(framing, counters, PduType.H2C_TERM_REQ)
        self._press = press or Press()
        self._busy = bytearray(0x1_0000)
        """By command identifier: whether it is outstanding."""
        self._ops_open = 0
        self._next_send = STREAM_COMMANDS_MAX
        self._receives: dict[int, int] = {}
        """By command identifier: bytes received so far."""
        self._waiting: deque[Message] = deque()
        self._waiting_bytes = 0
        self._successes = SUCCESSES[framing.header_digest]
        self._digest_flags = int(
            PduFlag.HDGSTF * framing.header_digest | PduFlag.DDGSTF * framing.data_digest
        )
        self._pdo_in = _C2H.size + 4 * framing.header_digest
        self._pdo = -(-(_HLEN + 4 * framing.header_digest) // framing.alignment_out)
        self._pdo *= framing.alignment_out
        self._style = self._digest_flags, self._pdo
        self._gap = bytes(self._pdo - _HLEN - 4 * framing.header_digest)
        self._plain = _KIND | self._digest_flags << 8 | _HLEN << 16 | self._pdo << 24
        """How the capsule of a write begins."""
        for cid in range(RECEIVE_CID, RECEIVE_CID + RECEIVES):
            self._receive(cid)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of messages that wait for command identifiers."""
        return self._waiting_bytes

    @property
    def is_waiting(self) -> bool:
        """Whether messages wait for command identifiers."""
        return bool(self._waiting)

    # --- writing ---------------------------------------------------------------------------

    def _put(self, message: Message) -> None:
        if self._waiting:
            self._wait(message)
        elif type(message) is Batch:
            self._put_batch(message)
        else:
            for parts, size in frames_of(message):
                self._put_frame(parts, size)

    def _wait(self, message: Message) -> None:
        self._waiting.append(message)
        self._waiting_bytes += _bytes_of(message)

    def _put_frame(self, parts: list[Payload], size: int) -> None:
        if size > CAPSULE_BYTES_MAX:
            raise ValueError(f"a frame of {size} bytes passes the limit of {CAPSULE_BYTES_MAX}")
        cid = self._next_send
        while self._busy[cid]:
            cid = self._after(cid)
        self._busy[cid] = 1
        self._next_send = self._after(cid)
        sqe = SQE.pack(
            *(_SEND, PSDT_SGL, cid, NSID, 0, 0, 0, size, _IN_CAPSULE),
            *(0, 0, 0, 0),
        )
        self._pdu(PduType.CAPSULE_CMD, 0, sqe, parts)

    @staticmethod
    def _after(cid: int) -> int:
        return cid + 1 if cid + 1 < RECEIVE_CID else STREAM_COMMANDS_MAX

    def _put_batch(self, batch: Batch) -> None:
        """Put as many operations as there are command identifiers for; the others wait."""
        ops = batch.ops
        free = STREAM_COMMANDS_MAX - self._ops_open
        if free < max(1, len(ops)):
            rest = Batch(batch.epoch, Sequence(batch.first + free), batch.commit, ops[free:])
            self._wait(rest)
            if not free:
                return
            batch = Batch(batch.epoch, batch.first, batch.commit, ops[:free])
        cids = self._cids(batch)
        press, style = self._press, self._style
        if press.batch is not batch or press.cids != cids or press.style != style:
            parts: list[Payload] = []
            if batch.ops:
                self._put_ops(parts, batch, cids)
            else:
                commit = (_COMMIT, 0, 0, 0, _FIRST)
                self._put_op(parts, commit, batch, (batch.first, cids[0]), b"")
            press.batch, press.cids, press.style = batch, cids, style
            press.size = sum(map(len, parts))
            press.output = joined(parts, press.size)
        busy = self._busy
        for cid in cids:
            busy[cid] = 1
        self._ops_open += len(cids)
        self._output += press.output
        self._counters.sent(len(cids), press.size)

    def _cids(self, batch: Batch) -> SequenceOf[int]:
        """Return a command identifier for each operation, or one for an empty batch's commit point.

        They follow from the places in the stream, so that all links of a volume have the same.
        """
        count, busy = len(batch.ops), self._busy
        cid = (batch.first - 1) & _CID_MASK
        if not count:
            count, cid = 1, cid ^ STREAM_COMMANDS_MAX >> 1  # Out of the way of what comes next.
        if cid + count <= STREAM_COMMANDS_MAX and busy.find(1, cid, cid + count) < 0:
            return range(cid, cid + count)
        found: list[int] = []
        while len(found) < count:
            if not busy[cid]:
                found.append(cid)
            cid = (cid + 1) & _CID_MASK
        return found

    def _put_ops(self, parts: list[Payload], batch: Batch, cids: SequenceOf[int]) -> None:
        """Append the capsules of operations; writes, which are most of them, without a detour."""
        framing = self._framing
        head_digest, data_digest = framing.header_digest, framing.data_digest
        plain, extra, gap = self._plain, self._pdo + 4 * data_digest, self._gap
        pack, digest, put, crc = _QUADS.pack, DIGEST.pack, parts.append, google_crc32c.value
        epoch, sequence, commit = batch.epoch, int(batch.first), batch.commit
        first = _FIRST
        for (kind, offset, length, data), cid in zip(batch.ops, cids, strict=True):
            if kind in CARRYING_OPS:
                blocks = length >> 9
                if len(data) != length or (offset | length) & 511:
                    raise ValueError(f"a write of {length} bytes at {offset} holds {len(data)}")
                if not 0 < blocks <= _WRITE_BLOCKS_MAX:
                    raise ValueError(f"a write of {length} bytes passes what NVMe allows")
                head = pack(
                    plain | length + extra << 32, _WRITE_COMMAND | cid << 16, epoch, sequence, 0,
                    length | _IN_CAPSULE << 56, offset >> 9,
                    blocks - 1 | (OPERATIONS[kind][2] | first) << 32, commit,
                )  # fmt: skip
                if head_digest:
                    head += digest(crc(head))
                put(head + gap if gap else head)
                put(data)
                if data_digest:
                    put(digest(crc(data) if type(data) is bytes else crc32c(data)))
            else:
                op = Op(kind, offset, length, data)
                self._put_op(parts, _command(op, first), batch, (sequence, cid), _ranges(op))
            first = 0
            sequence += 1

    def _put_op(
        self,
        parts: list[Payload],
        command: tuple[int, int, int, int, int],
        batch: Batch,
        place: tuple[int, int],
        data: bytes,
    ) -> None:
        """Append the capsule of one command of the stream, whatever it is."""
        opcode, slba, cdw11, cdw12, cdw13 = command
        sequence, cid = place
        sqe = SQE.pack(
            *(opcode, PSDT_SGL, cid, NSID, batch.epoch, sequence, 0, len(data)),
            _IN_CAPSULE if data else _TRANSPORT,
            *(slba | cdw11 << 32, cdw12, cdw13, batch.commit),
        )
        parts += self._framing.pdu(PduType.CAPSULE_CMD, 0, sqe, data)

    def _receive(self, cid: int) -> None:
        """Let the peer send in the data of one more command."""
        self._receives[cid] = 0
        self._busy[cid] = 1
        sqe = SQE.pack(
            *(ReplicationOpcode.RECEIVE, PSDT_SGL, cid, NSID, 0, 0, 0, RECEIVE_BYTES, _TRANSPORT),
            *(0, 0, 0, 0),
        )
        self._pdu(PduType.CAPSULE_CMD, 0, sqe, [])

    # --- reading ---------------------------------------------------------------------------

    def _on_run(self, view: memoryview, start: int, end: int, into: list[Any]) -> tuple[int, int]:
        """Take successes of operations, and frames, without a detour."""
        pdo, framing, count = self._pdo_in, self._framing, 0
        # A response is as long as the header of C2HData, so what follows has at least that.
        while end - start >= pdo:
            if view[start] == _RESPONSE_KIND:
                taken = self._take_successes(view, start, end)
                if not taken:
                    break
                start += taken * pdo
                count += taken
                continue
            kind, flags, hlen, at, plen, cid, _, offset, length = _C2H.unpack_from(view, start)
            following, at = start + plen, start + at
            stop = at + length
            if (
                kind != _DATA_KIND
                or flags != self._digest_flags
                or (hlen, at) != (_C2H.size, start + pdo)
                or following != stop + 4 * framing.data_digest
                or following > end
                or self._receives.get(cid) != offset
                or (framing.header_digest and not is_intact(view, start, start + hlen))
                or (framing.data_digest and not is_intact(view, at, stop))
            ):
                break
            self._receives[cid] = offset + length
            into.append(message_of(view[at:stop]))
            start = following
            count += 1
        return start, count

    def _take_successes(self, view: memoryview, start: int, end: int) -> int:
        """Take the successes of operations at `start` and return how many there are in a row."""
        size, busy = self._pdo_in, self._busy
        cid = view[start + 20] | view[start + 21] << 8
        if cid >= STREAM_COMMANDS_MAX:
            return 0
        count = 1
        if end - start >= 2 * size and view[start + size] == _RESPONSE_KIND:
            most = min((end - start) // size, self._ops_open, STREAM_COMMANDS_MAX - cid, _RUN_MAX)
            kinds = view[start : start + most * size : size].tobytes()
            count = most - len(kinds.lstrip(_RESPONSE_KINDS))
        while count:
            found = view[start : start + count * size].tobytes()
            if busy.find(0, cid, cid + count) < 0 and found == self._successes.of(cid, count):
                busy[cid : cid + count] = bytes(count)
                self._ops_open -= count
                return count
            count = int(count > 1)  # They do not belong together; the first alone may do.
        return 0

    def _on_pdu(self, view: memoryview, pdu: Pdu, into: list[Any]) -> None:
        kind = pdu[0]
        if kind == PduType.CAPSULE_RESP:
            _, _, _, _, cid, status = RESPONSE.unpack_from(view, pdu[2] + 8)
            if not self._busy[cid]:
                raise _unknown(cid, RESPONSE_CID_OFFSET)
            self._busy[cid] = 0
            if cid < STREAM_COMMANDS_MAX:
                self._ops_open -= 1
            elif cid >= RECEIVE_CID:
                self._receive(cid)
            if status > 1:
                self._failed(cid, status >> 1)
        elif kind == PduType.C2H_DATA:
            self._on_data(view, pdu, into)
        else:
            raise self._terminated(view, pdu)

    def _failed(self, cid: int, status: int) -> None:
        """Take note of a failed command; for operations the peer's message says more."""
        if cid >= STREAM_COMMANDS_MAX:
            raise RemoteProtocolError(f"The peer refused a frame: {name_of_status(status)}.")

    def _on_data(self, view: memoryview, pdu: Pdu, into: list[Any]) -> None:
        cid, _, offset, length = DATA.unpack_from(view, pdu.start + COMMON.size)
        received = self._receives.get(cid) if self._busy[cid] else None
        if received is None:
            raise _unknown(cid, Offset.CCCID)
        if length != pdu.data_end - pdu.data_start:
            raise PduError(
                f"C2HData came with DATAL {length}.",
                FatalErrorStatus.INVALID_PDU_HEADER_FIELD,
                Offset.DATAL,
            )
        if offset != received or offset + length > RECEIVE_BYTES:
            raise PduError(
                f"C2HData came with DATAO {offset}.",
                FatalErrorStatus.DATA_TRANSFER_OUT_OF_RANGE,
                Offset.DATAO,
            )
        if not pdu.is_data_intact:
            raise RemoteProtocolError("The data digest of a frame is wrong.")
        self._receives[cid] = offset + length
        into.append(message_of(view[pdu.data_start : pdu.data_end]))

    def _settle(self, into: list[Any]) -> None:
        """Send what has waited for command identifiers."""
        self._press.empty()
        if self._waiting and self._ops_open < STREAM_COMMANDS_MAX:
            waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
            self.send(waiting)


RESPONSE_CID_OFFSET: Final = 20
"""Of the command identifier within a response PDU."""


def _unknown(cid: int, offset: int) -> PduError:
    return PduError(
        f"The peer answers command {cid}, which is not outstanding.",
        FatalErrorStatus.INVALID_PDU_HEADER_FIELD,
        offset,
    )


def _bytes_of(message: Message) -> int:
    if isinstance(message, Batch):
        return sum(len(op[-1]) for op in message.ops)
    return sum(size for _, size in frames_of(message))


def _command(op: Op, first: int) -> tuple[int, int, int, int, int]:
    """Return opcode, SLBA, CDW11, CDW12 and CDW13 of an operation that is no write."""
    kind, offset, length, data = op
    opcode, flag, marks = OPERATIONS[kind]
    if data or (offset | length) & 511:
        raise ValueError(f"operation kind {kind} of {length} bytes at {offset} holds {len(data)}")
    if kind == _FLUSH:
        if offset or length:
            raise ValueError("a flush has no extent")
        return opcode, 0, 0, 0, marks | first
    if kind == _DISCARD:
        ranges = -(-(length >> 9) // _RANGE_BLOCKS_MAX)
        if not 0 < ranges <= DSM_RANGES_MAX:
            raise ValueError(f"a discard of {length} bytes passes what NVMe allows")
        return opcode, ranges - 1, flag, 0, marks | first
    blocks = (length >> 9) - 1
    if not 0 <= blocks <= 0xFFFF_FFFF:
        raise ValueError(f"zeroing {length} bytes passes what NVMe allows")
    high = blocks >> 16 << BLOCKS_SHIFT
    return opcode, offset >> 9, 0, blocks & 0xFFFF | flag, high | marks | first


def _ranges(op: Op) -> bytes:
    """Return the ranges of a discard; nothing for other operations."""
    if op.kind != _DISCARD:
        return b""
    start, left, ranges = op.offset >> 9, op.length >> 9, []
    while left:
        blocks = min(left, _RANGE_BLOCKS_MAX)
        ranges.append(DSM_RANGE.pack(0, blocks, start))
        start, left = start + blocks, left - blocks
    return b"".join(ranges)
