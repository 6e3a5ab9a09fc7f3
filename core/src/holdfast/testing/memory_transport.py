"""A transport inside one process and event loop, for tests of what stands on transports.

It passes the same conformance kit as the real ones. Messages are delivered by the event loop's next
turn, never from within `send`, so that code which works here does not depend on being called back at
once. It knows no frames and compresses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import attrs

from holdfast.errors import HoldfastError, RefusedError, UnavailableError
from holdfast.interfaces.transport import Accept, LinkHandler, TransportCounters
from holdfast.messages import (
    Batch,
    Hello,
    Message,
    Payload,
    ReadAnswer,
    Replies,
    Requests,
)

MESSAGE_BYTES = 56
"""What a message without payload counts in the metrics."""


class MemoryNetwork:
    """Where the nodes of one test find each other."""

    def __init__(self) -> None:
        self.listeners: dict[str, MemoryListener] = {}
        self._opened = 0

    async def open(self, cluster: str, node: str) -> MemoryTransport:
        """Return the transport of one more node."""
        return MemoryTransport(self, cluster, node)

    def next_address(self, node: str) -> str:
        """Return an address that was never used before; `host:port` but for the port's number."""
        self._opened += 1
        return f"memory-{node}:p{self._opened}"


class MemoryTransport:
    """One node's transport in a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, cluster: str, node: str) -> None:
        self.network = network
        self.cluster = cluster
        self.node = node
        self.counts = TransportCounters()
        self.links: set[MemoryLink] = set()
        self._listeners: list[MemoryListener] = []

    async def listen(self, accept: Accept) -> MemoryListener:
        """Listen on a fresh address."""
        listener = MemoryListener(self, accept)
        self.network.listeners[listener.address] = listener
        self._listeners.append(listener)
        return listener

    async def connect(self, address: str, hello: Hello, handler: LinkHandler) -> MemoryLink:
        """Open a link; the errors are those of the interface."""
        listener = self.network.listeners.get(address)
        if listener is None:
            raise ConnectionRefusedError(f"Nothing listens at {address}.")
        if listener.room.cluster != self.cluster:
            raise RefusedError(
                f"{address} belongs to cluster {listener.room.cluster!r}, this node to "
                f"{self.cluster!r}."
            )
        near = self.make_link(listener.room.node)
        far = listener.room.make_link(self.node)
        near.join(far)
        far.join(near)
        listener.links.add(far)
        near.handler = handler
        far.on_hello = listener.accept
        near.send([hello])
        return near

    def make_link(self, peer: str) -> MemoryLink:
        """Return one end of a link, not joined to the other yet."""
        link = MemoryLink(self, peer)
        self.links.add(link)
        return link

    def metrics(self) -> Mapping[str, float]:
        """Return the counters of the interface; wire bytes equal plain ones."""
        return self.counts.as_metrics()

    async def aclose(self) -> None:
        """Abort every link and stop every listener."""
        for listener in self._listeners:
            await listener.aclose()
        for link in tuple(self.links):
            link.abort()


class MemoryListener:
    """An address of a `MemoryNetwork`."""

    def __init__(self, room: MemoryTransport, accept: Accept) -> None:
        self.room = room
        self.accept = accept
        self.address = room.network.next_address(room.node)
        self.links: set[MemoryLink] = set()

    async def aclose(self) -> None:
        """Stop listening and abort every link that was accepted."""
        self.room.network.listeners.pop(self.address, None)
        for link in tuple(self.links):
            link.abort()
        self.links.clear()


class MemoryLink:
    """One end of a link."""

    def __init__(self, room: MemoryTransport, peer: str) -> None:
        self.peer = peer
        self.handler: LinkHandler | None = None
        self.on_hello: Accept | None = None
        """Takes the first message, at the accepting end."""
        self._room = room
        self._other: MemoryLink | None = None
        self._inbox: list[Message] = []
        self._inbox_bytes = 0
        self._is_woken = False
        self._is_open = True
        self._ended = False
        """The other end has gone; told when the inbox is empty."""

    def join(self, other: MemoryLink) -> None:
        """Make `other` the other end."""
        self._other = other

    def send(self, messages: Sequence[Message]) -> None:
        """Put the messages into the other end's inbox, which the next turn delivers."""
        other = self._other
        if not self._is_open or other is None or not other._is_open:  # noqa: SLF001 - the other end.
            return
        for message in messages:
            kept, size = _kept(message)
            other._inbox.append(kept)  # noqa: SLF001
            other._inbox_bytes += size  # noqa: SLF001
            self._room.counts.sent(1, size)
        other._wake_soon()  # noqa: SLF001

    @property
    def unsent_bytes(self) -> int:
        """What the other end has not taken yet."""
        return self._other._inbox_bytes if self._is_open and self._other else 0  # noqa: SLF001

    def close(self, reason: str = "") -> None:
        """End the link after what was sent."""
        self._leave()

    def abort(self) -> None:
        """End the link at once; what the other end has not taken is gone."""
        if self._is_open and self._other is not None:
            self._other._inbox.clear()  # noqa: SLF001
            self._other._inbox_bytes = 0  # noqa: SLF001
        self._leave()

    def _leave(self) -> None:
        if not self._is_open:
            return
        self._stop()
        if self._other is not None:
            self._other._ended = True  # noqa: SLF001
            self._other._wake_soon()  # noqa: SLF001

    def _stop(self) -> None:
        self._is_open = False
        self._inbox.clear()
        self._inbox_bytes = 0
        self._room.links.discard(self)

    def _wake_soon(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        """Deliver what has arrived, then the end if it has come."""
        self._is_woken = False
        if not self._is_open:
            return
        messages, self._inbox = self._inbox, []
        self._room.counts.received(len(messages), self._inbox_bytes)
        self._inbox_bytes = 0
        if messages and self.on_hello is not None:
            accept, self.on_hello = self.on_hello, None
            hello = messages.pop(0)
            self.handler = accept(self, hello)  # type: ignore[arg-type]
        if messages and self._is_open and self.handler is not None:
            self.handler.on_messages(messages)
        if self._ended and self._is_open:
            self._lost(UnavailableError(f"{self.peer} closed the connection."))

    def _lost(self, error: HoldfastError) -> None:
        self._stop()
        if self.handler is not None:
            self.handler.on_lost(error)


def _kept(message: Message) -> tuple[Message, int]:
    """Return `message` with payloads that nobody can change any more, and what it counts."""
    match message:
        case Batch(ops=ops):
            ops = [op._replace(data=_bytes(op.data)) for op in ops]
            size = sum(len(op.data) for op in ops)
            return message._replace(ops=ops), MESSAGE_BYTES + size
        case Requests(requests=requests):
            requests = [r._replace(data=_bytes(r.data)) for r in requests]
            size = sum(len(r.data) for r in requests)
            return message._replace(requests=requests), MESSAGE_BYTES + size
        case Replies(replies=replies):
            replies = [r._replace(data=_bytes(r.data)) for r in replies]
            size = sum(len(r.data) for r in replies)
            return message._replace(replies=replies), MESSAGE_BYTES + size
        case ReadAnswer(data=data):
            return attrs.evolve(message, data=_bytes(data)), MESSAGE_BYTES + len(data)
        case _:
            return message, MESSAGE_BYTES


def _bytes(data: Payload) -> bytes:
    return data if isinstance(data, bytes) else bytes(data)
