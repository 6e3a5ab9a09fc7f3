"""I/O commands of one queue as a machine: commands become requests of a volume, answers completions.

Reads and writes as kernels send them are recognized at once; whatever else, and whatever is wrong, is
looked at in steps. Limits: what a queue holds in memory is bounded by letting commands wait, never by
waiting itself, because the data that was asked for comes on the same connection.

Source: NVM Command Set Specification 1.0, section 3.2; TCP Transport Specification 1.0, section 3.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import attrs

from holdfast.messages import Payload, Reply, Request, RequestFlag, RequestKind
from holdfast.units import REQUEST_BYTES_MAX, SECTOR_BYTES
from holdfast_transport_nvmeof.commands import (
    AD,
    DEAC,
    DSM_RANGE,
    FUA,
    PSDT_SGL,
    Command,
    IoOpcode,
    SglType,
)
from holdfast_transport_nvmeof.controller import Controller
from holdfast_transport_nvmeof.identify import TRANSFER_BYTES_MAX
from holdfast_transport_nvmeof.judging import CHANGING, judge, judge_transfer
from holdfast_transport_nvmeof.namespace import NSID, Namespace
from holdfast_transport_nvmeof.pdu import (
    COMMON,
    DATA,
    FatalErrorStatus,
    Offset,
    Pdu,
    PduError,
    PduFlag,
)
from holdfast_transport_nvmeof.status import Status, status_of_errno
from holdfast_transport_nvmeof.wire import Wire

_ID_SHIFT = 32
"""A request id: queue number, part of a command (16 bits), CID (16 bits)."""
_PART_SHIFT = 16
_PARTS_AT_ONCE = 8
_READ, _WRITE = int(IoOpcode.READ), int(IoOpcode.WRITE)
_KIND_READ, _KIND_WRITE = int(RequestKind.READ), int(RequestKind.WRITE)
_SGL_TRANSPORT, _SGL_CAPSULE = int(SglType.TRANSPORT_DATA_BLOCK), int(SglType.DATA_BLOCK_OFFSET)
_new = tuple.__new__


@attrs.frozen
class QueueLimits:
    """What one queue may take."""

    in_capsule_bytes: int
    h2c_bytes_max: int
    """MAXH2CDATA: data of one H2CData PDU."""
    inflight_bytes_max: int
    """Reads and announced writes of more bytes than this wait, but one always goes."""


@attrs.define
class _Transfer:
    """A command whose data was asked for by R2T."""

    command: Command
    length: int
    received: int = 0
    buffer: bytearray | None = None
    """None while nothing came: data that comes in one PDU is not copied."""


@attrs.define
class _Parts:
    """One Dataset Management command that becomes many requests, a few at a time."""

    left: Iterator[tuple[int, int]]
    """(offset, length) in bytes."""
    sent: int = 0
    open: int = 0
    error: int = 0


_Entry = tuple[int, int, "bytes | _Parts | tuple[Command, Payload] | None"]
"""Of an unanswered command: opcode, bytes that count as in flight, and what its answer needs."""


@attrs.define(eq=False)
class IoCommands:
    """The I/O commands of one queue, from capsule to completion."""

    number: int
    """Of this queue among those of one session; part of every request id."""
    limits: QueueLimits
    wire: Wire
    controller: Controller
    namespace: Namespace
    requests: list[Request] = attrs.field(factory=list)
    """What commands and answers made; the caller takes the list away."""
    read_bytes: int = 0
    """Counters, since the beginning."""
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0
    _base: int = attrs.field(init=False)
    _pending: dict[int, _Entry] = attrs.field(factory=dict)
    """By request id without a part: every command that was taken and not answered."""
    _inflight_bytes: int = 0
    _deferred: deque[Command] = attrs.field(factory=deque)
    """Commands that wait for `_inflight_bytes` to fall."""
    _transfers: dict[int, _Transfer] = attrs.field(factory=dict)
    """By transfer tag, which is the CID: a command has one R2T at most."""

    def __attrs_post_init__(self) -> None:
        """Begin the ids of this queue."""
        self._base = self.number << _ID_SHIFT

    @staticmethod
    def number_of(request_id: int) -> int:
        """Return the number of the queue that a request id belongs to."""
        return request_id >> _ID_SHIFT

    @property
    def is_idle(self) -> bool:
        """Whether every command was answered."""
        return not self._pending

    def take(self, command: Command, view: memoryview, pdu: Pdu) -> None:
        """Take one command; a plain read or write all at once.

        Raises:
            PduError: The host has more commands outstanding than its queue has entries.
        """
        opcode, flags, cid, nsid, _, _, address, length, sgl, low, high, cdw12 = command[:12]
        number = self._base | cid
        pending = self._pending
        if number in pending:
            self.wire.complete(cid, Status.COMMAND_ID_CONFLICT)
            return
        if len(pending) >= self.wire.entries:
            raise PduError(
                f"More than {self.wire.entries} commands are outstanding.",
                FatalErrorStatus.PDU_SEQUENCE_ERROR,
            )
        space = self.namespace
        if flags == PSDT_SGL and nsid == NSID and pdu[6] and space.is_plain:
            lba, blocks = low | high << 32, (cdw12 & 0xFFFF) + 1
            offset = lba * SECTOR_BYTES
            if length == blocks * SECTOR_BYTES and offset + length <= space.size_bytes:
                if opcode == _READ and sgl == _SGL_TRANSPORT and length <= TRANSFER_BYTES_MAX:
                    if not cdw12 & FUA and self._inflight_bytes < self.limits.inflight_bytes_max:
                        self._inflight_bytes += length
                        pending[number] = (_READ, length, None)
                        read = (number, _KIND_READ, 0, offset, length, b"")
                        self.requests.append(_new(Request, read))
                        return
                elif opcode == _WRITE and sgl == _SGL_CAPSULE and not address:
                    start, stop = pdu[3], pdu[4]
                    if length == stop - start and space.is_writable:
                        self._inflight_bytes += length
                        pending[number] = (_WRITE, length, None)
                        fua = 1 if cdw12 & FUA else 0
                        write = (number, _KIND_WRITE, fua, offset, length, view[start:stop])
                        self.requests.append(_new(Request, write))
                        return
        if pdu.is_data_intact:
            self._take_in_steps(command, view[pdu.data_start : pdu.data_end])
        else:
            self._end(command, Status.TRANSIENT_TRANSPORT_ERROR)

    def _take_in_steps(self, command: Command, capsule: memoryview) -> None:
        status, length = judge(command, self.namespace, self.controller)
        if status:
            self._end(command, status)
            return
        self._pending[self._base | command.cid] = (command.opcode, 0, None)
        if not length or command.opcode == _READ:
            self._run_or_defer(command)
        elif command.sgl_type == _SGL_CAPSULE:
            start = command.sgl_address
            if start + length > len(capsule):
                self._end(command, Status.SGL_OFFSET_INVALID)
            else:
                self._run(command, capsule[start : start + length])
        else:
            self._run_or_defer(command)

    def _run_or_defer(self, command: Command) -> None:
        """Begin a command that will hold memory here, or let it wait until there is room."""
        if self._deferred or self._inflight_bytes >= self.limits.inflight_bytes_max:
            self._deferred.append(command)
        else:
            self._begin(command)

    def _begin(self, command: Command) -> None:
        length = judge_transfer(command, self.namespace)[1]
        if length and command.opcode != _READ:
            self._inflight_bytes += length
            self._transfers[command.cid] = _Transfer(command, length)
            self.wire.ask_for_data(command.cid, length)
        else:
            self._run(command, b"")

    def abort(self, cid: int) -> bool:
        """Take back a command that waits for room; what was passed on cannot be stopped any more."""
        for command in self._deferred:
            if command.cid == cid:
                self._deferred.remove(command)
                self._end(command, Status.COMMAND_ABORT_REQUESTED)
                return True
        return False

    def _begin_deferred(self) -> None:
        while self._deferred and self._inflight_bytes < self.limits.inflight_bytes_max:
            self._begin(self._deferred.popleft())

    def take_data(self, view: memoryview, pdu: Pdu) -> None:
        """Take a piece of the data that an R2T has asked for."""
        cid, tag, offset, length = DATA.unpack_from(view, pdu.start + COMMON.size)
        transfer = self._transfers.get(tag)
        bad = FatalErrorStatus.INVALID_PDU_HEADER_FIELD
        if transfer is None:
            raise PduError(f"H2CData came with TTAG {tag}.", bad, Offset.TTAG)
        if cid != transfer.command.cid:
            raise PduError(f"H2CData came with CCCID {cid}.", bad, Offset.CCCID)
        if length != pdu.data_end - pdu.data_start:
            raise PduError(f"H2CData came with DATAL {length}.", bad, Offset.DATAL)
        stop = offset + length
        if offset != transfer.received or stop > transfer.length:
            raise PduError(
                f"H2CData came with DATAO {offset}.",
                FatalErrorStatus.DATA_TRANSFER_OUT_OF_RANGE,
                Offset.DATAO,
            )
        if bool(pdu.flags & PduFlag.LAST_PDU) != (stop == transfer.length):
            raise PduError("H2CData has LAST_PDU where it is not last.", bad, Offset.FLAGS)
        data: Payload = view[pdu.data_start : pdu.data_end]
        if not pdu.is_data_intact:
            # The command fails when its data is through; until then the rest still comes.
            transfer.command = transfer.command._replace(opcode=-1)
        transfer.received = stop
        if length < transfer.length:
            if transfer.buffer is None:
                transfer.buffer = bytearray(transfer.length)
            transfer.buffer[offset:stop] = data
            data = transfer.buffer
        if stop == transfer.length:
            del self._transfers[tag]
            self._inflight_bytes -= transfer.length
            self._run(transfer.command, data)
            self._begin_deferred()

    def _run(self, command: Command, data: Payload) -> None:
        """Make requests of a command whose data is here."""
        number = self._base | command.cid
        offset = (command.cdw10 | command.cdw11 << 32) * SECTOR_BYTES
        length = ((command.cdw12 & 0xFFFF) + 1) * SECTOR_BYTES
        fua = RequestFlag.FUA if command.cdw12 & FUA else RequestFlag.NONE
        opcode = command.opcode
        if opcode == -1:
            self._end(command, Status.TRANSIENT_TRANSPORT_ERROR)
        elif fua and opcode in {IoOpcode.READ, IoOpcode.COMPARE}:
            # What is returned must be on stable storage: flushed first, everywhere.
            plain = command._replace(cdw12=command.cdw12 & ~FUA)
            self._ask(number, command, 0, (RequestKind.FLUSH, 0, 0, 0), extra=(plain, data))
        elif opcode == IoOpcode.READ:
            self._ask(number, command, length, (RequestKind.READ, 0, offset, length))
        elif opcode == IoOpcode.WRITE:
            request = (RequestKind.WRITE, int(fua), offset, length)
            self._ask(number, command, length, request, data)
        elif opcode == IoOpcode.FLUSH:
            self._ask(number, command, 0, (RequestKind.FLUSH, 0, 0, 0))
        elif opcode == IoOpcode.WRITE_ZEROES:
            keeps = RequestFlag.NONE if command.cdw12 & DEAC else RequestFlag.NO_HOLE
            self._ask(number, command, 0, (RequestKind.ZERO, int(fua | keeps), offset, length))
        elif opcode == IoOpcode.COMPARE:
            request = (RequestKind.READ, 0, offset, length)
            self._ask(number, command, length, request, extra=bytes(data))
        elif opcode == IoOpcode.DATASET_MANAGEMENT:
            self._run_ranges(number, command, bytes(data))
        else:
            self._run_reservation(command, bytes(data))

    def _ask(
        self,
        number: int,
        command: Command,
        inflight: int,
        request: tuple[int, int, int, int],
        data: Payload = b"",
        *,
        extra: bytes | tuple[Command, Payload] | None = None,
    ) -> None:
        self._pending[number] = (command.opcode, inflight, extra)
        self._inflight_bytes += inflight
        self.requests.append(Request(number, *request, data))

    def _run_ranges(self, number: int, command: Command, data: bytes) -> None:
        """Dataset Management: deallocation is carried out, hints of use are taken note of."""
        data = data[: ((command.cdw10 & 0xFF) + 1) * DSM_RANGE.size]
        ranges = [(lba, count) for _, count, lba in DSM_RANGE.iter_unpack(data)]
        if any(lba + count > self.namespace.blocks for lba, count in ranges):
            self._end(command, Status.LBA_OUT_OF_RANGE)
        elif not command.cdw11 & AD or not any(count for _, count in ranges):
            self._end(command)
        else:
            parts = _Parts(_pieces(ranges))
            self._pending[number] = (command.opcode, 0, parts)
            self._ask_parts(number, parts)

    def _ask_parts(self, number: int, parts: _Parts) -> None:
        while parts.open < _PARTS_AT_ONCE and not parts.error:
            piece = next(parts.left, None)
            if piece is None:
                return
            # Parts are numbered from 1 and around; few are open at a time.
            parts.sent = parts.sent % 0xFFFF + 1
            parts.open += 1
            part_id = number | parts.sent << _PART_SHIFT
            self.requests.append(Request(part_id, RequestKind.DISCARD, 0, *piece))

    def _run_reservation(self, command: Command, data: bytes) -> None:
        space = self.namespace
        controller = self.controller
        assert space.reservations is not None
        completion = space.reservations.execute(
            command, data, controller.host_id, controller.facts.cntlid
        )
        if completion.status or not completion.data:
            self._end(command, completion.status)
        elif command.sgl_length < len(completion.data):
            self._end(command, Status.DATA_SGL_LENGTH_INVALID)
        else:
            self._pending.pop(self._base | command.cid, None)
            self.wire.send_data(command.cid, completion.data)

    # --- answers ---------------------------------------------------------------------------

    def answer(self, replies: Sequence[Reply], status: int | None = None) -> None:
        """Append the PDUs that answer `replies` to `output`; ids of nobody are passed over.

        Args:
            replies: Of the volume's session.
            status: What those with an errno are answered with, if not by their errno.
        """
        pop = self._pending.pop
        for number, error, data in replies:
            entry = pop(number, None)
            if entry is None:
                self._answer_part(number, error, status)
                continue
            opcode, inflight, extra = entry
            self._inflight_bytes -= inflight
            cid = number & 0xFFFF
            if error:
                self._fail_io(cid, opcode, error, status)
            elif type(extra) is tuple:
                self._run(*extra)
            elif opcode == _READ:
                assert len(data) == inflight, "a read is answered with what it asked for"
                self.read_bytes += inflight
                self.reads += 1
                self.wire.send_data(cid, data)
            else:
                if opcode == _WRITE:
                    self.written_bytes += inflight
                    self.writes += 1
                elif extra is not None and bytes(data) != extra:
                    self._fail_io(cid, opcode, 0, Status.COMPARE_FAILURE)
                    continue
                self.wire.succeed(cid)
        if self._deferred:
            self._begin_deferred()

    def _answer_part(self, part_id: int, error: int, status: int | None) -> None:
        cid = part_id & 0xFFFF
        number = self._base | cid
        entry = self._pending.get(number)
        if entry is None or not isinstance(entry[2], _Parts):
            return
        parts = entry[2]
        parts.open -= 1
        parts.error = parts.error or error
        self._ask_parts(number, parts)
        if not parts.open:
            del self._pending[number]
            if parts.error:
                self._fail_io(cid, entry[0], parts.error, status)
            else:
                self.wire.succeed(cid)

    def _fail_io(self, cid: int, opcode: int, error: int, status: int | None) -> None:
        if status is None:
            status = status_of_errno(error, writes=opcode in CHANGING)
        self.controller.note_error(self.wire.qid, cid, status)
        self.wire.complete(cid, status)

    def _end(self, command: Command, status: int = 0) -> None:
        """Answer a command that asks nothing of the volume; the error log hears of failures."""
        self._pending.pop(self._base | command.cid, None)
        if status:
            lba = command.cdw10 | command.cdw11 << 32
            self.controller.note_error(self.wire.qid, command.cid, status, lba=lba)
        self.wire.complete(command.cid, status)


def _pieces(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield ranges of blocks as ranges of bytes that a session takes."""
    for lba, count in ranges:
        offset, end = lba * SECTOR_BYTES, (lba + count) * SECTOR_BYTES
        while offset < end:
            length = min(REQUEST_BYTES_MAX, end - offset)
            yield offset, length
            offset += length
