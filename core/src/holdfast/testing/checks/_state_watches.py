"""What a state store must do with watches: late perhaps, never wrong, never silent for ever."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import anyio.abc
import anyio.lowlevel

from holdfast.errors import StateError
from holdfast.testing.checks import expect
from holdfast.testing.checks._state_bench import Subject, bench_of, raises, write


async def check_a_watch_begins_with_what_is_present(subject: Subject) -> None:
    """Every entry of the prefix comes first, once, and nothing else."""
    async with bench_of(subject) as bench:
        store = await bench.open()
        present = {
            bench.key(name): await write(store, bench.key(name), name.encode())
            for name in ("a/1", "a/2", "a/3")
        }
        await write(store, bench.key("b"), b"other")
        async with store.watch(bench.key("a/")) as stream:
            for _ in range(len(present)):
                change = await bench.next_of(stream, "what was present")
                expect(
                    change.entry is not None and change.entry == present.pop(change.key, None),
                    f"A watch must begin with what is present, once; it told {change}.",
                )
            await write(store, bench.key("a/4"), b"later")
            change = await bench.next_of(stream, "a new key")
            expect(change.key == bench.key("a/4"), f"A watch told {change} out of nowhere.")


async def check_a_watch_tells_creation_change_and_deletion(subject: Subject) -> None:
    """Of another handle as of its own, each within the delay."""
    async with bench_of(subject) as bench:
        watcher, writer = await bench.open(), await bench.open()
        async with watcher.watch(bench.prefix) as stream:
            for store in (writer, watcher):
                entry = await write(store, bench.key("a"), b"1")
                await bench.tells(stream, bench.key("a"), b"1")
                entry = await write(store, bench.key("a"), b"2")
                await bench.tells(stream, bench.key("a"), b"2")
                await store.compare_and_set(bench.key("a"), None, entry.version)
                await bench.tells(stream, bench.key("a"), None)


async def check_no_change_is_lost_while_a_watch_opens(subject: Subject) -> None:
    """A write that races the opening is either in the first listing or told after it."""
    async with bench_of(subject) as bench:
        watcher, writer = await bench.open(), await bench.open()
        for turn in range(12):
            key, value = bench.key("raced"), b"%d" % turn
            async with anyio.create_task_group() as group:
                group.start_soon(write, writer, key, value)
                for _ in range(turn % 4):
                    await anyio.lowlevel.checkpoint()
                async with watcher.watch(key) as stream:
                    await bench.tells(stream, key, value)


async def check_a_watch_never_goes_back(subject: Subject) -> None:
    """A burst may be told in part, but in order, and its end is told."""
    burst = 60
    async with bench_of(subject) as bench:
        watcher, writer = await bench.open(), await bench.open()
        keys = [bench.key("x"), bench.key("y")]

        async def burst_of_writes() -> None:
            for number in range(1, burst + 1):
                for key in keys:
                    await write(writer, key, b"%d" % number)

        async with watcher.watch(bench.prefix) as stream, anyio.create_task_group() as group:
            group.start_soon(burst_of_writes)
            told = dict.fromkeys(keys, 0)
            while min(told.values()) < burst:
                change = await bench.next_of(stream, "the end of a burst")
                number = 0 if change.entry is None else int(change.entry.value)
                expect(
                    number > told[change.key],
                    f"A watch went back from {told[change.key]} to {number}.",
                )
                told[change.key] = number


async def check_a_slow_reader_learns_how_things_stand(subject: Subject) -> None:
    """Who reads late is told the last state of each key, deletions included."""
    async with bench_of(subject) as bench:
        store = await bench.open()
        doomed = await write(store, bench.key("doomed"), b"x")
        async with store.watch(bench.prefix) as stream:
            await bench.tells(stream, bench.key("doomed"), b"x")
            for number in range(40):
                await write(store, bench.key(f"k{number % 4}"), b"%d" % number)
            await store.compare_and_set(bench.key("doomed"), None, doomed.version)
            await write(store, bench.key("end"), b"x")
            state: dict[str, bytes | None] = {}
            while bench.key("end") not in state or state.get(bench.key("doomed"), b"") is not None:
                change = await bench.next_of(stream, "how things stand")
                state[change.key] = None if change.entry is None else change.entry.value
            listed = {entry.key: entry.value for entry in await store.list(bench.prefix)}
            missing = {key: value for key, value in listed.items() if state.get(key) != value}
            while missing:
                change = await bench.next_of(stream, f"the last state of {sorted(missing)}")
                if change.entry is not None and missing.get(change.key) == change.entry.value:
                    del missing[change.key]


async def check_every_watch_is_told_its_own(subject: Subject) -> None:
    """Many watches on one handle: one key each, a wide one, and one that hears nothing."""
    async with bench_of(subject) as bench:
        watcher, writer = await bench.open(), await bench.open()
        async with AsyncExitStack() as stack:
            streams = {
                name: await stack.enter_async_context(watcher.watch(bench.key(f"own/{name}")))
                for name in "abcdef"
            }
            wide = await stack.enter_async_context(watcher.watch(bench.key("own/")))
            deaf = await stack.enter_async_context(watcher.watch(bench.key("other/")))
            for name, stream in streams.items():
                await write(writer, bench.key(f"own/{name}"), name.encode())
                change = await bench.next_of(stream, "the key it watches")
                expect(
                    change.key == bench.key(f"own/{name}"),
                    f"A watch of own/{name} told {change.key}.",
                )
                await bench.tells(wide, bench.key(f"own/{name}"), name.encode())
            await write(writer, bench.key("other/last"), b"x")
            change = await bench.next_of(deaf, "its first key")
            expect(change.key == bench.key("other/last"), f"A watch told {change.key}.")


async def check_a_closed_handle_answers_with_state_error(subject: Subject) -> None:
    """Nobody may wait for ever on a handle that is closed, nor be told that all is quiet."""
    async with bench_of(subject) as bench:
        await bench.open()
        store = await subject.open()
        raised: list[BaseException] = []

        async def follow(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with store.watch(bench.prefix) as stream:
                task_status.started()
                try:
                    async for _ in stream:
                        pass
                except StateError as error:
                    raised.append(error)

        session = await store.open_session(bench.key("node"), 60.0)
        with anyio.move_on_after(subject.patience_s):
            async with anyio.create_task_group() as group:
                await group.start(follow)
                await store.aclose()
        expect(bool(raised), "A watch must end with StateError when its handle is closed.")
        await store.aclose()
        for action in (
            lambda: store.get(bench.key("a")),
            lambda: store.list(bench.prefix),
            lambda: store.compare_and_set(bench.key("a"), b"", None),
            lambda: store.session_alive(bench.key("a")),
            lambda: store.open_session(bench.key("a"), 1.0),
            session.renew,
        ):
            await raises(StateError, action, "A closed handle must answer with StateError.")
