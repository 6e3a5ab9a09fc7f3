"""The workbench of the transport's checks: nodes, links, recorders, and waiting with a deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from holdfast.errors import HoldfastError
from holdfast.interfaces.transport import Accept, Link, LinkHandler, Listener, Transport
from holdfast.messages import (
    Ack,
    Batch,
    Hello,
    Message,
    Op,
    OpKind,
    Payload,
    PeerHello,
    ReadAnswer,
    Replies,
    Requests,
)
from holdfast.testing.checks import CheckFailedError, expect
from holdfast.units import Epoch, NodeName
from holdfast.units import Sequence as Place

OpenTransport = Callable[[str, str], Awaitable[Transport]]
"""Opens the transport of one more node, given cluster and node; it listens on a free address. All
that come from one such function can reach each other."""

CLUSTER = "kit"
HELLO = PeerHello(CLUSTER, NodeName("a"), "session")


@attrs.frozen
class Capabilities:
    """What a transport declares, so that nothing has to be skipped."""

    compresses: bool = True
    """Data that compresses takes fewer bytes on the wire; if not, never fewer."""
    byte_stream: bool = True
    """Links run over TCP connections that strangers can open too; if not, nobody can connect there."""


@attrs.frozen
class Subject:
    """A transport under test, and what it declares of itself."""

    open: OpenTransport
    capabilities: Capabilities = Capabilities()
    patience_s: float = 10.0
    """How long anything that must happen may take on a machine busy with other tests."""


class Recorder:
    """A link handler that keeps everything; `on_call` may be set to act while being called."""

    def __init__(self, patience_s: float) -> None:
        self.messages: list[Message] = []
        self.calls = 0
        """How often `on_messages` was called."""
        self.errors: list[HoldfastError] = []
        self.faults: list[str] = []
        """Promises that were broken towards this handler; the bench fails the check with them."""
        self.hello: Hello | None = None
        self.on_call: Callable[[], None] = lambda: None
        self._patience_s = patience_s
        self._changed = anyio.Event()

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Keep the messages."""
        # Raised here, a failure would end in the transport's event loop and not in the check.
        if not messages:
            self.faults.append("A handler was called with no message.")
        if self.errors:
            self.faults.append("Messages were delivered after on_lost.")
        self.calls += 1
        self.messages.extend(messages)
        self._changed.set()
        self.on_call()

    def on_lost(self, error: HoldfastError) -> None:
        """Keep the error."""
        self.errors.append(error)
        self._changed.set()

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until `holds()`, looking each time something arrives."""
        with anyio.move_on_after(self._patience_s):
            while not holds():
                self._changed = anyio.Event()
                await self._changed.wait()
            return
        raise CheckFailedError(f"Within {self._patience_s:g} s {what} did not happen.")

    async def until_lost(self) -> HoldfastError:
        """Wait for the loss of the link and return its error."""
        await self.until(lambda: bool(self.errors), "on_lost")
        return self.errors[0]

    @property
    def ops(self) -> list[Op]:
        """All operations of all batches, in order."""
        return [op for m in self.messages if isinstance(m, Batch) for op in m.ops]


@attrs.define
class Pair:
    """Two ends of one link."""

    near: Link
    """The end that connected."""
    far: Link
    at_near: Recorder
    at_far: Recorder


@attrs.define
class Bench:
    """The transports and links of one check."""

    subject: Subject
    stack: AsyncExitStack
    recorders: list[Recorder] = attrs.field(factory=list)

    def recorder(self) -> Recorder:
        """Return a fresh handler, whose faults fail the check in the end."""
        recorder = Recorder(self.subject.patience_s)
        self.recorders.append(recorder)
        return recorder

    async def node(self, name: str, cluster: str = CLUSTER) -> Transport:
        """Return the transport of one more node, closed when the check ends."""
        transport = await self.subject.open(cluster, name)
        self.stack.push_async_callback(transport.aclose)
        return transport

    async def listening(self, accept: Accept, node: str = "b") -> tuple[Transport, Listener]:
        """Return a node that listens."""
        transport = await self.node(node)
        listener = await transport.listen(accept)
        self.stack.push_async_callback(listener.aclose)
        return transport, listener

    async def pair(self) -> Pair:
        """Return a link between two fresh nodes, both ends open."""
        pairs = await self.pairs(1)
        return pairs[0]

    async def pairs(self, count: int) -> list[Pair]:
        """Return `count` links between two fresh nodes."""
        accepted: list[tuple[Link, Recorder]] = []

        def accept(link: Link, hello: Hello) -> LinkHandler:
            recorder = self.recorder()
            recorder.hello = hello
            accepted.append((link, recorder))
            return recorder

        _, listener = await self.listening(accept)
        near_node = await self.node("a")
        pairs = []
        for index in range(count):
            recorder = self.recorder()
            near = await near_node.connect(listener.address, HELLO, recorder)
            await self.until(lambda: len(accepted) > index, "the acceptance of a link")  # noqa: B023
            far, at_far = accepted[index]
            pairs.append(Pair(near, far, recorder, at_far))
        return pairs

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until `holds()`, looking at every turn of the event loop."""
        with anyio.move_on_after(self.subject.patience_s):
            while not holds():  # noqa: ASYNC110 - what is waited for gives no notice.
                await anyio.sleep(0.001)
            return
        raise CheckFailedError(f"Within {self.subject.patience_s:g} s {what} did not happen.")


@asynccontextmanager
async def bench(subject: Subject) -> AsyncIterator[Bench]:
    """Open a workbench that closes all it gave out."""
    async with AsyncExitStack() as stack:
        workbench = Bench(subject, stack)
        yield workbench
        await settle()
        for recorder in workbench.recorders:
            for fault in recorder.faults:
                expect(False, fault)


async def settle() -> None:
    """Give every callback that is due its turn, so that what must not happen had its chance."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def write(sequence: int, data: Payload) -> Batch:
    """Return a batch of one write whose place in the stream is `sequence`."""
    ops = [Op(OpKind.WRITE, sequence * 512, len(data), data)]
    return Batch(Epoch(1), Place(sequence), Place(max(0, sequence - 1)), ops)


def ack(sequence: int) -> Ack:
    """Return an acknowledgement of everything up to `sequence`."""
    return Ack(Epoch(1), Place(sequence), Place(0))


def pattern(sequence: int, size: int) -> bytes:
    """Return `size` bytes that differ from those of every other sequence, half compressible."""
    line = sequence.to_bytes(8, "big") + (sequence * 2654435761 % 2**64).to_bytes(8, "big")
    return (line * (size // 16 + 1))[:size]


def settled_form(message: Message) -> Any:
    """Return `message` with lists as tuples and views as bytes, so that equal contents are equal."""
    match message:
        case Batch(ops=ops):
            return message._replace(ops=tuple(op._replace(data=bytes(op.data)) for op in ops))
        case Requests(requests=requests):
            bare = tuple(r._replace(data=bytes(r.data)) for r in requests)
            return message._replace(requests=bare)
        case Replies(replies=replies):
            return message._replace(replies=tuple(r._replace(data=bytes(r.data)) for r in replies))
        case ReadAnswer(data=data):
            return attrs.evolve(message, data=bytes(data))
        case _:
            return message
