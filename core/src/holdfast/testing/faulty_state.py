"""A state store whose faults are switched on and off by a test, around any real store.

It injects what a group must survive (design, R9): the store cannot be reached, it is slow, or it
carries a write out and the answer is lost. It never changes a value: a store that lies is beyond what
any group could survive.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import attrs

from holdfast.errors import StateError
from holdfast.interfaces.state import Change, Entry, NodeSession, StateStore

_T = TypeVar("_T")


@attrs.define(eq=False)
class StateFaults:
    """The switches; one object may be shared by the stores of all nodes, or each has its own."""

    outage: bool = False
    """Every call raises `StateError` and writes nothing; open watches fall silent and catch up
    afterwards."""
    answers_lost: bool = False
    """Every compare-and-set is carried out, and then raises `StateError`."""
    delay_s: float = 0.0
    """How long every call waits before it reaches the store."""
    calls: int = attrs.field(default=0, init=False)
    """How many calls were tried, so that a test can wait until somebody ran into the fault."""
    _healed: anyio.Event = attrs.field(factory=anyio.Event, init=False)

    def heal(self) -> None:
        """Switch everything off; silent watches go on."""
        self.outage, self.answers_lost, self.delay_s = False, False, 0.0
        self._healed.set()
        self._healed = anyio.Event()

    async def pass_through(self) -> None:
        """Wait for `delay_s`, then raise `StateError` in an outage."""
        self.calls += 1
        if self.delay_s:
            await anyio.sleep(self.delay_s)
        if self.outage:
            raise StateError("The state store is out of reach; a test wants it so.")

    async def wait_healed(self) -> None:
        """Return when there is no outage, at once if there is none."""
        while self.outage:
            await self._healed.wait()


@attrs.define(eq=False)
class FaultySession:
    """A lease whose renewals fail in an outage."""

    inner: NodeSession
    faults: StateFaults
    id: str

    async def renew(self) -> None:
        """Live for another `ttl_s`, unless the store is out of reach."""
        await self.faults.pass_through()
        await self.inner.renew()

    async def end(self) -> None:
        """End at once, unless the store is out of reach."""
        await self.faults.pass_through()
        await self.inner.end()


@attrs.define(eq=False)
class FaultyStateStore:
    """`inner`, with the faults that `faults` says at this moment; closing it never fails."""

    inner: StateStore
    faults: StateFaults = attrs.field(factory=StateFaults)

    async def _through(self, call: Callable[[], Awaitable[_T]]) -> _T:
        await self.faults.pass_through()
        return await call()

    async def get(self, key: str) -> Entry | None:
        """Return the entry under `key`, or None."""
        return await self._through(lambda: self.inner.get(key))

    async def list(self, prefix: str) -> Sequence[Entry]:
        """Return the entries whose keys begin with `prefix`."""
        return await self._through(lambda: self.inner.list(prefix))

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        """Write or delete if `expected` is in force; the answer may get lost."""
        entry = await self._through(lambda: self.inner.compare_and_set(key, value, expected))
        if self.faults.answers_lost:
            raise StateError("The answer of the state store was lost; a test wants it so.")
        return entry

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        """Open a stream of changes that says nothing during an outage."""
        await self.faults.pass_through()
        async with self.inner.watch(prefix) as stream:
            yield self._told(stream)

    async def _told(self, stream: AsyncIterator[Change]) -> AsyncIterator[Change]:
        async for change in stream:
            await self.faults.wait_healed()
            yield change

    async def open_session(self, name: str, ttl_s: float) -> FaultySession:
        """Begin the lease of the node `name`."""
        session = await self._through(lambda: self.inner.open_session(name, ttl_s))
        return FaultySession(session, self.faults, session.id)

    async def session_alive(self, name: str) -> str | None:
        """Return the id of the living session of the node `name`, or None."""
        return await self._through(lambda: self.inner.session_alive(name))

    async def aclose(self) -> None:
        """Release the real store."""
        await self.inner.aclose()
