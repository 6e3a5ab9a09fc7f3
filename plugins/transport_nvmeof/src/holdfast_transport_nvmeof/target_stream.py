"""The end of a link that was connected to: NVMe commands become a replica's messages.

Sans-IO. An operation's command is completed when its acknowledgement is sent: a Write when the copy has
applied it, a Flush when it is durable; so completions say to any reader of the wire what the protocol
means. A copy that gives up or is told a stale epoch fails what is outstanding by the status for that.
Nothing here judges an epoch: that is the copy's part (R3), which sees each command's.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Final, NoReturn

import google_crc32c

from holdfast.errors import FaultReason, RemoteProtocolError
from holdfast.messages import Ack, Batch, CopyFailed, Message, Op, OpKind, Payload, Refused
from holdfast.sockets import Counters
from holdfast.units import Epoch, Sequence
from holdfast_transport_nvmeof.commands import AD, DEAC, DSM_RANGE, PSDT_SGL, IoOpcode, SglType
from holdfast_transport_nvmeof.frames import ACK_BYTES, ack_frame, frames_of, message_of
from holdfast_transport_nvmeof.namespace import NSID
from holdfast_transport_nvmeof.pdu import (
    CRC_PIECE_BYTES,
    DATA,
    DIGEST,
    RESPONSE,
    FatalErrorStatus,
    Framing,
    Pdu,
    PduError,
    PduFlag,
    PduType,
    crc32c,
)
from holdfast_transport_nvmeof.replication import (
    BLOCKS_SHIFT,
    CAPSULE_BYTES_MAX,
    KINDS,
    MARKS_MASK,
    RECEIVE_CID,
    SQE,
    STREAM_COMMANDS_MAX,
    Mark,
    ReplicationOpcode,
)
from holdfast_transport_nvmeof.status import Status, field_of, name_of_status
from holdfast_transport_nvmeof.stream import QID, Stream, is_intact, responses

_WRITE, _SEND = int(IoOpcode.WRITE), int(ReplicationOpcode.SEND)
_IN_CAPSULE, _TRANSPORT = int(SglType.DATA_BLOCK_OFFSET), int(SglType.TRANSPORT_DATA_BLOCK)
_FIRST, _SYNC = int(Mark.FIRST), int(Mark.SYNC)
_OP_WRITE, _OP_SYNC_WRITE = int(OpKind.WRITE), int(OpKind.SYNC_WRITE)
_CAPSULE: Final = struct.Struct("<BBBBI" + SQE.format[1:])
_KIND: Final = int(PduType.CAPSULE_CMD)
_HLEN: Final = _CAPSULE.size
_C2H: Final = struct.Struct("<BBBBIHHII4x")
_digest = DIGEST.unpack_from
HELD_MAX: Final = 256
"""Completions that wait for company; a wake-up of the peer for each cost a third of a write's time."""
_VOLUME_END_MAX: Final = 1 << 63
_LBA_MAX: Final = (_VOLUME_END_MAX - CAPSULE_BYTES_MAX) >> 9
_new = tuple.__new__

_STATUS_OF_FAULT: Final = {
    FaultReason.NO_SPACE.value: Status.CAPACITY_EXCEEDED,
    FaultReason.FENCED.value: Status.RESERVATION_CONFLICT,
    FaultReason.CORRUPT.value: Status.UNRECOVERED_READ_ERROR,
}
"""Of a copy that cannot go on; WRITE_FAULT for other reasons."""


class CommandError(RemoteProtocolError):
    """A command of the peer's is wrong; it is completed with this status, and the link ends."""

    def __init__(self, status: Status, cid: int, why: str) -> None:
        """Keep status and command."""
        super().__init__(f"Command {cid} is answered {name_of_status(status)}: {why}.")
        self.status = status
        self.cid = cid


