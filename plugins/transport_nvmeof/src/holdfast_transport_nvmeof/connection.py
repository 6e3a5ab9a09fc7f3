"""One queue of one host: an asyncio protocol that carries bytes between socket, machine and session.

Every wake-up takes whatever has arrived, submits it as one list, and writes answers as one list; there
is no task, await or lock per command. It decides nothing about NVMe (the machines do); it decides
when to read: not while the host takes no answers, and not while Connect is being answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol, cast

import attrs

from holdfast.messages import Reply, Request
from holdfast.slab import Slab
from holdfast.sockets import tune
from holdfast.units import MIB
from holdfast_transport_nvmeof.controller import Controller
from holdfast_transport_nvmeof.pdu import PduError
from holdfast_transport_nvmeof.queue import Phase, TargetQueue
from holdfast_transport_nvmeof.status import name_of_status

_log = logging.getLogger("holdfast.nvme_tcp")

UNSENT_BYTES_MAX = 8 * MIB
"""Answers waiting for the host beyond which nothing more is read from it."""
SILENCE_S = 1.0
"""After a line about failed commands of one queue."""
TERM_PATIENCE_S = 5.0
"""How long a host may take to close after a termination request; the specification says 30 s at most."""


class Owner(Protocol):
    """What a connection asks of its frontend."""

    def on_connected(self, connection: Connection) -> bool:
        """Take a new connection in; False when there are too many."""
        ...

    def on_question(self, connection: Connection) -> None:
        """Answer `connection.queue.question`, then call `answered`."""
        ...

    def on_requests(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Pass requests of an I/O queue on to its volume."""
        ...

    def on_disconnected(self, connection: Connection) -> None:
        """The connection is gone."""
        ...


