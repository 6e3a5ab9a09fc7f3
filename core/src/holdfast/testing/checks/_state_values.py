"""What a state store must do with values: compare-and-set above all."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.lowlevel

from holdfast.errors import StateConflictError, UsageError
from holdfast.interfaces.state import KEY_CHARS_MAX, VALUE_BYTES_MAX
from holdfast.testing.checks import expect
from holdfast.testing.checks._state_bench import (
    Subject,
    bench_of,
    raises,
    write,
)


async def check_a_missing_key_is_none(subject: Subject) -> None:
    """Reading what nobody wrote answers None, without an error."""
    async with bench_of(subject) as bench:
        store = await bench.open()
        expect(await store.get(bench.key("none")) is None, "A missing key must read as None.")
        expect(not await store.list(bench.key("none")), "A prefix of nothing must list nothing.")


async def check_a_value_is_read_back_through_another_handle(subject: Subject) -> None:
    """All bytes come back: none, every byte value, and as many as are allowed."""
    async with bench_of(subject) as bench:
        writer, reader = await bench.open(), await bench.open()
        for value in (b"", bytes(range(256)), b"\xff" * VALUE_BYTES_MAX):
            written = await write(writer, bench.key("value"), value)
            expect(written.key == bench.key("value"), "The entry must name the key written.")
            read = await reader.get(bench.key("value"))
            expect(read == written, f"{len(value)} bytes written must be read back as they were.")
            expect(read is not None and read.value == value, "The bytes must be those written.")


async def check_a_creation_needs_an_absent_key(subject: Subject) -> None:
    """`expected=None` means that the key must not exist."""
    async with bench_of(subject) as bench:
        store, other = await bench.open(), await bench.open()
        await store.compare_and_set(bench.key("a"), b"1", None)
        await raises(
            StateConflictError,
            lambda: other.compare_and_set(bench.key("a"), b"2", None),
            "Creating a key that exists must be a conflict.",
        )
        read = await other.get(bench.key("a"))
        expect(read is not None and read.value == b"1", "A lost compare-and-set wrote a value.")


async def check_a_stale_version_writes_nothing(subject: Subject) -> None:
    """A compare-and-set on an old version, or on a missing key, leaves everything as it was."""
    async with bench_of(subject) as bench:
        store = await bench.open()
        old = await write(store, bench.key("a"), b"1")
        new = await write(store, bench.key("a"), b"2")
        for value in (b"3", None):
            await raises(
                StateConflictError,
                partial(store.compare_and_set, bench.key("a"), value, old.version),
                "A compare-and-set on an old version must be a conflict.",
            )
        expect(await store.get(bench.key("a")) == new, "A lost compare-and-set changed the key.")
        await raises(
            StateConflictError,
            lambda: store.compare_and_set(bench.key("b"), b"3", new.version),
            "A compare-and-set on a missing key must be a conflict.",
        )
        expect(await store.get(bench.key("b")) is None, "A lost compare-and-set made a key.")


async def check_a_version_is_never_used_twice(subject: Subject) -> None:
    """Not by the same value written again, not by another key, not after a deletion."""
    async with bench_of(subject) as bench:
        store = await bench.open()
        versions = [
            (await write(store, bench.key(name), b"same")).version for name in ("a", "b", "a", "a")
        ]
        await store.compare_and_set(bench.key("a"), None, versions[-1])
        created = await store.compare_and_set(bench.key("a"), b"same", None)
        expect(created is not None, "A deleted key must be free to be created.")
        versions.append(created.version if created else 0)
        expect(len(set(versions)) == len(versions), f"Versions were used twice: {versions}.")


async def check_a_deletion_leaves_nothing(subject: Subject) -> None:
    """Deleting returns None, and neither `get` nor `list` finds the key afterwards."""
    async with bench_of(subject) as bench:
        store, other = await bench.open(), await bench.open()
        entry = await write(store, bench.key("a"), b"1")
        gone = await store.compare_and_set(bench.key("a"), None, entry.version)
        expect(gone is None, "A deletion must return None.")
        expect(await other.get(bench.key("a")) is None, "A deleted key must not be read.")
        expect(not await other.list(bench.prefix), "A deleted key must not be listed.")
        again = await store.compare_and_set(bench.key("a"), None, None)
        expect(again is None, "Deleting what must be and is absent must do nothing.")


async def check_concurrent_increments_lose_nothing(subject: Subject) -> None:
    """Handles that add one, each by compare-and-set, arrive at the sum."""
    handles, rounds = 4, 12
    async with bench_of(subject) as bench:
        key = bench.key("counter")
        await (await bench.open()).compare_and_set(key, b"0", None)

        async def add() -> None:
            store = await bench.open()
            for _ in range(rounds):
                while True:
                    present = await store.get(key)
                    expect(present is not None, "A key vanished under compare-and-set.")
                    assert present is not None
                    try:
                        value = b"%d" % (int(present.value) + 1)
                        await store.compare_and_set(key, value, present.version)
                        break
                    except StateConflictError:
                        await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for _ in range(handles):
                group.start_soon(add)
        last = await (await bench.open()).get(key)
        value = b"" if last is None else last.value
        expect(value == b"%d" % (handles * rounds), f"Updates were lost: the sum is {value!r}.")


async def check_a_list_is_sorted_and_keeps_to_its_prefix(subject: Subject) -> None:
    """By key, case counts, and characters that are wild elsewhere are plain."""
    async with bench_of(subject) as bench:
        store = await bench.open()
        for name in ("p_1", "p_10", "p_2", "P_1", "px1", "p", "q", "p_1/x", "p-1", "p.1"):
            await write(store, bench.key(name), name.encode())
        listed = [entry.key for entry in await store.list(bench.key("p_"))]
        expected = [bench.key(name) for name in ("p_1", "p_1/x", "p_10", "p_2")]
        expect(listed == expected, f"list('p_') gave {listed}.")
        everything = [entry.key for entry in await store.list(bench.prefix)]
        expect(everything == sorted(everything), f"A list must be sorted by key: {everything}.")
        expect(len(everything) == 10, f"A list must be complete: {everything}.")
        values = [entry.value for entry in await store.list(bench.key("q"))]
        expect(values == [b"q"], f"A list must carry the values: {values}.")


async def check_what_no_store_holds_is_refused(subject: Subject) -> None:
    """Wrong keys, long values and leases of no length are the caller's fault."""
    async with bench_of(subject) as bench:
        store = await bench.open()
        for key in ("", "with space", "umläut", "per%cent", "nul\0", "k" * (KEY_CHARS_MAX + 1)):
            actions: tuple[Callable[[], Awaitable[object]], ...] = (
                partial(store.get, key),
                partial(store.compare_and_set, key, b"", None),
                partial(store.session_alive, key),
                partial(store.open_session, key, 1.0),
            )
            for action in actions:
                await raises(UsageError, action, f"The key {key[:20]!r} must be refused.")
        longest = bench.key("k").ljust(KEY_CHARS_MAX, "k")
        await write(store, longest, b"")
        expect(await store.get(longest) is not None, "A key of the full length must work.")
        too_long = bytes(VALUE_BYTES_MAX + 1)
        await raises(
            UsageError,
            lambda: store.compare_and_set(bench.key("a"), too_long, None),
            "A value above VALUE_BYTES_MAX must be refused.",
        )
        for ttl_s in (0.0, -1.0, math.nan):
            await raises(
                UsageError,
                partial(store.open_session, bench.key("n"), ttl_s),
                f"A lease of {ttl_s} s must be refused.",
            )


async def check_contents_are_as_durable_as_declared(subject: Subject) -> None:
    """A closed handle takes nothing along; whether the last one does is declared."""
    async with bench_of(subject) as bench:
        first = await subject.open()
        try:
            written = await write(first, bench.key("a"), b"1")
        finally:
            await first.aclose()
        read = await (await bench.open()).get(bench.key("a"))
        if subject.capabilities.durable:
            expect(read == written, "What was written must outlive its handle.")
        else:
            expect(read is None, "The store is declared as not durable, and yet it kept a key.")
