"""The end of a link that was connected to: NVMe commands become a replica's messages.

Sans-IO. An operation's command is completed when its acknowledgement is sent: a Write when the copy has
applied it, a Flush when it is durable; so completions say to any reader of the wire what the protocol
means. A copy that gives up or is told a stale epoch fails what is outstanding by the status for that.
Nothing here judges an epoch: that is the copy's part (R3), which sees each command's.
"""

from __future__ import annotations

import functools
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
from holdfast_transport_nvmeof.stream import QID, RESIDUE, SUCCESSES, Stream, joined

_WRITE, _SEND = int(IoOpcode.WRITE), int(ReplicationOpcode.SEND)
_IN_CAPSULE, _TRANSPORT = int(SglType.DATA_BLOCK_OFFSET), int(SglType.TRANSPORT_DATA_BLOCK)
_FIRST, _SYNC = int(Mark.FIRST), int(Mark.SYNC)
_OP_WRITE, _OP_SYNC_WRITE = int(OpKind.WRITE), int(OpKind.SYNC_WRITE)
_KIND: Final = int(PduType.CAPSULE_CMD)
_HLEN: Final = 8 + SQE.size
_C2H: Final = struct.Struct("<BBBBIHHII4x")
_quad: Final = struct.Struct("<Q").unpack_from
_quads: Final = struct.Struct("<9Q").unpack_from
"""A capsule's header by eights of bytes: the common one; opcode, flags, CID, NSID; epoch; sequence;
address; length and type of the SGL; SLBA; CDW12 and 13; commit."""
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
        self._successes = SUCCESSES[framing.header_digest]
        header_digest, data_digest = framing.header_digest, framing.data_digest
        self._digest_flags = int(PduFlag.HDGSTF * header_digest | PduFlag.DDGSTF * data_digest)
        self._tail = 4 * data_digest
        self._pdo_in = _HLEN + 4 * header_digest
        """Of a capsule with data, from a peer that aligns to dwords as we ask for."""
        self._plain = _KIND | self._digest_flags << 8 | _HLEN << 16 | self._pdo_in << 24
        """How such a capsule begins."""
        pdo = 24 + 4 * header_digest
        self._pdo_out = -(-pdo // framing.alignment_out) * framing.alignment_out
        self._gap_out = bytes(self._pdo_out - pdo)
        self._busy = bytearray(0x1_0000)
        """By command identifier: whether it is outstanding."""
        self._writes: deque[list[int]] = deque()
        """[sequence, command identifier, count] of operations that are completed when applied:
        both numbers rise by one within a run."""
        self._flushes: deque[list[int]] = deque()
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
        count, least = 0, self._pdo_in + self._tail
        while end - start > least:
            size = _quad(view, start)[0] >> 32
            fit = (end - start) // size if size > least else 0
            taken = self._take_writes(view[start : start + fit * size], size, into) if fit else 0
            if not taken:
                break
            start += taken * size
            count += taken
        return start, count

    def _take_writes(self, view: memoryview, size: int, into: list[Any]) -> int:
        """Take capsules of `size` bytes, which fill `view`, up to the first that is no plain write.

        Returns how many it took; the one behind them is looked at closely.
        """
        pdo, busy, crc = self._pdo_in, self._busy, google_crc32c.value
        length = size - pdo - self._tail
        if length & 511 or length > CRC_PIECE_BYTES:
            return 0  # Of a large one, the detour is the least.
        has_header_digest, has_data_digest = self._framing.header_digest, bool(self._tail)
        capsules, wanted = _layout(self._plain, length, self._tail)
        epoch, following, commit = self._batch or (0, -1, 0)
        taken, runs = 0, self._writes
        run = runs[-1] if runs else [0, -1, 0]
        for head, copy, digest in capsules.iter_unpack(view):
            common, command, of_epoch, sequence, address, sgl, slba, how, of_commit = _quads(head)
            cid, marks = command >> 16 & 0xFFFF, how >> 32
            if (
                (common, command & ~0xFFFF_0000, address, sgl, how & 0xFFFF_FFFF) != wanted
                or cid >= STREAM_COMMANDS_MAX
                or busy[cid]
                or slba > _LBA_MAX
                or (has_header_digest and crc(head) != RESIDUE)
                or (has_data_digest and crc(copy) != digest)
            ):
                break
            if marks & _FIRST:
                if taken:
                    self._batch = epoch, following, commit
                self._end_batch(into)
                self._first, epoch, commit = sequence, of_epoch, of_commit
            elif (sequence, of_epoch, of_commit) != (following, epoch, commit):
                break
            busy[cid] = 1
            if sequence - run[0] != run[2] or cid - run[1] != run[2]:
                run = [sequence, cid, 0]
                runs.append(run)
            run[2] += 1
            at = taken * size + pdo
            data = copy if has_data_digest else view[at : at + length]
            kind = _OP_SYNC_WRITE if marks & _SYNC else _OP_WRITE
            self._ops.append(_new(Op, (kind, slba << 9, length, data)))
            following = sequence + 1
            taken += 1
        if taken:
            self._batch = epoch, following, commit
        return taken

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
        (self._flushes if op[0] == OpKind.FLUSH else self._writes).append([sequence, cid, 1])

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
            output += held
        return joined(output, sum(map(len, output))) if len(output) > 1 else output

    def _hold(self, cid: int) -> None:
        """Complete a command, without waking the peer up for that alone."""
        self._busy[cid] = 0
        response = self._successes.of(cid)
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
        output, count, busy = b"", 0, self._busy
        for runs, reached in ((self._writes, applied), (self._flushes, durable)):
            while runs and runs[0][0] <= reached:
                sequence, cid, length = run = runs[0]
                done = min(length, reached + 1 - sequence)
                busy[cid : cid + done] = bytes(done)
                output += self._successes.of(cid, done)
                count += done
                if done == length:
                    runs.popleft()
                else:
                    run[:] = sequence + done, cid + done, length - done
        if count:
            self._output.append(output)
            self._counters.sent(count, len(output))

    def _fail_all(self, status: Status) -> None:
        for runs in (self._writes, self._flushes):
            while runs:
                _, begin, count = runs.popleft()
                for cid in range(begin, begin + count):
                    self._complete(cid, status)

    def _complete(self, cid: int, status: Status = Status.SUCCESSFUL_COMPLETION) -> None:
        self._busy[cid] = 0
        if status:
            fields = RESPONSE.pack(0, 0, 0, QID, cid, field_of(status) << 1)
            self._pdu(PduType.CAPSULE_RESP, 0, fields, [])
        else:
            output = self._successes.of(cid)
            self._output.append(output)
            self._counters.sent(1, len(output))


@functools.lru_cache(maxsize=CRC_PIECE_BYTES // 512)
def _layout(plain: int, length: int, tail: int) -> tuple[struct.Struct, tuple[int, ...]]:
    """Return how capsules of plain writes of `length` bytes look.

    First: header, with what stands there up to the data, data, and digest. Data is copied where there is
    a digest, for whose sake it must be; that spares the receive buffer. Second: what of the header is the
    same in all of them.
    """
    pdo = plain >> 24
    form = f"<{pdo}s{length}sI" if tail else f"<{pdo}s{length}x0s0s"
    common = plain | pdo + length + tail << 32
    command = _WRITE | PSDT_SGL << 8 | NSID << 32
    return struct.Struct(form), (common, command, 0, length | _IN_CAPSULE << 56, (length >> 9) - 1)


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
