"""The host's end of one queue as a machine: commands go in, PDUs come out, and completions after them.

One machine for admin and I/O queues alike. It carries data both ways: in the capsule where it fits, by
R2T otherwise. It refuses to know sockets, clocks, and what a command means.

Source: NVM Express TCP Transport Specification 1.0, sections 3.2 to 3.5.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import NamedTuple

import attrs

from holdfast.messages import Payload
from holdfast_transport_nvmeof.commands import Command, SglType
from holdfast_transport_nvmeof.pdu import (
    COMMON,
    DATA,
    DGST_DATA,
    DGST_HEADER,
    IC,
    RESPONSE,
    TERM,
    FatalErrorStatus,
    Framing,
    Offset,
    Pdu,
    PduError,
    PduFlag,
    PduType,
    ic_pdu,
    offending_header,
    term_pdu,
)
from holdfast_transport_nvmeof.status import Status

ADMIN_CAPSULE_BYTES = 8192
TRANSFER_BYTES_MAX = 32 << 20
"""Largest C2HData that is taken; no command here asks for more."""


class HostPhase(enum.Enum):
    """Where a queue stands."""

    INITIALIZE = "initialize"
    """ICResp has to come."""
    LIVE = "live"
    CLOSED = "closed"


class Finished(NamedTuple):
    """A command that was answered."""

    token: object
    """As it was submitted with."""
    status: int
    """0, or status code type << 8 | status code; bit 14 is Do Not Retry."""
    dw0: int
    dw1: int
    data: bytes | bytearray
    """What the command read."""


@attrs.define
class _Asked:
    """A command that was sent and not answered."""

    token: object
    data: Payload
    """What it writes, for R2T."""
    buffer: bytearray
    """What it reads."""
    received: int = 0
    sent: int = 0
    is_damaged: bool = False
    """A data digest was wrong."""


@attrs.define(eq=False)
class HostQueue:
    """One queue of a controller, seen from its host."""

    digests: int = 0
    """DGST_HEADER and DGST_DATA, as wanted; as agreed on once `phase` is LIVE."""
    entries: int = 32
    """Commands outstanding at most; others wait in here."""
    in_capsule_bytes: int = ADMIN_CAPSULE_BYTES
    phase: HostPhase = HostPhase.INITIALIZE
    output: list[Payload] = attrs.field(factory=list)
    """What is to be sent; the caller takes the list away."""
    finished: list[Finished] = attrs.field(factory=list)
    """Answered commands; the caller takes the list away."""
    framing: Framing = attrs.field(init=False)
    h2c_bytes_max: int = 0
    close_reason: str = ""
    _asked: dict[int, _Asked] = attrs.field(factory=dict)
    _waiting: deque[tuple[Command, _Asked]] = attrs.field(factory=deque)
    _next_cid: int = 0

    def __attrs_post_init__(self) -> None:
        """Say hello."""
        self.framing = Framing({PduType.IC_RESP: 0})
        hello = ic_pdu(PduType.IC_REQ, alignment=4, digests=self.digests, maximum=0)
        self.output.append(hello)

    @property
    def wanted(self) -> int:
        """Bytes that the PDU at the position where `parse` stopped takes in all."""
        return self.framing.wanted

    # --- commands --------------------------------------------------------------------------

    def submit(
        self, command: Command, token: object, *, data: Payload = b"", reads: int = 0
    ) -> None:
        """Send a command, now or when the queue has an entry free.

        Args:
            command: With any CID and SGL; both are set here.
            token: Comes back in `Finished`.
            data: What it writes; must not change until it is answered.
            reads: Bytes that it reads at most.
        """
        asked = _Asked(token, data, bytearray(reads))
        if self.phase is HostPhase.LIVE and len(self._asked) < self.entries - 1:
            self._send(command, asked)
        else:
            self._waiting.append((command, asked))

    def _send(self, command: Command, asked: _Asked) -> None:
        cid = self._next_cid
        while cid in self._asked:
            cid = (cid + 1) & 0xFFFF
        self._next_cid = (cid + 1) & 0xFFFF
        self._asked[cid] = asked
        length = len(asked.data) or len(asked.buffer)
        in_capsule = 0 < len(asked.data) <= self.in_capsule_bytes
        sgl = SglType.DATA_BLOCK_OFFSET if in_capsule else SglType.TRANSPORT_DATA_BLOCK
        sqe = command._replace(
            cid=cid, flags=command.flags | 0x40, sgl_address=0, sgl_length=length, sgl_type=sgl
        )
        data = asked.data if in_capsule else b""
        self.output += self.framing.pdu(PduType.CAPSULE_CMD, 0, sqe.pack(), data)

    # --- PDUs ------------------------------------------------------------------------------

    def parse(self, view: memoryview, position: int, end: int) -> int:
        """Take the whole PDUs in `view[position:end]` and return where the next one begins.

        Raises:
            PduError: The controller broke the protocol. The termination request is in `output`.
        """
        try:
            while self.phase is not HostPhase.CLOSED:
                pdu = self.framing.take(view, position, end)
                if pdu is None:
                    break
                self._on_pdu(view, pdu)
                position = pdu.next
        except PduError as error:
            header = offending_header(view, position, end)
            self.output.append(term_pdu(PduType.H2C_TERM_REQ, error.fes, error.fei, header))
            self.phase = HostPhase.CLOSED
            self.close_reason = error.message
            raise
        return position

    def _on_pdu(self, view: memoryview, pdu: Pdu) -> None:
        match pdu.kind:
            case PduType.CAPSULE_RESP:
                self._on_response(view, pdu)
            case PduType.C2H_DATA:
                self._on_data(view, pdu)
            case PduType.R2T:
                self._on_r2t(view, pdu)
            case PduType.IC_RESP:
                self._on_ic_response(view, pdu)
            case _:
                fes, fei = TERM.unpack_from(view, pdu.start + COMMON.size)
                self.close_reason = (
                    f"The controller terminated the connection: FES {fes}, FEI {fei}."
                )
                self.phase = HostPhase.CLOSED

    def _on_ic_response(self, view: memoryview, pdu: Pdu) -> None:
        pfv, cpda, agreed, maximum = IC.unpack_from(view, pdu.start + COMMON.size)
        unsupported = FatalErrorStatus.UNSUPPORTED_PARAMETER
        if pfv:
            raise PduError(f"The controller speaks PDU format {pfv}.", unsupported, Offset.PFV)
        if agreed & ~self.digests:
            raise PduError("The controller wants digests unasked.", unsupported, Offset.DGST)
        if cpda > 31 or maximum < 4096:
            raise PduError(
                f"ICResp came with CPDA {cpda}, MAXH2CDATA {maximum}.",
                FatalErrorStatus.INVALID_PDU_HEADER_FIELD,
                Offset.PDA if cpda > 31 else Offset.MAXIMUM,
            )
        self.digests, self.h2c_bytes_max = agreed, maximum
        limits: dict[int, int] = {
            PduType.CAPSULE_RESP: 0,
            PduType.C2H_DATA: TRANSFER_BYTES_MAX,
            PduType.R2T: 0,
            PduType.C2H_TERM_REQ: 128,
        }
        self.framing = Framing(
            limits,
            header_digest=bool(agreed & DGST_HEADER),
            data_digest=bool(agreed & DGST_DATA),
            alignment_out=4 * (cpda + 1),
        )
        self.phase = HostPhase.LIVE
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting and len(self._asked) < max(1, self.entries - 1):
            self._send(*self._waiting.popleft())

    def _of(self, cid: int) -> _Asked:
        asked = self._asked.get(cid)
        if asked is None:
            raise PduError(
                f"The controller answers command {cid}, which is not outstanding.",
                FatalErrorStatus.INVALID_PDU_HEADER_FIELD,
                Offset.CCCID,
            )
        return asked

    def _on_response(self, view: memoryview, pdu: Pdu) -> None:
        dw0, dw1, _, _, cid, status = RESPONSE.unpack_from(view, pdu.start + COMMON.size)
        self._finish(cid, status >> 1, dw0, dw1)

    def _finish(self, cid: int, status: int = 0, dw0: int = 0, dw1: int = 0) -> None:
        asked = self._of(cid)
        del self._asked[cid]
        if asked.is_damaged and not status:
            status = Status.TRANSIENT_TRANSPORT_ERROR
        data = asked.buffer[: asked.received]
        self.finished.append(Finished(asked.token, status, dw0, dw1, data))
        self._send_waiting()

    def _on_data(self, view: memoryview, pdu: Pdu) -> None:
        cid, _, offset, length = DATA.unpack_from(view, pdu.start + COMMON.size)
        asked = self._of(cid)
        if length != pdu.data_end - pdu.data_start:
            raise PduError(
                f"C2HData came with DATAL {length}.",
                FatalErrorStatus.INVALID_PDU_HEADER_FIELD,
                Offset.DATAL,
            )
        if offset != asked.received or offset + length > len(asked.buffer):
            raise PduError(
                f"C2HData came with DATAO {offset}.",
                FatalErrorStatus.DATA_TRANSFER_OUT_OF_RANGE,
                Offset.DATAO,
            )
        if not pdu.is_data_intact:
            asked.is_damaged = True
        asked.buffer[offset : offset + length] = view[pdu.data_start : pdu.data_end]
        asked.received = offset + length
        if pdu.flags & PduFlag.SUCCESS:
            self._finish(cid)

    def _on_r2t(self, view: memoryview, pdu: Pdu) -> None:
        cid, tag, offset, length = DATA.unpack_from(view, pdu.start + COMMON.size)
        asked = self._of(cid)
        if offset != asked.sent or not length or offset + length > len(asked.data):
            raise PduError(
                f"R2T came with R2TO {offset} and R2TL {length}.",
                FatalErrorStatus.DATA_TRANSFER_OUT_OF_RANGE,
                Offset.DATAO,
            )
        asked.sent = end = offset + length
        data = memoryview(asked.data)
        while offset < end:
            stop = min(offset + self.h2c_bytes_max, end)
            flags = PduFlag.LAST_PDU if stop == end else PduFlag(0)
            fields = DATA.pack(cid, tag, offset, stop - offset)
            self.output += self.framing.pdu(PduType.H2C_DATA, flags, fields, data[offset:stop])
            offset = stop
