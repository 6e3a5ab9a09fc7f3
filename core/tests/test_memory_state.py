"""State store `memory`: the kit, and what is its own."""

from __future__ import annotations

import threading
from itertools import count

import anyio
import pytest

from holdfast.errors import StateConflictError
from holdfast.interfaces import API_VERSION
from holdfast.interfaces.state import StateStore
from holdfast.local.memory_state import MemoryStateDriver, MemoryStateOptions
from holdfast.testing.checks.state import Capabilities, OpenStore
from holdfast.testing.conformance_state import StateConformance

_names = count()


def _fresh() -> MemoryStateOptions:
    return MemoryStateDriver.Options(name=f"test-{next(_names)}")


class TestMemory(StateConformance):
    capabilities = Capabilities(durable=False)

    @pytest.fixture
    def open_store(self) -> OpenStore:
        options = _fresh()

        async def open_one() -> StateStore:
            return await MemoryStateDriver.open(options)

        return open_one


def test_driver_names_itself_and_its_api() -> None:
    assert (MemoryStateDriver.name, MemoryStateDriver.API_VERSION) == ("memory", API_VERSION)


@pytest.mark.anyio
async def test_stores_of_two_names_are_strangers() -> None:
    one, two = await MemoryStateDriver.open(_fresh()), await MemoryStateDriver.open(_fresh())
    await one.compare_and_set("a", b"1", None)
    assert await two.get("a") is None
    await one.aclose()
    await two.aclose()


@pytest.mark.anyio
async def test_nodes_in_two_threads_share_a_store() -> None:
    options = _fresh()
    store = await MemoryStateDriver.open(options)
    await store.compare_and_set("n", b"0", None)

    async def add() -> None:
        own = await MemoryStateDriver.open(options)
        for _ in range(50):
            while True:
                entry = await own.get("n")
                assert entry is not None
                try:
                    await own.compare_and_set("n", b"%d" % (int(entry.value) + 1), entry.version)
                    break
                except StateConflictError:
                    continue
        await own.aclose()

    threads = [threading.Thread(target=anyio.run, args=(add,)) for _ in range(2)]
    with anyio.fail_after(60):
        async with store.watch("n") as stream:
            for thread in threads:
                thread.start()
            async for change in stream:
                if change.entry is not None and change.entry.value == b"100":
                    break
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    await store.aclose()


@pytest.mark.anyio
async def test_a_watch_in_a_loop_that_ended_disturbs_nobody() -> None:
    options = _fresh()
    store = await MemoryStateDriver.open(options)
    context = []

    async def leave_a_watch_behind() -> None:
        other = await MemoryStateDriver.open(options)
        watch = other.watch("")
        await watch.__aenter__()
        context.append(watch)

    await anyio.to_thread.run_sync(anyio.run, leave_a_watch_behind)
    assert await store.compare_and_set("a", b"1", None) is not None
    await store.aclose()
