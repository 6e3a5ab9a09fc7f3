"""The target's end of one queue as a machine: PDUs go in, requests to a volume and PDUs come out.

One TCP connection is one queue. It begins with ICReq and Connect; then it is the admin queue of a new
controller or an I/O queue of one. Which controller, the machine asks (`question`) and waits to be told.
Admin commands it gives to the controller, I/O commands to `io_commands.py`.

It refuses to know sockets, sessions and clocks.

Source: NVM Express TCP Transport Specification 1.0, sections 3.2 to 3.5.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import attrs

from holdfast.messages import Payload, Reply, Request
from holdfast_transport_nvmeof.authentication import (
    ControllerAuthentication,
    Step,
    is_authentication,
)
from holdfast_transport_nvmeof.commands import (
    SQE,
    AdminOpcode,
    Command,
    Completion,
    IoOpcode,
    SglType,
)
from holdfast_transport_nvmeof.controller import Controller
from holdfast_transport_nvmeof.dhchap import AUTH_REQUIRED
from holdfast_transport_nvmeof.fabrics import CONNECT_DATA_BYTES, Connect, FabricsType
from holdfast_transport_nvmeof.io_commands import IoCommands, QueueLimits
from holdfast_transport_nvmeof.pdu import (
    COMMON,
    DGST_DATA,
    DGST_HEADER,
    IC,
    TERM,
    FatalErrorStatus,
    Framing,
    Offset,
    Pdu,
    PduError,
    PduType,
    ic_pdu,
    offending_header,
    term_pdu,
)
from holdfast_transport_nvmeof.status import ConnectStatus, Status
from holdfast_transport_nvmeof.wire import Wire

ADMIN_CAPSULE_BYTES = 8192
"""Data that a capsule of an admin queue, or of a queue before Connect, may carry (section 3.3.1)."""
_CAPSULE, _H2C = int(PduType.CAPSULE_CMD), int(PduType.H2C_DATA)
_new = tuple.__new__


class Phase(enum.Enum):
    """Where a queue stands."""

    INITIALIZE = "initialize"
    """ICReq has to come."""
    CONNECT = "connect"
    """Connect has to come, or is being answered."""
    AUTHENTICATE = "authenticate"
    """The host has to prove who it is."""
    LIVE = "live"
    CLOSED = "closed"
    """Nothing is taken any more; what is in `output` is the end."""


@attrs.define(eq=False)
class TargetQueue:
    """One queue of one host."""

    limits: QueueLimits
    phase: Phase = Phase.INITIALIZE
    controller: Controller | None = None
    question: Connect | None = None
    """Answer it by `accept` or `refuse`, then parse on."""
    io: IoCommands | None = None
    """None for an admin queue, and before Connect."""
    authentication: ControllerAuthentication | None = None
    """None when the host need not prove who it is."""
    wire: Wire = attrs.field(factory=lambda: Wire(Framing({PduType.IC_REQ: 0})))
    close_reason: str = ""
    """Why the host gave up, when it did."""
    _cid: int = 0
    """Of the Connect that is being answered."""
    _outstanding: set[int] = attrs.field(factory=set)
    """CIDs of an admin queue's Asynchronous Event Requests."""

    @property
    def wanted(self) -> int:
        """Bytes that the PDU at the position where `parse` stopped takes in all."""
        return self.wire.framing.wanted

    def take_output(self) -> list[Payload]:
        """Return what is to be sent, and forget it."""
        wire = self.wire
        output, wire.output = wire.output, []
        return output

    def take_requests(self) -> Sequence[Request]:
        """Return what is to be asked of the volume, and forget it."""
        io = self.io
        if io is None or not io.requests:
            return ()
        requests, io.requests = io.requests, []
        return requests

    # --- PDUs ------------------------------------------------------------------------------

    def parse(self, view: memoryview, position: int, end: int) -> int:
        """Take the whole PDUs in `view[position:end]` and return where the next one begins.

        Payloads of requests are slices of `view`.

        Raises:
            PduError: The host broke the protocol. The termination request is in the output; send it,
                take nothing more, and close once the host has.
        """
        io = self.io if self.phase is Phase.LIVE else None
        try:
            while self.question is None and self.phase is not Phase.CLOSED:
                if io is not None:
                    position = io.take_run(view, position, end)
                pdu = self.wire.framing.take(view, position, end)
                if pdu is None:
                    break
                kind = pdu[0]
                if kind == _CAPSULE:
                    self._on_capsule(view, pdu)
                elif kind == _H2C:
                    assert self.io is not None, "only I/O queues have a limit for H2CData"
                    self.io.take_data(view, pdu)
                elif kind == PduType.IC_REQ:
                    self._on_ic_request(view, pdu)
                else:
                    self._on_term(view, pdu)
                position = pdu[5]
        except PduError as error:
            header = offending_header(view, position, end)
            term = term_pdu(PduType.C2H_TERM_REQ, error.fes, error.fei, header)
            self.wire.output.append(term)
            self.phase = Phase.CLOSED
            raise
        return position

    def _on_ic_request(self, view: memoryview, pdu: Pdu) -> None:
        pfv, hpda, digests, _ = IC.unpack_from(view, pdu.start + COMMON.size)
        if pfv:
            raise PduError(
                f"The host speaks PDU format {pfv}.",
                FatalErrorStatus.UNSUPPORTED_PARAMETER,
                Offset.PFV,
            )
        if hpda > 31:
            raise PduError(
                f"HPDA is {hpda}.", FatalErrorStatus.INVALID_PDU_HEADER_FIELD, Offset.PDA
            )
        agreed = digests & (DGST_HEADER | DGST_DATA)
        maximum = self.limits.h2c_bytes_max
        answer = ic_pdu(PduType.IC_RESP, alignment=4, digests=agreed, maximum=maximum)
        self.wire.output.append(answer)
        self.wire.framing = Framing(
            {PduType.CAPSULE_CMD: ADMIN_CAPSULE_BYTES, PduType.H2C_TERM_REQ: 128},
            header_digest=bool(agreed & DGST_HEADER),
            data_digest=bool(agreed & DGST_DATA),
            alignment_out=4 * (hpda + 1),
        )
        self.phase = Phase.CONNECT

    def _on_term(self, view: memoryview, pdu: Pdu) -> None:
        """The host gives up on this connection, and says why."""
        fes, fei = TERM.unpack_from(view, pdu.start + COMMON.size)
        known = fes in FatalErrorStatus._value2member_map_
        name = FatalErrorStatus(fes).name if known else f"FES {fes}"
        self.close_reason = f"The host terminated the connection: {name}, FEI 0x{fei:x}."
        self.phase = Phase.CLOSED

    def _on_capsule(self, view: memoryview, pdu: Pdu) -> None:
        command = _new(Command, SQE.unpack_from(view, pdu[2] + 8))
        self.wire.on_commands(1)
        io = self.io
        if io is not None and command[0] != IoOpcode.FABRICS and self.phase is Phase.LIVE:
            io.take(command, view, pdu)
        elif not pdu.is_data_intact:
            self.wire.complete(command.cid, Status.TRANSIENT_TRANSPORT_ERROR)
        elif self.phase is Phase.CONNECT:
            self._on_connect(command, view[pdu.data_start : pdu.data_end])
        elif self.authentication is not None and is_authentication(command):
            data = bytes(view[pdu.data_start : pdu.data_end])
            self._on_authentication(command, data, self.authentication)
        elif self.phase is Phase.AUTHENTICATE:
            self.wire.complete(command.cid, ConnectStatus.AUTHENTICATION_REQUIRED)
        elif io is None:
            self._on_admin(command)
        elif command.fctype == FabricsType.DISCONNECT:
            self.wire.complete(command.cid)
            self.phase = Phase.CLOSED
        else:
            self.wire.complete(command.cid, Status.INVALID_COMMAND_OPCODE)

    # --- Connect ---------------------------------------------------------------------------

    def _on_connect(self, command: Command, data: memoryview) -> None:
        if command.opcode != AdminOpcode.FABRICS or command.fctype != FabricsType.CONNECT:
            self.wire.complete(command.cid, Status.COMMAND_SEQUENCE_ERROR)
        elif command.sgl_type != SglType.DATA_BLOCK_OFFSET:
            self.wire.complete(command.cid, Status.SGL_DESCRIPTOR_TYPE_INVALID)
        elif len(data) != CONNECT_DATA_BYTES or command.sgl_length != CONNECT_DATA_BYTES:
            self.wire.complete(command.cid, Status.DATA_SGL_LENGTH_INVALID)
        else:
            try:
                connect = Connect.parse(command, data)
            except ValueError:
                self.wire.complete(command.cid, ConnectStatus.CONNECT_INVALID_PARAMETERS)
                return
            if connect.record_format:
                self.wire.complete(command.cid, ConnectStatus.CONNECT_INCOMPATIBLE_FORMAT)
                return
            self.question, self._cid = connect, command.cid

    def accept(
        self,
        controller: Controller,
        number: int = 0,
        authentication: ControllerAuthentication | None = None,
    ) -> None:
        """Answer Connect: this queue is one of `controller`.

        Args:
            controller: Which.
            number: Of an I/O queue among those that share a session, from 1.
            authentication: What the host has to pass first.
        """
        question, wire = self.question, self.wire
        assert question is not None
        self.question = None
        self.controller = controller
        self.authentication = authentication
        self.phase = Phase.LIVE if authentication is None else Phase.AUTHENTICATE
        wire.begin(question.qid, question.entries, has_flow_control=question.sq_flow_control)
        if question.qid:
            assert controller.namespace is not None
            self.io = IoCommands(number, self.limits, wire, controller, controller.namespace)
            wire.framing.limits[PduType.CAPSULE_CMD] = self.limits.in_capsule_bytes
            wire.framing.limits[PduType.H2C_DATA] = self.limits.h2c_bytes_max
        asks = AUTH_REQUIRED if authentication is not None else 0
        wire.complete(self._cid, 0, controller.facts.cntlid | asks)

    def refuse(self, status: int, dw0: int = 0) -> None:
        """Answer Connect: no."""
        self.question = None
        self.wire.complete(self._cid, status, dw0)

    def _on_authentication(
        self, command: Command, data: bytes, authentication: ControllerAuthentication
    ) -> None:
        if command.fctype == FabricsType.AUTHENTICATION_SEND:
            self.wire.complete(command.cid, authentication.send(command, data))
        else:
            self._finish(command, authentication.receive(command))
        step = authentication.step
        if step is Step.DONE and self.phase is Phase.AUTHENTICATE:
            self.phase = Phase.LIVE
        # A host that was let in before is not kept waiting for its bad verdict.
        if step is Step.FAILED or (step is Step.FAILURE1 and self.phase is Phase.LIVE):
            reason = authentication.failure
            name = reason.name if reason is not None else "unknown"
            self.close_reason = f"The host {authentication.host} did not authenticate: {name}."
            self.phase = Phase.CLOSED

    # --- admin commands --------------------------------------------------------------------

    def _on_admin(self, command: Command) -> None:
        controller = self.controller
        assert controller is not None
        if command.cid in self._outstanding:
            self.wire.complete(command.cid, Status.COMMAND_ID_CONFLICT)
            return
        completion = controller.execute(command)
        if completion is None:
            self._outstanding.add(command.cid)
        else:
            self._finish(command, completion)
        self.send_events()

    def send_events(self) -> None:
        """Complete the Asynchronous Event Requests for which the controller has found events."""
        controller = self.controller
        if controller is None or not controller.events:
            return
        events, controller.events = controller.events, []
        for cid, completion in events:
            self._outstanding.discard(cid)
            self.wire.complete(cid, completion.status, completion.dw0)

    def _finish(self, command: Command, completion: Completion) -> None:
        wire, data = self.wire, completion.data
        if completion.status or not data:
            wire.complete(command.cid, completion.status, completion.dw0, completion.dw1)
        elif command.sgl_type != SglType.TRANSPORT_DATA_BLOCK:
            wire.complete(command.cid, Status.SGL_DESCRIPTOR_TYPE_INVALID)
        elif command.sgl_length < len(data):
            wire.complete(command.cid, Status.DATA_SGL_LENGTH_INVALID)
        else:
            wire.send_data(command.cid, data)

    # --- answers ---------------------------------------------------------------------------

    def answer(self, replies: Sequence[Reply], status: int | None = None) -> None:
        """Make the PDUs that answer `replies` of the volume; see `IoCommands.answer`."""
        if self.io is not None:
            self.io.answer(replies, status)
