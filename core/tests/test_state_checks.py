"""The kit of the state store is itself held to its word: each broken store must be caught.

Every store here is `memory` with one promise broken, and names the check that must notice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from holdfast.errors import StateConflictError, StateError
from holdfast.interfaces.state import Change, Entry, NodeSession, StateStore
from holdfast.local.memory_state import (
    MemoryStateDriver,
    MemoryStateOptions,
    MemoryStateStore,
)
from holdfast.testing.checks import CheckFailedError
from holdfast.testing.checks.state import CHECKS, Capabilities, Subject, run_checks
from holdfast.testing.conformance_state import StateConformance
from holdfast.testing.faulty_state import FaultyStateStore, StateFaults

pytest_plugins = ["pytester"]

_names = count()


class Wrapped:
    """`memory` behind a thin wall; what a broken store does not override, works."""

    must_fail = ""

    def __init__(self, inner: StateStore) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class IgnoresVersions(Wrapped):
    """Checks whether the key exists, not which version it has."""

    must_fail = "check_a_stale_version_writes_nothing"

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        present = await self.inner.get(key)
        if expected is not None and present is not None:
            expected = present.version
        return await self.inner.compare_and_set(key, value, expected)


class OverwritesOnCreation(Wrapped):
    """Takes `expected=None` for "any version", as some stores' clients do."""

    must_fail = "check_a_creation_needs_an_absent_key"

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        if expected is None and (present := await self.inner.get(key)) is not None:
            expected = present.version
        return await self.inner.compare_and_set(key, value, expected)


class ComparesThenSets(Wrapped):
    """Lets somebody else in between the comparison and the write."""

    must_fail = "check_concurrent_increments_lose_nothing"

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        present = await self.inner.get(key)
        if (None if present is None else present.version) != expected:
            raise StateConflictError("no")
        await anyio.lowlevel.checkpoint()
        present = await self.inner.get(key)
        return await self.inner.compare_and_set(
            key, value, None if present is None else present.version
        )


class CountsPerKey(Wrapped):
    """Begins again at version 1 when a key is created anew: compare-and-set then meets a twin."""

    must_fail = "check_a_version_is_never_used_twice"

    def __init__(self, inner: StateStore) -> None:
        super().__init__(inner)
        self._own: dict[str, tuple[int, int]] = {}

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        own, real = self._own.get(key, (0, 0))
        if expected == own:
            expected = real
        entry = await self.inner.compare_and_set(key, value, expected)
        if entry is None:
            self._own.pop(key, None)
            return None
        self._own[key] = (own + 1, entry.version)
        return attrs.evolve(entry, version=own + 1)

    async def get(self, key: str) -> Entry | None:
        entry = await self.inner.get(key)
        return entry and attrs.evolve(entry, version=self._own[key][0])

    async def list(self, prefix: str) -> Sequence[Entry]:
        entries = await self.inner.list(prefix)
        return [attrs.evolve(e, version=self._own[e.key][0]) for e in entries]


class CutsValues(Wrapped):
    """Keeps 32 KiB of a value."""

    must_fail = "check_a_value_is_read_back_through_another_handle"

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        return await self.inner.compare_and_set(key, value and value[: 32 * 1024], expected)


class ListsWithLike(Wrapped):
    """Takes `_` for any character, as SQL's LIKE does."""

    must_fail = "check_a_list_is_sorted_and_keeps_to_its_prefix"

    async def list(self, prefix: str) -> Sequence[Entry]:
        wild = prefix.partition("_")[0]
        return [e for e in await self.inner.list(wild) if len(e.key) >= len(prefix)]


class ListsUnsorted(Wrapped):
    must_fail = "check_a_list_is_sorted_and_keeps_to_its_prefix"

    async def list(self, prefix: str) -> Sequence[Entry]:
        return (await self.inner.list(prefix))[::-1]