@attrs.define(eq=False)
class Connection(asyncio.BufferedProtocol):
    """One connection of one host."""

    owner: Owner = attrs.field(repr=False)
    queue: TargetQueue
    connect_timeout_s: float
    term_patience_s: float = TERM_PATIENCE_S
    peer: str = "?"
    local_host: str = ""
    """The address of ours that the host has connected to."""
    is_open: bool = False
    _slab: Slab = attrs.field(factory=Slab, repr=False)
    _transport: asyncio.Transport = attrs.field(init=False, repr=False)
    _loop: asyncio.AbstractEventLoop = attrs.field(init=False, repr=False)
    _timer: asyncio.TimerHandle | None = None
    _is_reading: bool = True
    _is_clogged: bool = False
    """The host does not take its answers."""
    _is_processing: bool = False
    _errors_told: int = 0
    _silent_until: float = 0.0
    """Failed commands are not logged before; times of the loop's clock."""
    _is_terminating: bool = False
    """A termination request was sent; what still comes is dropped."""

    @property
    def controller(self) -> Controller | None:
        """The controller that the queue belongs to; None before Connect."""
        return self.queue.controller

    def counters(self) -> dict[str, int]:
        """Return what this connection has done so far, under the names of the metrics."""
        queue, io = self.queue, self.queue.io
        return {
            "connections": 1,
            "commands": queue.wire.commands_taken,
            "errors": queue.wire.errors_sent,
            "read_bytes": io.read_bytes if io is not None else 0,
            "written_bytes": io.written_bytes if io is not None else 0,
        }

    # --- asyncio ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for ICReq and Connect, but not for ever."""
        # uvloop's transports are no asyncio.Transport by ancestry, only by what they do.
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self.peer = _name(self._transport.get_extra_info("peername"))
        self.local_host = _host(self._transport.get_extra_info("sockname"))
        self.is_open = True
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        # A host without a keep-alive timer whose machine vanished is noticed after 30 s.
        tune(self._transport, silent_s=15, probe_s=5, probes=3)
        if not self.owner.on_connected(self):
            self.hang_up("Too many hosts are connected; raise frontend.nvme-tcp.connections_max.")
            return
        self._timer = self._loop.call_later(self.connect_timeout_s, self._on_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the host; answers that are still to come go nowhere."""
        self.is_open = False
        self._disarm()
        self._tell_errors(is_last=True)
        self.owner.on_disconnected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        return self._slab.space(self.queue.wanted)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received."""
        slab = self._slab
        slab.end += nbytes
        if self._is_terminating:
            slab.start = slab.end
            return
        controller = self.queue.controller
        if controller is not None:
            controller.seen_at = self._loop.time()
        self._process()

    def pause_writing(self) -> None:
        """Read no more while the host takes no answers."""
        self._is_clogged = True
        self._steer_reading()

    def resume_writing(self) -> None:
        """Go on: the host has taken its answers."""
        self._is_clogged = False
        self._process()
        self._steer_reading()

    # --- PDUs ------------------------------------------------------------------------------

    def _process(self) -> None:
        """Turn what has arrived into one submission."""
        if self._is_processing or self._is_terminating or not self.is_open:
            return  # A session answered within `on_requests`; the loop below goes on by itself.
        queue, slab = self.queue, self._slab
        self._is_processing = True
        try:
            while not self._is_clogged:
                slab.start = queue.parse(slab.view, slab.start, slab.end)
                requests = queue.take_requests()
                if requests:
                    self.owner.on_requests(self, requests)
                self.flush()
                if self._timer is not None and queue.phase is Phase.LIVE:
                    self._disarm()
                if queue.question is None:
                    break
                self._steer_reading()
                self.owner.on_question(self)
                if queue.question is not None:
                    break
        except PduError as error:
            self._terminate(error.message)
            return
        finally:
            self._is_processing = False
        self._submit_rest()
        if queue.phase is Phase.CLOSED:
            self.hang_up(queue.close_reason)

    def answered(self) -> None:
        """Send the answer that was given to Connect, and go on."""
        if self.is_open:
            self.flush()
            self._steer_reading()
            self._process()

    def on_replies(self, replies: Sequence[Reply], status: int | None = None) -> None:
        """Send the answers to requests of this queue."""
        self.queue.answer(replies, status)
        if not self._is_processing and self.is_open:
            self._submit_rest()
            self.flush()

    def _submit_rest(self) -> None:
        """Submit what answers have made possible: commands that waited, parts of long ones."""
        while self.is_open and (requests := self.queue.take_requests()):
            self._is_processing = True
            try:
                self.owner.on_requests(self, requests)
            finally:
                self._is_processing = False
            self.flush()

    def send_events(self) -> None:
        """Send the asynchronous events that the controller has found."""
        self.queue.send_events()
        self.flush()

    def flush(self) -> None:
        """Write what the machine has to send."""
        if self.is_open:
            self.flush_to(self._transport)

    def flush_to(self, transport: asyncio.Transport) -> None:
        """Write what the machine has to send to `transport`."""
        output = self.queue.take_output()
        if output:
            transport.writelines(output)
        if self.queue.wire.errors_sent != self._errors_told:
            self._tell_errors()

    def _tell_errors(self, *, is_last: bool = False) -> None:
        """Log commands that failed: the first at once, those of the next second in one line."""
        wire, now = self.queue.wire, self._loop.time()
        count = wire.errors_sent - self._errors_told
        if not count or (now < self._silent_until and not is_last):
            return
        self._errors_told, self._silent_until = wire.errors_sent, now + SILENCE_S
        cid, status = wire.last_error
        name = name_of_status(status, is_fabrics=self.queue.phase is not Phase.LIVE)
        _log.info(
            "NVMe/TCP host %s: %d command%s of queue %d failed, CID %d last: %s.",
            *(self.peer, count, "" if count == 1 else "s", wire.qid, cid, name),
        )

    # --- the end ---------------------------------------------------------------------------

    def _terminate(self, sentence: str) -> None:
        """Send the termination request, then wait a moment for the host to close."""
        _log.warning("NVMe/TCP host %s: %s The connection is terminated.", self.peer, sentence)
        self._is_terminating = True
        self._slab.start = self._slab.end
        self.flush()
        self._disarm()
        self._timer = self._loop.call_later(self.term_patience_s, self.abort)

    def hand_over(self) -> tuple[asyncio.Transport, Slab]:
        """Give the connection away, with what was received and not read; reading goes on.

        Only while Connect is being answered, and not within `on_question`.
        """
        self._disarm()
        self.is_open = False
        self.flush_to(self._transport)
        if not self._is_reading:
            self._transport.resume_reading()
        return self._transport, self._slab

    def hang_up(self, reason: str = "") -> None:
        """Close the connection once what was written is sent; a reason is logged."""
        if reason:
            _log.warning("NVMe/TCP host %s: connection closed. %s", self.peer, reason)
        self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def _on_timeout(self) -> None:
        self._timer = None
        self.hang_up(f"It has no queue after {self.connect_timeout_s:g} s.")

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _steer_reading(self) -> None:
        """Read, or do not: the one place that decides it."""
        wants = not self._is_clogged and self.queue.question is None
        if wants == self._is_reading or self._transport.is_closing():
            return
        self._is_reading = wants
        if wants:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()


def _name(address: object) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address or "?")


def _host(address: object) -> str:
    return str(address[0]) if isinstance(address, tuple) else ""
