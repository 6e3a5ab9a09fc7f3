"""A transport around another one: counts messages by type, and carries nothing itself.

A template for transports: every method that one has is here, and each says what yours would do in
its place. The inner transport is found by its entry point, so any installed one will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar

import attrs

from holdfast.errors import DriverError, HoldfastError
from holdfast.interfaces import API_VERSION
from holdfast.interfaces.transport import Accept, Link, LinkHandler, Listener, Transport
from holdfast.messages import Hello, Message

__all__ = ["TallyOptions", "TallyTransport", "TallyTransportDriver"]


@attrs.frozen
class TallyOptions:
    """Parameters of `tally`: what `[transport.tally]` may say."""

    inner: str = "tcp"
    """The transport that carries the messages."""
    port: int = attrs.field(default=5703, metadata={"min": 0, "max": 65535})
    """Its port; 0 picks a free one."""


@attrs.define(eq=False)
class TallyLink:
    """One link: `send` never blocks and never raises, whatever has become of the other end."""

    inner: Link
    counts: Counter[str]
    peer: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Know the peer by its name, for logs."""
        self.peer = self.inner.peer

    @property
    def unsent_bytes(self) -> int:
        """Bytes accepted that the operating system has not taken; owners bound what they send."""
        return self.inner.unsent_bytes

    def send(self, messages: Sequence[Message]) -> None:
        """Take a batch; yours encodes it and hands it to its socket."""
        self.counts.update(f"sent_{type(each).__name__}" for each in messages)
        self.inner.send(messages)

    def close(self, reason: str = "") -> None:
        """Send what was accepted, then close; the handler is not told."""
        self.inner.close(reason)

    def abort(self) -> None:
        """Close at once."""
        self.inner.abort()


@attrs.define(eq=False)
class TallyHandler:
    """Counts what arrives on its way to the link's owner; yours calls the owner from its socket."""

    inner: LinkHandler
    counts: Counter[str]

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Pass on what one wake-up has brought, all of it at once."""
        self.counts.update(f"received_{type(each).__name__}" for each in messages)
        self.inner.on_messages(messages)

    def on_lost(self, error: HoldfastError) -> None:
        """Pass on that the link is gone; once, and never after `close`."""
        self.inner.on_lost(error)


@attrs.define(eq=False)
class TallyTransport:
    """One node's transport."""

    inner: Transport
    counts: Counter[str] = attrs.field(factory=Counter)

    async def listen(self, accept: Accept) -> Listener:
        """Listen; every accepted link is shown to `accept` together with its first message."""

        def counting(link: Link, hello: Hello) -> LinkHandler | None:
            handler = accept(TallyLink(link, self.counts), hello)
            return None if handler is None else TallyHandler(handler, self.counts)

        return await self.inner.listen(counting)

    async def connect(self, address: str, hello: Hello, handler: LinkHandler) -> Link:
        """Connect, send `hello` as the first message, and return without awaiting its answer."""
        link = await self.inner.connect(address, hello, TallyHandler(handler, self.counts))
        return TallyLink(link, self.counts)

    def metrics(self) -> Mapping[str, float]:
        """Return counters; the kit knows which names there must be at least."""
        return {**self.inner.metrics(), **self.counts}

    async def aclose(self) -> None:
        """Abort every link and stop every listener."""
        await self.inner.aclose()


class TallyTransportDriver:
    """The driver `tally`; what the entry point names."""

    API_VERSION: ClassVar[int] = API_VERSION
    name: ClassVar[str] = "tally"
    Options: ClassVar[type[TallyOptions]] = TallyOptions
    CONFORMANCE: ClassVar[Mapping[str, Any]] = {"options": {"port": 0}}

    @staticmethod
    async def open(options: TallyOptions, cluster: str, node: str) -> TallyTransport:
        """Return the transport of `node`, a member of `cluster`.

        Raises:
            DriverError: The inner transport is not installed.
        """
        found = list(entry_points(group="holdfast.transport", name=options.inner))
        if not found or options.inner == TallyTransportDriver.name:
            raise DriverError(f"There is no transport {options.inner!r} whose messages to count.")
        driver = found[0].load()
        inner = await driver.open(driver.Options(port=options.port), cluster, node)
        return TallyTransport(inner)