class OnlyHidesDeleted(Wrapped):
    """Deletes for `get`, and still lists the key."""

    must_fail = "check_a_deletion_leaves_nothing"

    async def list(self, prefix: str) -> Sequence[Entry]:
        entries = list(await self.inner.list(prefix))
        if not entries and "check-" in prefix:
            entries.append(Entry(prefix + "a", b"1", 1))
        return entries


class _FilteredWatch(Wrapped):
    def keep(self, change: Change) -> bool:
        raise NotImplementedError

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        async with self.inner.watch(prefix) as stream:
            yield (change async for change in stream if self.keep(change))


class ForgetsDeletions(_FilteredWatch):
    must_fail = "check_a_watch_tells_creation_change_and_deletion"

    def keep(self, change: Change) -> bool:
        return change.entry is not None


class BeginsEmpty(Wrapped):
    """Tells changes only, not what is present at the beginning."""

    must_fail = "check_a_watch_begins_with_what_is_present"

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        present = {entry.version for entry in await self.inner.list(prefix)}
        async with self.inner.watch(prefix) as stream:
            yield (c async for c in stream if c.entry is None or c.entry.version not in present)


class GoesBack(Wrapped):
    """Tells every second change after the one that followed it."""

    must_fail = "check_a_watch_never_goes_back"

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        async def swapped(stream: AsyncIterator[Change]) -> AsyncIterator[Change]:
            held: dict[str, Change] = {}
            async for change in stream:
                yield change
                if (older := held.pop(change.key, None)) is not None:
                    yield older
                else:
                    held[change.key] = change

        async with self.inner.watch(prefix) as stream:
            yield swapped(stream)


class LosesWhatRacesTheOpening(Wrapped):
    """Lists first and listens afterwards."""

    must_fail = "check_no_change_is_lost_while_a_watch_opens"

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        listed = [Change(e.key, e) for e in await self.inner.list(prefix)]
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        async with self.inner.watch(prefix) as stream:
            late = [Change(e.key, e) for e in await self.inner.list(prefix)]

            async def told() -> AsyncIterator[Change]:
                for change in listed:
                    yield change
                async for change in stream:
                    if change not in late:
                        yield change

            yield told()


class TellsOneWatchOnly(Wrapped):
    """The first change goes to whoever asks first."""

    must_fail = "check_every_watch_is_told_its_own"

    def __init__(self, inner: StateStore) -> None:
        super().__init__(inner)
        self._told: set[int] = set()

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        async def rest(stream: AsyncIterator[Change]) -> AsyncIterator[Change]:
            async for change in stream:
                if change.entry is None or change.entry.version not in self._told:
                    self._told.add(change.entry.version if change.entry else 0)
                    yield change

        async with self.inner.watch(prefix) as stream:
            yield rest(stream)


class KeepsTheFirstUnread(Wrapped):
    """A full queue drops what is newest, so a slow reader never learns the end."""

    must_fail = "check_a_slow_reader_learns_how_things_stand"

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        send, receive = anyio.create_memory_object_stream[Change](8)

        async def pump(stream: AsyncIterator[Change]) -> None:
            async for change in stream:
                try:
                    send.send_nowait(change)
                except anyio.WouldBlock:
                    continue

        with send, receive:
            async with self.inner.watch(prefix) as stream, anyio.create_task_group() as group:
                group.start_soon(pump, stream)
                yield receive
                group.cancel_scope.cancel()


class FallsSilentWhenClosed(Wrapped):
    """A watch of a closed handle waits for ever."""

    must_fail = "check_a_closed_handle_answers_with_state_error"

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        async def silent(stream: AsyncIterator[Change]) -> AsyncIterator[Change]:
            try:
                async for change in stream:
                    yield change
            except StateError:
                await anyio.sleep_forever()

        async with self.inner.watch(prefix) as stream:
            yield silent(stream)


class TakesAnyKey(Wrapped):
    must_fail = "check_what_no_store_holds_is_refused"

    async def get(self, key: str) -> Entry | None:
        return await self.inner.get(key.replace(" ", "-") or "empty")