class TargetStream(Stream):
    """The controller's end of a replication queue."""

    def __init__(self, framing: Framing, counters: Counters) -> None:
        """Begin; Connect was answered."""
        framing.limits = {PduType.CAPSULE_CMD: CAPSULE_BYTES_MAX, PduType.H2C_TERM_REQ: 128}
        super().__init__(framing, counters, PduType.C2H_TERM_REQ)
        self._response = responses(has_digest=framing.header_digest)
        header_digest, data_digest = framing.header_digest, framing.data_digest
        self._digest_flags = int(PduFlag.HDGSTF * header_digest | PduFlag.DDGSTF * data_digest)
        self._tail = 4 * data_digest
        self._pdo_in = _CAPSULE.size + 4 * header_digest
        """Of a capsule with data, from a peer that aligns to dwords as we ask for."""
        pdo = 24 + 4 * header_digest
        self._pdo_out = -(-pdo // framing.alignment_out) * framing.alignment_out
        self._gap_out = bytes(self._pdo_out - pdo)
        self._busy = bytearray(0x1_0000)
        """By command identifier: whether it is outstanding."""
        self._writes: deque[tuple[int, int]] = deque()
        """(sequence, command identifier) of operations that are completed when applied."""
        self._flushes: deque[tuple[int, int]] = deque()
        """The same of those that are completed when durable."""
        self._receives: deque[tuple[int, int]] = deque()
        """(command identifier, length) of RECEIVEs."""
        self._held: list[bytes] = []
        """Completions of what needs no other answer: they go with the next output."""
        self._filled = 0
        """Bytes sent in the data of the first of them."""
        self._batch: tuple[int, int, int] | None = None
        """Epoch, sequence of the next operation and commit of the batch that goes on."""
        self._first = 0
        self._ops: list[Op] = []
        """Of that batch, not delivered yet; `_first` is the sequence of the first."""

    # --- reading ---------------------------------------------------------------------------

    def _on_run(self, view: memoryview, start: int, end: int, into: list[Any]) -> tuple[int, int]:
        """Take writes, which are most of what comes, without a detour."""
        framing, busy, unpack = self._framing, self._busy, _CAPSULE.unpack_from
        is_checked = framing.header_digest, framing.data_digest
        wanted, tail, count = self._pdo_in, self._tail, 0
        while end - start >= wanted:
            (
                kind, flags, _, pdo, plen, opcode, sqe_flags, cid, nsid, epoch, sequence,
                address, length, sgl, slba, low, high, commit,
            ) = unpack(view, start)  # fmt: skip
            if (
                kind != _KIND
                or opcode != _WRITE
                or flags != self._digest_flags
                or pdo != wanted
                or plen != pdo + length + tail
                or end - start < plen
                or sqe_flags != PSDT_SGL
                or nsid != NSID
                or address
                or sgl != _IN_CAPSULE
                or cid >= STREAM_COMMANDS_MAX
                or busy[cid]
                or slba > _LBA_MAX
                or ((low & 0xFFFF) + 1) << 9 != length
                or view[start + 2] != _HLEN
            ):
                break
            at = start + pdo
            if is_checked[0] and not is_intact(view, start, start + _HLEN):
                break
            data: Payload = view[at : at + length]
            if is_checked[1]:
                if length <= CRC_PIECE_BYTES:
                    # The library needs a copy; handed on, it spares the receive buffer.
                    data = bytes(data)
                if crc32c(data) != _digest(view, at + length)[0]:
                    break
            if high & _FIRST:
                self._end_batch(into)
                self._first = sequence
            elif self._batch != (epoch, sequence, commit):
                break
            busy[cid] = 1
            self._batch = (epoch, sequence + 1, commit)
            op = (_OP_SYNC_WRITE if high & _SYNC else _OP_WRITE, slba << 9, length, data)
            self._ops.append(_new(Op, op))
            self._writes.append((sequence, cid))
            start += plen
            count += 1
        return start, count

    def _on_pdu(self, view: memoryview, pdu: Pdu, into: list[Any]) -> None:
        if pdu[0] != _KIND:
            raise self._terminated(view, pdu)
        opcode, flags, cid, nsid, epoch, sequence, address, length, sgl, slba, low, high, commit = (
            SQE.unpack_from(view, pdu[2] + 8)
        )
        start, stop = pdu[3], pdu[4]
        try:
            self._check(cid, flags, nsid, pdu)
            if start != stop and (sgl != _IN_CAPSULE or address or length != stop - start):
                _wrong(Status.DATA_SGL_LENGTH_INVALID, cid, f"{stop - start} bytes came")
            if opcode == _WRITE and cid < STREAM_COMMANDS_MAX:
                if length != stop - start or (low & 0xFFFF) + 1 != length >> 9 or length & 511:
                    _wrong(Status.INVALID_FIELD_IN_COMMAND, cid, "NLB and data differ")
                kind = _OP_SYNC_WRITE if high & _SYNC else _OP_WRITE
                op = _new(Op, (kind, slba << 9, length, view[start:stop]))
                self._take(op, cid, (epoch, sequence, commit), high & MARKS_MASK, into)
            elif opcode == _SEND and STREAM_COMMANDS_MAX <= cid < RECEIVE_CID:
                self._end_batch(into)
                into.append(message_of(view[start:stop]))
                self._hold(cid)
            elif opcode == ReplicationOpcode.RECEIVE and cid >= RECEIVE_CID:
                self._take_receive(cid, sgl, length)
            else:
                command = (opcode, slba, low, high)
                self._take_other(command, view[start:stop], cid, (epoch, sequence, commit), into)
        except CommandError as error:
            self._complete(error.cid, error.status)
            raise
        except PduError:
            raise  # It terminates the connection; no command is answered any more.
        except RemoteProtocolError:
            self._complete(cid, Status.INVALID_FIELD_IN_COMMAND)
            raise

    def _check(self, cid: int, flags: int, nsid: int, pdu: Pdu) -> None:
        if self._busy[cid]:
            raise PduError(
                f"Command identifier {cid} is in use.", FatalErrorStatus.PDU_SEQUENCE_ERROR
            )
        self._busy[cid] = 1
        if flags != PSDT_SGL:
            _wrong(Status.INVALID_FIELD_IN_COMMAND, cid, f"its flags are 0x{flags:x}")
        if nsid != NSID:
            _wrong(Status.INVALID_NAMESPACE_OR_FORMAT, cid, f"namespace {nsid}")
        if not pdu[6]:
            _wrong(Status.TRANSIENT_TRANSPORT_ERROR, cid, "its data digest is wrong")

    def _take(
        self, op: Op, cid: int, place: tuple[int, int, int], marks: int, into: list[Any]
    ) -> None:
        """Add an operation to its batch."""
        epoch, sequence, commit = place
        if op[1] + op[2] > _VOLUME_END_MAX:
            _wrong(Status.LBA_OUT_OF_RANGE, cid, f"its offset is {op[1]}")
        if marks & _FIRST:
            self._end_batch(into)
            self._first = sequence
        elif place != self._batch:
            _wrong(Status.INVALID_FIELD_IN_COMMAND, cid, f"it is out of place at {place}")
        self._batch = (epoch, sequence + 1, commit)
        self._ops.append(op)
        (self._flushes if op[0] == OpKind.FLUSH else self._writes).append((sequence, cid))

    def _take_other(
        self,
        command: tuple[int, int, int, int],
        data: memoryview,
        cid: int,
        place: tuple[int, int, int],
        into: list[Any],
    ) -> None:
        """Take a command of the stream that is no write."""
        opcode, slba, low, high = command
        marks = high & MARKS_MASK
        if cid >= STREAM_COMMANDS_MAX:
            _wrong(Status.INVALID_COMMAND_OPCODE, cid, f"opcode 0x{opcode:02x}")
        if opcode == ReplicationOpcode.COMMIT and marks == _FIRST:
            self._end_batch(into)
            into.append(Batch(Epoch(place[0]), Sequence(place[1]), Sequence(place[2]), ()))
            self._hold(cid)
            return
        kind = KINDS.get((opcode, marks & ~_FIRST))
        if kind is None:
            _wrong(Status.INVALID_COMMAND_OPCODE, cid, f"opcode 0x{opcode:02x}")
        extent = None
        if opcode == IoOpcode.DATASET_MANAGEMENT:
            extent = _extent(slba, data)
        elif opcode == IoOpcode.WRITE_ZEROES and not low & ~(DEAC | 0xFFFF):
            extent = slba << 9, ((high >> BLOCKS_SHIFT << 16 | low & 0xFFFF) + 1) << 9
        elif opcode == IoOpcode.FLUSH and not slba and not low:
            extent = 0, 0
        if extent is None:
            _wrong(Status.INVALID_FIELD_IN_COMMAND, cid, "its extent is none")
        self._take(_new(Op, (kind, *extent, b"")), cid, place, marks, into)

    def _take_receive(self, cid: int, sgl: int, length: int) -> None:
        if sgl != _TRANSPORT or length < CAPSULE_BYTES_MAX:
            _wrong(Status.DATA_SGL_LENGTH_INVALID, cid, f"room for {length} bytes")
        self._receives.append((cid, length))

    def _end_batch(self, into: list[Any]) -> None:
        """Deliver what has come of a batch."""
        if self._ops and self._batch is not None:
            ops, self._ops = self._ops, []
            epoch, following, commit = self._batch
            into.append(Batch(Epoch(epoch), Sequence(self._first), Sequence(commit), ops))
            self._first = following

    def _settle(self, into: list[Any]) -> None:
        self._end_batch(into)

    # --- writing ---------------------------------------------------------------------------

    def take_output(self) -> list[Payload]:
        """Return what is to be sent, and forget it."""
        output, held = super().take_output(), self._held
        if held and (output or len(held) >= HELD_MAX):
            self._held = []
            output.append(b"".join(held))
        return output

    def _hold(self, cid: int) -> None:
        """Complete a command, without waking the peer up for that alone."""
        self._busy[cid] = 0
        response = self._response(cid)
        self._held.append(response)
        self._counters.sent(1, len(response))

    def _put(self, message: Message) -> None:
        if type(message) is Ack:
            self._complete_up_to(message.applied, message.durable)
            self._put_frame([ack_frame(message)], ACK_BYTES)
            return
        if type(message) is Refused:
            self._fail_all(Status.RESERVATION_CONFLICT)
        elif type(message) is CopyFailed:
            self._fail_all(_STATUS_OF_FAULT.get(message.reason, Status.WRITE_FAULT))
        for parts, size in frames_of(message):
            self._put_frame(parts, size)

    def _put_frame(self, parts: list[Payload], size: int) -> None:
        """Send a frame in the data of a RECEIVE."""
        if size > CAPSULE_BYTES_MAX:
            raise ValueError(f"a frame of {size} bytes passes the limit of {CAPSULE_BYTES_MAX}")
        receives = self._receives
        if receives and self._filled + size > receives[0][1]:
            self._complete(receives.popleft()[0])
            self._filled = 0
        if not receives:
            raise ValueError("the peer has asked for no more than 4 GiB of answers")
        cid, offset = receives[0][0], self._filled
        self._filled += size
        if len(parts) > 1:
            self._pdu(PduType.C2H_DATA, 0, DATA.pack(cid, 0, offset, size), parts)
            return
        # Acknowledgements, and whatever else has no data: one piece, one buffer.
        piece, pdo = bytes(parts[0]), self._pdo_out
        output = _C2H.pack(
            *(7, self._digest_flags, 24, pdo, pdo + size + self._tail, cid, 0, offset, size)
        )
        if self._framing.header_digest:
            output += DIGEST.pack(google_crc32c.value(output))
        output += self._gap_out + piece
        if self._tail:
            output += DIGEST.pack(google_crc32c.value(piece))
        self._output.append(output)
        self._counters.sent(1, len(output))

    def _complete_up_to(self, applied: int, durable: int) -> None:
        """Complete the operations that an acknowledgement covers."""
        cids = []
        for queue, reached in ((self._writes, applied), (self._flushes, durable)):
            while queue and queue[0][0] <= reached:
                cids.append(queue.popleft()[1])
        if not cids:
            return
        busy, response = self._busy, self._response
        for cid in cids:
            busy[cid] = 0
        output = b"".join([response(cid) for cid in cids])
        self._output.append(output)
        self._counters.sent(len(cids), len(output))

    def _fail_all(self, status: Status) -> None:
        for queue in (self._writes, self._flushes):
            while queue:
                self._complete(queue.popleft()[1], status)

    def _complete(self, cid: int, status: Status = Status.SUCCESSFUL_COMPLETION) -> None:
        self._busy[cid] = 0
        if status:
            fields = RESPONSE.pack(0, 0, 0, QID, cid, field_of(status) << 1)
            self._pdu(PduType.CAPSULE_RESP, 0, fields, [])
        else:
            output = self._response(cid)
            self._output.append(output)
            self._counters.sent(1, len(output))


def _wrong(status: Status, cid: int, why: str) -> NoReturn:
    raise CommandError(status, cid, why)


def _extent(cdws: int, data: memoryview) -> tuple[int, int] | None:
    """Return offset and length of a discard in bytes, or None when its ranges are not one."""
    count, attributes = (cdws & 0xFF) + 1, cdws >> 32
    if attributes != AD or len(data) != count * DSM_RANGE.size:
        return None
    start = end = -1
    for _, blocks, lba in DSM_RANGE.iter_unpack(data):
        if not blocks or (start >= 0 and lba != end):
            return None
        start, end = lba if start < 0 else start, lba + blocks
    return start << 9, (end - start) << 9
