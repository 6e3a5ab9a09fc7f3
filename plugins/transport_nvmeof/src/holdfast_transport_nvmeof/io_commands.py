"""I/O commands of one queue as a machine: commands become requests of a volume, answers completions.

Reads and writes as kernels send them are recognized at once; whatever else, and whatever is wrong, is
looked at in steps. Limits: what a queue holds in memory is bounded by letting commands wait, never by
waiting itself, because the data that was asked for comes on the same connection.

Source: NVM Command Set Specification 1.0, section 3.2; TCP Transport Specification 1.0, section 3.2.
"""

from __future__ import annotations

import struct
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
    HEADER_BYTES,
    SQE_BYTES,
    FatalErrorStatus,
    Pdu,
    PduError,
)
from holdfast_transport_nvmeof.status import Status, status_of_errno
from holdfast_transport_nvmeof.transfers import DAMAGED, Transfers
from holdfast_transport_nvmeof.wire import SUCCESS, SUCCESS_HEAD, Wire

_ID_SHIFT = 32
"""A request id: queue number, part of a command (16 bits), CID (16 bits)."""
_PART_SHIFT = 16
_PARTS_AT_ONCE = 8
_READ, _WRITE = int(IoOpcode.READ), int(IoOpcode.WRITE)
_KIND_READ, _KIND_WRITE = int(RequestKind.READ), int(RequestKind.WRITE)
_SGL_CAPSULE = int(SglType.DATA_BLOCK_OFFSET)
_new = tuple.__new__
_PLAIN = struct.Struct("<IIHHI16xQIIQI12x")
"""Type to PDO, PLEN, opcode and flags, CID, NSID, SGL address, length and type, LBA, CDW12."""
_CAPSULE_BYTES = _PLAIN.size
_PLAIN_READ, _PLAIN_WRITE = (PSDT_SGL << 8 | opcode for opcode in (_READ, _WRITE))
_PLAIN_TRANSPORT, _PLAIN_CAPSULE = SglType.TRANSPORT_DATA_BLOCK << 24, _SGL_CAPSULE << 24
assert _CAPSULE_BYTES == HEADER_BYTES + SQE_BYTES