class KeepsNothing(Wrapped):
    """Is declared durable, and is not."""

    must_fail = "check_contents_are_as_durable_as_declared"


class LivesForEver(Wrapped):
    """Leases that nobody renews do not run out."""

    must_fail = "check_a_session_runs_out_by_itself"

    async def open_session(self, name: str, ttl_s: float) -> NodeSession:
        return await self.inner.open_session(name, ttl_s * 1000)


class DiesEarly(Wrapped):
    must_fail = "check_a_session_runs_out_by_itself"

    async def open_session(self, name: str, ttl_s: float) -> NodeSession:
        return await self.inner.open_session(name, ttl_s / 4)


class EndsByName(Wrapped):
    """Ending any session of a name ends the one in force: a straggler kills its successor."""

    must_fail = "check_a_new_session_replaces_the_older"

    async def open_session(self, name: str, ttl_s: float) -> NodeSession:
        session = await self.inner.open_session(name, ttl_s)
        shelf = self.inner._shelf  # type: ignore[attr-defined]

        async def end() -> None:
            shelf.leases.pop(name, None)

        session.end = end  # type: ignore[method-assign]
        return session


class WaitsForTheLease(Wrapped):
    """`end` does nothing, so others wait until the lease runs out."""

    must_fail = "check_a_session_ends_at_once_when_told"

    async def open_session(self, name: str, ttl_s: float) -> NodeSession:
        session = await self.inner.open_session(name, ttl_s)
        session.end = anyio.lowlevel.checkpoint  # type: ignore[method-assign]
        return session


class ForgetsRenewals(Wrapped):
    must_fail = "check_a_session_lives_while_renewed"

    async def open_session(self, name: str, ttl_s: float) -> NodeSession:
        session = await self.inner.open_session(name, ttl_s)
        session.renew = anyio.lowlevel.checkpoint  # type: ignore[method-assign]
        return session


class OutlivesItsHandle(Wrapped):
    """A lease is kept alive by a machine that nobody owns any more."""

    must_fail = "check_a_session_outlives_its_handle_no_longer_than_its_lease"

    async def open_session(self, name: str, ttl_s: float) -> NodeSession:
        return await self.inner.open_session(name, ttl_s * 1000)


BROKEN = [
    IgnoresVersions,
    OverwritesOnCreation,
    ComparesThenSets,
    CountsPerKey,
    CutsValues,
    ListsWithLike,
    ListsUnsorted,
    OnlyHidesDeleted,
    ForgetsDeletions,
    BeginsEmpty,
    GoesBack,
    LosesWhatRacesTheOpening,
    TellsOneWatchOnly,
    KeepsTheFirstUnread,
    FallsSilentWhenClosed,
    TakesAnyKey,
    KeepsNothing,
    LivesForEver,
    DiesEarly,
    EndsByName,
    WaitsForTheLease,
    ForgetsRenewals,
    OutlivesItsHandle,
]
TTL_S = 0.05


def _subject(wrap: Callable[[MemoryStateStore], Any], *, durable: bool = False) -> Subject:
    options = MemoryStateOptions(name=f"broken-{next(_names)}")

    async def open_one() -> StateStore:
        store: StateStore = wrap(await MemoryStateDriver.open(options))
        return store

    return Subject(open_one, Capabilities(durable=durable, shortest_ttl_s=TTL_S), patience_s=0.2)


@pytest.mark.anyio
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
async def test_a_broken_store_is_caught(broken: Any) -> None:
    checks = [check for check in CHECKS if check.__name__ == broken.must_fail]
    results = await run_checks(_subject(broken, durable=broken is KeepsNothing), checks)
    failure = results[broken.must_fail]
    assert isinstance(failure, CheckFailedError), failure or "the kit noticed nothing"
    print(f"{broken.__name__}: {failure}")  # noqa: T201 - the sentence is for a person to judge.


