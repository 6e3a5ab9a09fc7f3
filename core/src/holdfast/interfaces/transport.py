"""A transport: ordered, reliable links of messages between nodes.

A transport knows frames, compression, checksums, windows and connections; it does not know what a
message means. All callbacks run on the event loop's thread. Nothing here waits per message: `send`
takes a batch and returns, and one wake-up of the receiver delivers every message that has arrived.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs

from holdfast.errors import HoldfastError
from holdfast.interfaces.passing import Passed
from holdfast.messages import Hello, Message


@attrs.define
class TransportCounters:
    """What every transport counts since it was opened; a driver may derive its own from it.

    Bytes include headers, tables and checksums: plain as they would be without compression, wire as
    they go to the peer and come from it.
    """

    frames_sent: int = 0
    frames_stored: int = 0
    """Frames sent plain because the link's data had not compressed."""
    bytes_plain_sent: int = 0
    bytes_wire_sent: int = 0
    frames_received: int = 0
    bytes_plain_received: int = 0
    bytes_wire_received: int = 0

    def sent(self, frames: int, size: int) -> None:
        """Count frames of `size` bytes together that went as they are."""
        self.frames_sent += frames
        self.bytes_plain_sent += size
        self.bytes_wire_sent += size

    def received(self, frames: int, size: int) -> None:
        """Count frames of `size` bytes together that came as they are."""
        self.frames_received += frames
        self.bytes_plain_received += size
        self.bytes_wire_received += size

    def as_metrics(self) -> dict[str, float]:
        """Return the counters by name."""
        return attrs.asdict(self)


class LinkHandler(Protocol):
    """What the owner of a link supplies."""

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Take what has arrived, in order.

        Payloads may be views into a receive buffer; they stay valid as long as a reference is held.
        """
        ...

    def on_lost(self, error: HoldfastError) -> None:
        """The link is gone, by the peer's doing or the network's.

        Called once, never after `Link.close`. `RemoteProtocolError` says that the peer sent rubbish,
        `RefusedError` that it would not talk to us, `UnavailableError` everything else.
        """
        ...


class Link(Protocol):
    """One open link."""

    peer: str
    """Who is at the other end, for logs."""

    def send(self, messages: Sequence[Message]) -> None:
        """Send in order after everything sent before.

        Never blocks and never raises for a lost link (that is told by `on_lost`); messages sent on a
        lost or closed link are dropped.

        Payloads must not change afterwards. A `Batch`, `Requests` or `Replies` larger than a frame
        may arrive as several, each batch with its own `first`; of `Ack`s of one epoch sent right
        behind one another only the last need arrive.
        """
        ...

    @property
    def unsent_bytes(self) -> int:
        """Bytes accepted by `send` that the operating system has not taken yet; owners bound it."""
        ...

    def close(self, reason: str = "") -> None:
        """Send what was accepted, then close; `on_lost` is not called. Idempotent."""
        ...

    def abort(self) -> None:
        """Close at once, dropping what was not sent; `on_lost` is not called. Idempotent."""
        ...


class Listener(Protocol):
    """An open listening socket."""

    address: str
    """`host:port` really bound (port 0 in the configuration picks a free one)."""

    async def aclose(self) -> None:
        """Stop listening and abort every link that was accepted."""
        ...


Accept = Callable[[Link, Hello], LinkHandler | None]
"""Called with a new link and its first message. Returns who handles it, or None after having sent a
`Refused` and closed the link itself."""


class Transport(Protocol):
    """An open transport of one node."""

    async def listen(self, accept: Accept) -> Listener:
        """Listen where the options say.

        Raises:
            UnavailableError: The address cannot be had; names it and who may hold it.
        """
        ...

    async def connect(self, address: str, hello: Hello, handler: LinkHandler) -> Link:
        """Open a link to `address` (`host:port`) and send `hello` as its first message.

        Returns as soon as the connection and the transport's own handshake stand; the answer to
        `hello` arrives at the handler like any message.

        Raises:
            ConnectionRefusedError: Nothing listens there: the peer's process is gone.
            UnavailableError: No connection within the transport's `connect_timeout_s`.
            RefusedError: The peer speaks another version, cluster or compression.
        """
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return counters by name, at least those of `TransportCounters`."""
        ...

    async def aclose(self) -> None:
        """Abort every link and stop every listener."""
        ...


@runtime_checkable
class PassingLink(Link, Protocol):
    """A link that another process of the node can go on with."""

    def pass_on(self) -> Passed:
        """Let go of the connection, for `PassingTransport.adopt` of another process.

        Only from within `Accept`, which then returns None. What the peer has sent, its first message
        included, goes along, so that the other process accepts the link as if it had come there.
        """
        ...


@runtime_checkable
class PassingTransport(Transport, Protocol):
    """A transport whose accepted links are `PassingLink`s."""

    async def adopt(self, passed: Passed, accept: Accept) -> None:
        """Go on with a connection that another process of this node has accepted.

        Raises:
            OSError: The connection is gone already.
        """
        ...


class TransportDriver(Protocol):
    """What an entry point in `holdfast.transport` names: a class with these."""

    API_VERSION: int
    name: str
    Options: type[Any]

    open: Callable[[Any, str, str], Awaitable[Transport]]
    """`await Driver.open(options, cluster, node)` returns the node's transport."""
