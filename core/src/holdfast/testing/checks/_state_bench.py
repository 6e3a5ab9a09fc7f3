"""The workbench of the state store's checks: handles, keys, and waiting with a deadline."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import attrs

from holdfast.errors import HoldfastError
from holdfast.interfaces.state import Change, Entry, StateStore
from holdfast.testing.checks import CheckFailedError, expect

OpenStore = Callable[[], Awaitable[StateStore]]
"""Opens one more handle on the same store."""

_PAUSE_S = 0.01


@attrs.frozen
class Capabilities:
    """What a store declares, so that nothing has to be skipped."""

    durable: bool = True
    """Contents outlive their last handle; if not, they must be gone after it."""
    shortest_ttl_s: float = 0.3
    """The shortest lease that the store keeps; etcd counts in whole seconds."""


@attrs.frozen
class Subject:
    """A store under test, and what it declares of itself."""

    open: OpenStore
    capabilities: Capabilities = Capabilities()
    patience_s: float = 3.0
    """How long a watch may be late, or a lease that ran out may still be told as alive. The interface
    says one second for watches; the rest is for machines that are busy with other tests."""


@attrs.define
class Bench:
    """Handles and keys of one check."""

    subject: Subject
    prefix: str
    _stack: AsyncExitStack

    async def open(self) -> StateStore:
        """Return a handle that is closed when the check ends."""
        store = await self.subject.open()
        self._stack.push_async_callback(store.aclose)
        return store

    def key(self, name: str) -> str:
        """Return a key that no other check uses."""
        return f"{self.prefix}{name}"

    async def next_of(self, stream: AsyncIterator[Change], what: str) -> Change:
        """Return the next change, or fail saying that the watch did not tell `what`."""
        with anyio.move_on_after(self.subject.patience_s):
            return await anext(stream)
        raise CheckFailedError(f"A watch did not tell {what} within {self.subject.patience_s} s.")

    async def tells(self, stream: AsyncIterator[Change], key: str, value: bytes | None) -> None:
        """Pass over older changes until the stream tells that `key` has `value`; None is gone."""
        what = f"that {key} is {'gone' if value is None else 'written'}"
        while True:
            change = await self.next_of(stream, what)
            if change.key == key and (change.entry.value if change.entry else None) == value:
                return

    async def ends(self, store: StateStore, name: str) -> None:
        """Wait until the session of `name` is over, three lengths of a lease and some patience."""
        within_s = 3 * self.subject.capabilities.shortest_ttl_s + self.subject.patience_s
        with anyio.move_on_after(within_s):
            while await store.session_alive(name) is not None:  # noqa: ASYNC110 - nothing tells us.
                await anyio.sleep(_PAUSE_S)
            return
        raise CheckFailedError(f"A session that nobody renews still lives after {within_s:g} s.")


@asynccontextmanager
async def bench_of(subject: Subject) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        bench = Bench(subject, f"check-{secrets.token_hex(6)}/", stack)
        yield bench
        cleaner = await bench.open()
        for entry in await cleaner.list(bench.prefix):
            await cleaner.compare_and_set(entry.key, None, entry.version)


async def write(store: StateStore, key: str, value: bytes) -> Entry:
    """Write whatever is there; only one writer at a time may use it."""
    present = await store.get(key)
    entry = await store.compare_and_set(key, value, None if present is None else present.version)
    expect(entry is not None, "A write must return the new entry.")
    assert entry is not None
    return entry


async def raises(
    error: type[HoldfastError], action: Callable[[], Awaitable[object]], sentence: str
) -> None:
    try:
        await action()
    except error:
        return
    except HoldfastError as other:
        raise CheckFailedError(f"{sentence} It raised {type(other).__name__}.") from other
    raise CheckFailedError(sentence)
