"""One client connection: an asyncio protocol that carries bytes between socket, machines and session.

Every wake-up takes whatever has arrived, submits it as one list, and writes answers as one list; there
is no task, await or lock per request. It decides nothing about NBD (the machines do) and nothing
about volumes (`export.py` and the session do); it decides when to read: not while the client does not
take its answers, and not while too much of it is unanswered, so that memory stays bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Protocol, cast

import attrs

from holdfast.errors import RemoteProtocolError
from holdfast.interfaces.passing import Passed
from holdfast.messages import Reply
from holdfast.node.nbd.export import Export
from holdfast.node.nbd.handshake import ExportInfo, Handshake, Phase, Question
from holdfast.node.nbd.transmission import Transmission
from holdfast.slab import Slab
from holdfast.sockets import tune
from holdfast.units import MIB

_log = logging.getLogger("holdfast.nbd")

UNSENT_BYTES_MAX = 8 * MIB
"""Answers waiting for the client beyond which nothing more is read from it."""


class Owner(Protocol):
    """What a connection asks of its frontend."""

    def on_connected(self, connection: Connection) -> bool:
        """Take a new connection in; False when there are too many."""
        ...

    def on_question(self, connection: Connection, question: Question) -> None:
        """Answer through `connection.handshake`, then call `answered` or `enter`."""
        ...

    def on_disconnected(self, connection: Connection) -> None:
        """The connection is gone."""
        ...


@attrs.frozen
class Limits:
    """What one connection may take."""

    handshake_timeout_s: float
    inflight_bytes_max: int
    inflight_requests_max: int


@attrs.define(eq=False)
class Connection(asyncio.BufferedProtocol):
    """One client, from its first byte to its last."""

    owner: Owner = attrs.field(repr=False)
    limits: Limits
    peer: str = "?"
    handshake: Handshake = attrs.field(factory=Handshake)
    machine: Transmission | None = None
    export: Export | None = None
    is_open: bool = False
    is_passed_on: bool = False
    """Another process of this node goes on with it."""
    _slab: Slab = attrs.field(factory=Slab, repr=False)
    _transport: asyncio.Transport = attrs.field(init=False, repr=False)
    _timer: asyncio.TimerHandle | None = None
    _is_reading: bool = True
    _is_clogged: bool = False
    """The client does not take its answers."""
    _is_processing: bool = False

    # --- asyncio ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        # uvloop's transports are no asyncio.Transport by ancestry, only by what they do.
        self._transport = cast("asyncio.Transport", transport)
        self.peer = _peer_name(self._transport)
        self.is_open = True
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        # A client whose machine vanished is noticed after 30 s: its session holds the volume (R11).
        tune(self._transport, silent_s=15, probe_s=5, probes=3, unconfirmed_s=30)
        if not self.owner.on_connected(self):
            self.hang_up("Too many clients are connected; raise frontend.nbd.connections_max.")
            return
        self._arm()
        question = self.handshake.question
        if question is None:
            self._transport.write(self.handshake.data_to_send())
        else:  # Adopted: another process has led the handshake up to here.
            self._steer_reading()
            self.owner.on_question(self, question)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client; answers that are still to come go nowhere."""
        self.is_open = False
        self._disarm()
        self.owner.on_disconnected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        return self._slab.space(self.machine.wanted if self.machine else 1)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received."""
        self._slab.end += nbytes
        if self.machine is not None:
            self._process()
        else:
            self._negotiate()

    def pause_writing(self) -> None:
        """Read no more while the client takes no answers."""
        self._is_clogged = True
        self._steer_reading()

    def resume_writing(self) -> None:
        """Go on: the client has taken its answers."""
        self._is_clogged = False
        if self.machine is not None:
            self._process()
        else:
            self._steer_reading()

    # --- handshake -------------------------------------------------------------------------

    def _negotiate(self) -> None:
        slab, handshake = self._slab, self.handshake
        try:
            handshake.receive(slab.view[slab.start : slab.end])
            slab.start = slab.end
            question = handshake.next_event()
        except RemoteProtocolError as error:
            self.hang_up(error.message)
            return
        self._transport.write(handshake.data_to_send())
        if handshake.phase is Phase.CLOSED:
            self.hang_up(handshake.close_reason)
        elif question is not None:
            self._steer_reading()
            self.owner.on_question(self, question)

    def answered(self) -> None:
        """Send the answer that was given to the handshake and go on with it."""
        if self.is_open:
            self._negotiate()
            self._steer_reading()

    def enter(self, export: Export, info: ExportInfo) -> None:
        """Answer with `info` and begin transmission on `export`."""
        handshake = self.handshake
        handshake.answer_export(info)
        self._disarm()
        self.export = export
        self.machine = Transmission(
            number=export.join(self),
            size_bytes=export.size_bytes,
            writable=export.writable and not info.read_only,
            structured=handshake.structured,
            base_allocation=handshake.base_allocation,
            inflight_bytes_max=self.limits.inflight_bytes_max,
            inflight_requests_max=self.limits.inflight_requests_max,
        )
        self._transport.write(handshake.data_to_send())
        slab, rest = self._slab, handshake.rest
        if rest:
            # A client that does not wait for the answer; rare enough to copy.
            slab.start = slab.end
            slab.space(len(rest))[: len(rest)] = rest
            slab.end += len(rest)
        self._process()

    def pass_on(self) -> Passed:
        """Let go of the connection while it asks for an export, for `adopt` in another process."""
        own = self._transport.get_extra_info("socket")
        passed = Passed(os.dup(own.fileno()), self.handshake.state())
        self.is_passed_on = True
        # Closes our descriptor; the connection lives on by the other.
        self._transport.abort()
        return passed

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.limits.handshake_timeout_s, self._on_timeout)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        if self.handshake.phase is Phase.ASKING:
            self._arm()  # It is the client who waits.
        else:
            self.hang_up(
                f"It chose no export within {self.limits.handshake_timeout_s:g} s of connecting."
            )

    # --- transmission ----------------------------------------------------------------------

    def _process(self) -> None:
        """Turn what has arrived into one submission, as far as the limits allow."""
        if self._is_processing:
            return  # A session answered within `submit`; the loop below goes on by itself.
        machine, export, slab = self.machine, self.export, self._slab
        assert machine is not None
        assert export is not None
        self._is_processing = True
        try:
            while not self._is_clogged:
                slab.start = machine.parse(slab.view, slab.start, slab.end)
                if machine.requests:
                    requests, machine.requests = machine.requests, []
                    export.submit(requests)
                if machine.output:
                    self._send(machine)
                if not (machine.is_full and machine.has_room):
                    break
        except RemoteProtocolError as error:
            self.hang_up(error.message)
            return
        finally:
            self._is_processing = False
        if machine.is_leaving and machine.is_idle:
            self.hang_up()
        elif self._is_reading is (machine.is_full or self._is_clogged):
            self._steer_reading()

    def on_replies(self, replies: Sequence[Reply]) -> None:
        """Send the answers to requests of this connection, and take more when there is room now."""
        machine = self.machine
        assert machine is not None
        machine.answer(replies)
        if self._is_processing or not self.is_open:
            return
        if machine.output:
            self._send(machine)
        if machine.is_full or machine.is_leaving:
            self._process()

    def on_changed(self, size_bytes: int, *, writable: bool) -> None:
        """Follow the volume's size and access; requests that have arrived by now are judged anew."""
        if self.machine is not None:
            self.machine.size_bytes = size_bytes
            self.machine.writable = writable

    def _send(self, machine: Transmission) -> None:
        output, machine.output = machine.output, []
        self._transport.writelines(output)

    def _steer_reading(self) -> None:
        """Read, or do not: the one place that decides it."""
        if self.machine is None:
            wants = self.handshake.phase is not Phase.ASKING
        else:
            wants = not self.machine.is_full
        wants = wants and not self._is_clogged
        if wants == self._is_reading or self._transport.is_closing():
            return
        self._is_reading = wants
        if wants:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def hang_up(self, reason: str = "") -> None:
        """Close the connection once what was written is sent; a reason is logged."""
        if reason:
            _log.warning("NBD client %s: connection closed. %s", self.peer, reason)
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()


def _peer_name(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername")
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name or "?")
