"""A transport around another one: counts the messages, and may hold each back for a while.

It shows how to build on an installed transport without importing it: the inner one is found by its
entry point, so any will do.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar

import attrs

from holdfast.errors import DriverError, HoldfastError
from holdfast.interfaces import API_VERSION
from holdfast.interfaces.transport import Accept, Link, LinkHandler, Listener, Transport
from holdfast.messages import Batch, Hello, Message, ReadAnswer, Replies, Requests

__all__ = ["CountedOptions", "CountedTransport", "CountedTransportDriver"]


@attrs.frozen
class CountedOptions:
    """Parameters of `counted`."""

    inner: str = "tcp"
    """The transport that carries the messages."""
    settings: Mapping[str, str] = attrs.field(factory=dict)
    """Its options, each written as a string."""
    delay_s: float = attrs.field(default=0.0, metadata={"min": 0})
    """How long each message is held back before the inner transport has it."""


class CountedLink:
    """A link that counts what it sends, and holds it back if it is told to."""

    def __init__(self, inner: Link, counts: Counter[str], delay_s: float) -> None:
        """Send through `inner`."""
        self.peer = inner.peer
        self._inner = inner
        self._counts = counts
        self._delay_s = delay_s
        self._held: deque[tuple[Sequence[Message], int]] = deque()
        self._held_bytes = 0
        self._ended = False

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the inner link has not got rid of, with those that are held back here."""
        return self._inner.unsent_bytes + self._held_bytes

    def send(self, messages: Sequence[Message]) -> None:
        """Count, then send or hold back, in order."""
        if self._ended:
            return
        self._counts["messages_sent"] += len(messages)
        if self._delay_s == 0:
            self._inner.send(messages)
            return
        # Each timer lets one batch go, whichever it was set for, so timers may fire in any order.
        held_bytes = sum(map(_payload_bytes, messages))
        self._held.append((messages, held_bytes))
        self._held_bytes += held_bytes
        asyncio.get_running_loop().call_later(self._delay_s, self._release)

    def close(self, reason: str = "") -> None:
        """Let everything go, then close."""
        self._ended = True
        while self._held:
            self._release()
        self._inner.close(reason)

    def abort(self) -> None:
        """Close at once."""
        self._ended = True
        self._held.clear()
        self._held_bytes = 0
        self._inner.abort()

    def _release(self) -> None:
        if self._held:
            messages, held_bytes = self._held.popleft()
            self._held_bytes -= held_bytes
            self._inner.send(messages)


def _payload_bytes(message: Message) -> int:
    """Return the size of what a message carries; its own few bytes do not count."""
    match message:
        case Batch(ops=parts) | Requests(requests=parts) | Replies(replies=parts):
            return sum(len(part.data) for part in parts)
        case ReadAnswer(data=data):
            return len(data)
        case _:
            return 0


class _CountedHandler:
    """Counts what arrives on its way to its owner."""

    def __init__(self, inner: LinkHandler, counts: Counter[str]) -> None:
        self._inner = inner
        self._counts = counts

    def on_messages(self, messages: Sequence[Message]) -> None:
        self._counts["messages_received"] += len(messages)
        self._inner.on_messages(messages)

    def on_lost(self, error: HoldfastError) -> None:
        self._inner.on_lost(error)


class CountedTransport:
    """One node's transport, around the inner one."""

    def __init__(self, inner: Transport, options: CountedOptions) -> None:
        """Carry everything by `inner`."""
        self._inner = inner
        self._options = options
        self._counts = Counter(messages_sent=0, messages_received=0)

    async def listen(self, accept: Accept) -> Listener:
        """Listen where the inner transport does."""

        def counting(link: Link, hello: Hello) -> LinkHandler | None:
            handler = accept(CountedLink(link, self._counts, self._options.delay_s), hello)
            return None if handler is None else _CountedHandler(handler, self._counts)

        return await self._inner.listen(counting)

    async def connect(self, address: str, hello: Hello, handler: LinkHandler) -> Link:
        """Connect as the inner transport does."""
        link = await self._inner.connect(address, hello, _CountedHandler(handler, self._counts))
        return CountedLink(link, self._counts, self._options.delay_s)

    def metrics(self) -> Mapping[str, float]:
        """Return the inner transport's metrics, with `messages_sent` and `messages_received`."""
        return {**self._inner.metrics(), **self._counts}

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()


class CountedTransportDriver:
    """The driver `counted`."""

    API_VERSION: ClassVar[int] = API_VERSION
    name: ClassVar[str] = "counted"
    Options: ClassVar[type[CountedOptions]] = CountedOptions

    @staticmethod
    async def open(options: CountedOptions, cluster: str, node: str) -> CountedTransport:
        """Open the inner transport, and this one around it.

        Raises:
            DriverError: The inner transport is not installed, or has no such option.
        """
        found = list(entry_points(group="holdfast.transport", name=options.inner))
        if not found or options.inner == CountedTransportDriver.name:
            raise DriverError(f"There is no transport {options.inner!r} to count.")
        driver = found[0].load()
        inner = await driver.open(_inner_options(driver.Options, options.settings), cluster, node)
        return CountedTransport(inner, options)


def _inner_options(cls: type[Any], settings: Mapping[str, str]) -> Any:
    """Return the inner driver's options; a number is told from a word by its default."""
    fields = attrs.fields_dict(cls)
    unknown = settings.keys() - fields.keys()
    if unknown:
        raise DriverError(f"The inner transport has no option {min(unknown)!r}.")
    values: dict[str, Any] = {}
    for key, text in settings.items():
        default = fields[key].default
        convert: Any = type(default) if type(default) in {int, float} else str
        values[key] = convert(text)
    return cls(**values)
