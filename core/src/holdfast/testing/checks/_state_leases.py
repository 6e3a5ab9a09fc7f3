"""What a state store must do with leases: never too short, never for ever."""

from __future__ import annotations

import time

import anyio

from holdfast.errors import StateConflictError
from holdfast.testing.checks import expect
from holdfast.testing.checks._state_bench import (
    Subject,
    bench_of,
    raises,
)


async def check_a_session_lives_while_renewed(subject: Subject) -> None:
    """For longer than its length, without a gap, as another handle sees it."""
    ttl_s = subject.capabilities.shortest_ttl_s
    async with bench_of(subject) as bench:
        store, other = await bench.open(), await bench.open()
        expect(await other.session_alive(bench.key("n")) is None, "Nobody opened that session.")
        session = await store.open_session(bench.key("n"), ttl_s)
        end_s = anyio.current_time() + 2.5 * ttl_s
        while anyio.current_time() < end_s:
            await session.renew()
            alive = await other.session_alive(bench.key("n"))
            expect(alive == session.id, "A session must live while it is renewed.")
            await anyio.sleep(ttl_s / 8)
        await session.end()


async def check_a_session_ends_at_once_when_told(subject: Subject) -> None:
    """Others need not wait for the lease, and ending twice is no fault."""
    async with bench_of(subject) as bench:
        store, other = await bench.open(), await bench.open()
        session = await store.open_session(bench.key("n"), 60.0)
        await session.end()
        expect(await other.session_alive(bench.key("n")) is None, "An ended session still lives.")
        await session.end()
        await raises(StateConflictError, session.renew, "An ended session must not be renewed.")
        expect(
            await other.session_alive(bench.key("n")) is None, "A renewal woke an ended session."
        )


async def check_a_session_runs_out_by_itself(subject: Subject) -> None:
    """Not before its length is over, and soon after; then it cannot be renewed."""
    ttl_s = subject.capabilities.shortest_ttl_s
    async with bench_of(subject) as bench:
        store, other = await bench.open(), await bench.open()
        before_s = time.monotonic()
        session = await store.open_session(bench.key("n"), ttl_s)

        await bench.ends(other, bench.key("n"))
        lived_s = time.monotonic() - before_s
        expect(lived_s >= ttl_s, f"A session of {ttl_s} s ran out after {lived_s:.3f} s.")
        await raises(StateConflictError, session.renew, "A session that is over was renewed.")
        await session.end()


async def check_a_session_outlives_its_handle_no_longer_than_its_lease(subject: Subject) -> None:
    """A process that vanished is over once its lease is."""
    ttl_s = subject.capabilities.shortest_ttl_s
    async with bench_of(subject) as bench:
        other = await bench.open()
        store = await subject.open()
        await store.open_session(bench.key("n"), ttl_s)
        await store.aclose()
        await bench.ends(other, bench.key("n"))


async def check_a_new_session_replaces_the_older(subject: Subject) -> None:
    """A restarted node takes its name over; what is left of the old process cannot disturb it."""
    async with bench_of(subject) as bench:
        store, restarted = await bench.open(), await bench.open()
        old = await store.open_session(bench.key("n"), 60.0)
        bystander = await store.open_session(bench.key("m"), 60.0)
        new = await restarted.open_session(bench.key("n"), 60.0)
        expect(old.id != new.id, "Two sessions must have two ids.")
        alive = await store.session_alive(bench.key("n"))
        expect(alive == new.id, "The newer session must be the living one.")
        await raises(StateConflictError, old.renew, "A replaced session must not be renewed.")
        await old.end()
        alive = await store.session_alive(bench.key("n"))
        expect(alive == new.id, "Ending a replaced session must not end its successor.")
        alive = await store.session_alive(bench.key("m"))
        expect(alive == bystander.id, "A session must not end with that of another name.")
        await new.end()
        await bystander.end()
