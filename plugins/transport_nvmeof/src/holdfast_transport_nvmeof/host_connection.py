"""One queue of a controller, seen from its host: an asyncio protocol with a future per command.

It knows no commands; `host.py` is its machine, `initiator.py` opens and uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import attrs

from holdfast.messages import Payload
from holdfast.slab import Slab
from holdfast_transport_nvmeof.commands import Command
from holdfast_transport_nvmeof.host import Finished, HostQueue
from holdfast_transport_nvmeof.pdu import PduError


@attrs.define(eq=False)
class HostConnection(asyncio.BufferedProtocol):
    """One queue's connection."""

    queue: HostQueue
    is_open: bool = False
    closed: asyncio.Event = attrs.field(factory=asyncio.Event)
    _slab: Slab = attrs.field(factory=Slab, repr=False)
    _transport: asyncio.Transport = attrs.field(init=False, repr=False)
    _futures: set[asyncio.Future[Finished]] = attrs.field(factory=set, repr=False)
    _on_closed: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send ICReq."""
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is outstanding."""
        self.is_open = False
        self.closed.set()
        if self._on_closed is not None:
            self._on_closed()
        reason = self.queue.close_reason or "The connection to the controller is gone."
        for future in self._futures:
            if not future.done():
                future.set_exception(ConnectionResetError(104, reason))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        return self._slab.space(self.queue.wanted)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received."""
        slab, queue = self._slab, self.queue
        slab.end += nbytes
        try:
            slab.start = queue.parse(slab.view, slab.start, slab.end)
        except PduError:
            self._flush()
            self._transport.close()
            return
        finished, queue.finished = queue.finished, []
        for each in finished:
            future = cast("asyncio.Future[Finished]", each.token)
            if not future.done():
                future.set_result(each)
        self._flush()

    def ask(
        self, command: Command, data: Payload = b"", reads: int = 0
    ) -> asyncio.Future[Finished]:
        """Send a command; the future's result is its completion, whatever the status."""
        future = asyncio.get_running_loop().create_future()
        if not self.is_open:
            future.set_exception(ConnectionResetError(104, "The connection is closed."))
            return future
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        self.queue.submit(command, future, data=data, reads=reads)
        self._flush()
        return future

    def _flush(self) -> None:
        output, self.queue.output = self.queue.output, []
        if output and self.is_open:
            self._transport.writelines(output)

    def when_closed(self, call: Callable[[], None]) -> None:
        """Call `call` when the connection is gone."""
        self._on_closed = call

    def hand_over(self) -> tuple[asyncio.Transport, Slab]:
        """Give the connection away; only while nothing is outstanding."""
        self.is_open = False
        return self._transport, self._slab

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()