def test_every_check_but_the_plainest_has_a_store_that_fails_it() -> None:
    caught = {broken.must_fail for broken in BROKEN}
    assert {check.__name__ for check in CHECKS} - caught == {"check_a_missing_key_is_none"}


@pytest.mark.anyio
async def test_a_good_store_behind_the_same_wall_passes() -> None:
    """So the broken ones fail for what they break, not for the wall or the short times."""
    results = await run_checks(attrs.evolve(_subject(Wrapped), patience_s=3.0))
    assert {name: error for name, error in results.items() if error is not None} == {}
    assert len(results) == len(CHECKS) > 20


@pytest.mark.anyio
async def test_a_kit_that_ran_nothing_fails() -> None:
    with pytest.raises(CheckFailedError, match="no check at all"):
        await run_checks(_subject(Wrapped), [])


def test_the_pytest_class_fails_when_every_check_was_kept_from_running(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import pytest
        from holdfast.testing.conformance_state import StateConformance

        class TestNothing(StateConformance):
            @pytest.fixture
            def open_store(self):
                pytest.skip("no server here")
        """
    )
    result = pytester.runpytest_inprocess("-p", "anyio", "-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes.get("errors", 0) >= 1, outcomes
    assert outcomes.get("passed", 0) == 0


def test_the_pytest_class_holds_every_check() -> None:
    marks: list[pytest.Mark] = vars(StateConformance.test_store)["pytestmark"]
    assert [mark.args[1] for mark in marks if mark.name == "parametrize"] == [CHECKS]


@pytest.mark.anyio
async def test_faults_that_are_off_leave_a_store_whole() -> None:
    subject = attrs.evolve(_subject(FaultyStateStore), patience_s=3.0)
    results = await run_checks(subject)
    assert {name: error for name, error in results.items() if error is not None} == {}


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyStateStore]:
    store = FaultyStateStore(
        await MemoryStateDriver.open(MemoryStateOptions(name=f"faulty-{next(_names)}"))
    )
    yield store
    await store.aclose()


@pytest.mark.anyio
async def test_an_outage_writes_nothing_and_ends(faulty: FaultyStateStore) -> None:
    session = await faulty.open_session("n1", 60.0)
    faulty.faults.outage = True
    for call in (
        partial(faulty.get, "a"),
        partial(faulty.list, "a"),
        partial(faulty.compare_and_set, "a", b"1", None),
        partial(faulty.open_session, "n1", 1.0),
        partial(faulty.session_alive, "n1"),
        session.renew,
        session.end,
    ):
        with pytest.raises(StateError):
            await call()
    faulty.faults.heal()
    assert await faulty.get("a") is None
    assert await faulty.session_alive("n1") == session.id
    assert faulty.faults.calls == 10


@pytest.mark.anyio
async def test_a_lost_answer_is_a_write_all_the_same(faulty: FaultyStateStore) -> None:
    faulty.faults.answers_lost = True
    with pytest.raises(StateError, match="lost"):
        await faulty.compare_and_set("a", b"1", None)
    entry = await faulty.get("a")
    assert entry is not None
    assert entry.value == b"1"


@pytest.mark.anyio
async def test_a_watch_is_silent_in_an_outage_and_catches_up(faulty: FaultyStateStore) -> None:
    async with faulty.watch("a") as stream:
        faulty.faults.outage = True
        await faulty.inner.compare_and_set("a", b"1", None)
        told: list[Change] = []

        async def follow() -> None:
            told.append(await anext(stream))

        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            assert not told
            faulty.faults.heal()
        assert told[0].key == "a"


@pytest.mark.anyio
async def test_a_slow_store_can_be_given_up_on() -> None:
    faults = StateFaults(delay_s=60.0)
    store = FaultyStateStore(await MemoryStateDriver.open(MemoryStateOptions("slow")), faults)
    with pytest.raises(TimeoutError), anyio.fail_after(0.01):
        await store.get("a")
    await store.aclose()
