"""One link: the asyncio protocol that carries bytes between a socket and one end of a stream.

It takes a connection over once the NVMe handshake is done, from `connection.py` or `initiator.py`. No
task, future or queue per command: bytes arrive in `buffer_updated`, leave in `send`, and both run to
their end within one wake-up of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from holdfast.errors import HoldfastError, RemoteProtocolError, UnavailableError
from holdfast.interfaces.transport import LinkHandler
from holdfast.messages import Message
from holdfast.slab import Slab
from holdfast.sockets import Counters
from holdfast_transport_nvmeof.stream import Stream

ORPHAN_PATIENCE_S = 1.0
"""How long a link may outlive its admin queue."""
log = logging.getLogger("holdfast.transport.nvme_tcp")


class Room(Protocol):
    """What a link needs of the transport that it belongs to."""

    counters: Counters
    close_timeout_s: float

    def left(self, link: NvmeLink) -> None:
        """Take note that a link's connection is gone."""
        ...


Taken = Callable[[list[Any]], None]


class NvmeLink(asyncio.BufferedProtocol):
    """Either end of a link; implements `holdfast.interfaces.transport.Link`."""

    def __init__(self, room: Room, stream: Stream, slab: Slab, peer: str) -> None:
        """Prepare; `begin` takes the connection over."""
        self.peer = peer
        self._room = room
        self._stream = stream
        self._slab = slab
        self._transport: asyncio.Transport
        self._handler: LinkHandler | None = None
        self._deliver: Taken = self._discard
        self._timer: asyncio.TimerHandle | None = None
        self._open = False
        self._is_gone = False
        self._is_draining = False
        """Closed, but messages that were accepted wait for the peer to make room."""

    def begin(self, transport: asyncio.Transport, deliver: Taken) -> None:
        """Take the connection over; messages go to `deliver` until `serve` is called."""
        self._transport = transport
        self._open = True
        self._deliver = deliver
        self._room.counters.connections_open += 1
        transport.set_protocol(self)
        self._flush()

    def serve(self, handler: LinkHandler) -> None:
        """Deliver to `handler` from here on."""
        if self._open:
            self._handler = handler
            self._deliver = handler.on_messages

    @property
    def is_open(self) -> bool:
        """Whether messages are taken and delivered."""
        return self._open

    # --- what the owner calls ---------------------------------------------------------------

    def send(self, messages: Sequence[Message]) -> None:
        """Encode and hand to the operating system at once; what it does not take is buffered."""
        if self._open:
            self._stream.send(messages)
            self._flush()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the operating system has not taken yet."""
        if not self._open:
            return 0
        return self._transport.get_write_buffer_size() + self._stream.waiting_bytes

    def close(self, reason: str = "") -> None:
        """Send what was accepted, then close.

        The sending direction is shut first and arriving bytes are dropped until the peer shuts its
        own: a reset would take what was sent but not yet received with it.
        """
        if not self._open:
            return
        self._stop()
        log.debug("The link to %s is closed: %s", self.peer, reason)
        if self._transport.is_closing():
            return
        self._timer = asyncio.get_running_loop().call_later(
            self._room.close_timeout_s, self._transport.abort
        )
        self._is_draining = self._stream.is_waiting
        if not self._is_draining:
            self._shut()

    def abort(self) -> None:
        """Close at once."""
        self._stop()
        self._transport.abort()

    # --- what asyncio calls -----------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        return self._slab.space(self._stream.wanted)

    def buffer_updated(self, nbytes: int) -> None:
        """Decode what arrived and deliver it in one call."""
        self._slab.end += nbytes
        self.process()

    def process(self) -> None:
        """Decode and deliver what the slab holds."""
        slab = self._slab
        if not self._open and not self._is_draining:
            slab.start = slab.end
            return
        messages: list[Any] = []
        error: RemoteProtocolError | None = None
        try:
            slab.start = self._stream.parse(slab.view, slab.start, slab.end, messages)
        except RemoteProtocolError as caught:
            error = caught
            slab.start = slab.end
        if messages and self._open:
            self._deliver(messages)
        self._flush()
        if error is not None:
            self._violated(error)
        elif self._is_draining and not self._stream.is_waiting:
            self._is_draining = False
            self._shut()

    def eof_received(self) -> bool:
        """Take note that the peer will send no more; half-open links are of no use here."""
        slab = self._slab
        middle = " in the middle of a PDU." if slab.start < slab.end else "."
        self._lost(UnavailableError(f"{self.peer} closed the connection{middle}"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner unless it knows, and give everything back."""
        self._lost(
            UnavailableError(f"The connection to {self.peer} was lost: {exc or 'it was closed'}.")
        )
        self._is_gone = True
        self._is_draining = False
        self._cancel_timer()
        self._room.counters.connections_open -= 1
        self._room.left(self)

    # --- inside -----------------------------------------------------------------------------

    def orphaned_later(self) -> None:
        """End the link soon: its controller's admin queue is gone, its last bytes may be on the way."""
        if not self._is_gone:
            loop = asyncio.get_running_loop()
            loop.call_later(ORPHAN_PATIENCE_S, self.orphaned)

    def orphaned(self) -> None:
        """End the link: its controller's admin queue is gone."""
        if self._is_gone:
            return
        self._lost(UnavailableError(f"{self.peer} has closed the admin queue."))
        self._transport.abort()

    def _flush(self) -> None:
        output = self._stream.take_output()
        if not output or self._transport.is_closing():
            return
        if len(output) == 1:
            self._transport.write(output[0])
        else:
            self._transport.writelines(output)

    def _shut(self) -> None:
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _discard(self, messages: list[Any]) -> None:
        """Drop what arrives after the end."""

    def violated(self, sentence: str) -> None:
        """End the link because of what the peer did."""
        self._violated(RemoteProtocolError(sentence))

    def _violated(self, error: HoldfastError) -> None:
        """Close because of what the peer did; one line of log, whatever it sent."""
        self._room.counters.protocol_errors += 1
        log.warning("The connection to %s is closed: %s", self.peer, error.message)
        self._is_draining = False
        self._lost(error)
        # Not aborted: a termination request or a status may be on its way.
        self._transport.close()

    def _lost(self, error: HoldfastError) -> None:
        """Stop, and tell the owner once."""
        if not self._open:
            return
        handler = self._handler
        self._stop()
        if handler is not None:
            handler.on_lost(error)

    def _stop(self) -> None:
        self._open = False
        self._handler = None
        self._deliver = self._discard
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