@attrs.frozen
class QueueLimits:
    """What one queue may take."""

    in_capsule_bytes: int
    h2c_bytes_max: int
    """MAXH2CDATA: data of one H2CData PDU."""
    inflight_bytes_max: int
    """Reads and announced writes of more bytes than this wait, but one always goes."""


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
    _plain: tuple[int, int, int, bool] = attrs.field(init=False)
    """`Framing.plain_heads` of this queue."""
    _pending: dict[int, int | _Entry] = attrs.field(factory=dict)
    """By request id without a part: every command that was taken and not answered.
    Of a plain read its bytes, of a plain write its bytes below 0."""
    _inflight_bytes: int = 0
    _deferred: deque[Command] = attrs.field(factory=deque)
    """Commands that wait for `_inflight_bytes` to fall."""
    _transfers: Transfers = attrs.field(factory=Transfers)

    def __attrs_post_init__(self) -> None:
        """Begin the ids of this queue."""
        self._base = self.number << _ID_SHIFT
        self._plain = self.wire.framing.plain_heads()

    @staticmethod
    def number_of(request_id: int) -> int:
        """Return the number of the queue that a request id belongs to."""
        return request_id >> _ID_SHIFT

    @property
    def is_idle(self) -> bool:
        """Whether every command was answered."""
        return not self._pending

    def take_run(self, view: memoryview, position: int, end: int) -> int:
        """Take plain reads and writes in `view[position:end]`, up to the first PDU that is anything else.

        Returns where that begins. What is unusual, wrong, or not there in full is left to `take`.
        """
        space, requests, pending = self.namespace, self.requests, self._pending
        if not space.is_plain or not self.controller.is_ready:
            return position
        read_head, write_head, extra, has_digests = self._plain
        unpack, base, size_bytes = _PLAIN.unpack_from, self._base, space.size_bytes
        is_intact = self.wire.framing.is_intact
        before, room = len(requests), self.wire.entries - len(pending)
        in_capsule_max = self.limits.in_capsule_bytes if space.is_writable else 0
        inflight, inflight_max = self._inflight_bytes, self.limits.inflight_bytes_max
        while end - position >= _CAPSULE_BYTES and room > 0:
            head, plen, opcode, cid, nsid, address, length, sgl, lba, cdw12 = unpack(view, position)
            number, offset, following = base | cid, lba * SECTOR_BYTES, position + plen
            if (
                nsid != NSID
                or length != ((cdw12 & 0xFFFF) + 1) * SECTOR_BYTES
                or offset + length > size_bytes
                or number in pending
                or following > end
            ):
                break
            request: tuple[int, int, int, int, int, Payload]
            if opcode == _PLAIN_READ:
                if (
                    head != read_head
                    or plen != _CAPSULE_BYTES + extra
                    or sgl != _PLAIN_TRANSPORT
                    or cdw12 & FUA
                    or length > TRANSFER_BYTES_MAX
                    or inflight >= inflight_max
                    or (has_digests and not is_intact(view, position, plen, 0))
                ):
                    break
                request = (number, _KIND_READ, 0, offset, length, b"")
                pending[number] = length
            else:
                if (
                    opcode != _PLAIN_WRITE
                    or head != write_head
                    or sgl != _PLAIN_CAPSULE
                    or address
                    or length > in_capsule_max
                    or (plen != _CAPSULE_BYTES + length and not has_digests)
                    or (has_digests and not is_intact(view, position, plen, length))
                ):
                    break
                begin = position + _CAPSULE_BYTES + extra
                data = view[begin : begin + length]
                request = (number, _KIND_WRITE, 1 if cdw12 & FUA else 0, offset, length, data)
                pending[number] = -length
            requests.append(_new(Request, request))
            inflight += length
            room -= 1
            position = following
        self._inflight_bytes = inflight
        self.wire.on_commands(len(requests) - before)
        return position

    def take(self, command: Command, view: memoryview, pdu: Pdu) -> None:
        """Take one command of any kind.

        Raises:
            PduError: The host has more commands outstanding than its queue has entries.
        """
        if self._base | command.cid in self._pending:
            self.wire.complete(command.cid, Status.COMMAND_ID_CONFLICT)
        elif len(self._pending) >= self.wire.entries:
            raise PduError(
                f"More than {self.wire.entries} commands are outstanding.",
                FatalErrorStatus.PDU_SEQUENCE_ERROR,
            )
        elif pdu.is_data_intact:
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
            self._transfers.begin(command, length)
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
        whole = self._transfers.take(view, pdu)
        if whole is not None:
            self._inflight_bytes -= whole.length
            self._run(whole.command, whole.data)
            self._begin_deferred()

    def _run(self, command: Command, data: Payload) -> None:
        """Make requests of a command whose data is here."""
        number = self._base | command.cid
        offset = (command.cdw10 | command.cdw11 << 32) * SECTOR_BYTES
        length = ((command.cdw12 & 0xFFFF) + 1) * SECTOR_BYTES
        fua = RequestFlag.FUA if command.cdw12 & FUA else RequestFlag.NONE
        opcode = command.opcode
        if opcode == DAMAGED:
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
        opcode = command.opcode
        if extra is None and opcode in {IoOpcode.READ, IoOpcode.WRITE}:
            self._pending[number] = inflight if opcode == _READ else -inflight
        else:
            self._pending[number] = (opcode, inflight, extra)
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
        pop, wire = self._pending.pop, self.wire
        is_bare, sqhd_qid, output = wire.is_bare, wire.sqhd | wire.qid << 16, wire.output
        inflight = read_bytes = reads = writes = 0
        for number, error, data in replies:
            entry = pop(number, None)
            if error or type(entry) is not int:
                self._answer_rare(number, error, data, entry, status)
            elif entry < 0:
                writes += 1
                inflight -= entry
                if is_bare:
                    output.append(SUCCESS.pack(SUCCESS_HEAD, 0, sqhd_qid, number & 0xFFFF))
                else:
                    wire.complete(number & 0xFFFF)
            else:
                assert len(data) == entry, "a read is answered with what it asked for"
                reads += 1
                read_bytes += entry
                wire.send_data(number & 0xFFFF, data)
        self._inflight_bytes -= inflight + read_bytes
        self.read_bytes += read_bytes
        self.written_bytes += inflight
        self.reads += reads
        self.writes += writes
        if self._deferred:
            self._begin_deferred()

    def _answer_rare(
        self, number: int, error: int, data: Payload, entry: int | _Entry | None, status: int | None
    ) -> None:
        """Answer what failed, what has parts, and what was not a plain read or write."""
        if entry is None:
            self._answer_part(number, error, status)
            return
        if isinstance(entry, int):
            entry = (_READ, entry, None) if entry > 0 else (_WRITE, -entry, None)
        opcode, inflight, extra = entry
        self._inflight_bytes -= inflight
        cid = number & 0xFFFF
        if error:
            self._fail_io(cid, opcode, error, status)
        elif type(extra) is tuple:
            self._run(*extra)
        elif extra is not None and bytes(data) != extra:
            self._fail_io(cid, opcode, 0, Status.COMPARE_FAILURE)
        else:
            self.wire.complete(cid)

    def _answer_part(self, part_id: int, error: int, status: int | None) -> None:
        cid = part_id & 0xFFFF
        number = self._base | cid
        entry = self._pending.get(number)
        if not isinstance(entry, tuple):
            return
        opcode, _, parts = entry
        if not isinstance(parts, _Parts):
            return
        parts.open -= 1
        parts.error = parts.error or error
        self._ask_parts(number, parts)
        if not parts.open:
            del self._pending[number]
            if parts.error:
                self._fail_io(cid, opcode, parts.error, status)
            else:
                self.wire.complete(cid)

    def _fail_io(self, cid: int, opcode: int, error: int, status: int | None) -> None:
        if status is None:
            status = status_of_errno(error, writes=opcode in CHANGING or opcode == IoOpcode.FLUSH)
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
