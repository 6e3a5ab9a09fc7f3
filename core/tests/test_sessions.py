"""Sessions that are opened in vain: nothing of them may be left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from holdfast.local.memory_state import MemoryStateDriver, MemoryStateOptions
from holdfast.messages import Reply
from holdfast.model import Access, CopyState, GroupRecord, Member, VolumeSpec
from holdfast.node.consumer import Consumer
from holdfast.sync.consumer import SessionPhase
from holdfast.testing.memory_transport import MemoryNetwork, MemoryTransport
from holdfast.units import MIB, CopyId, Epoch, NodeName, VolumeId

NODE, VOLUME = NodeName("n1"), VolumeId("volume-1")
pytestmark = pytest.mark.anyio


class Handler:
    """A frontend that has given up."""

    def on_replies(self, replies: Sequence[Reply]) -> None:
        raise AssertionError(replies)

    def on_changed(self, size_bytes: int, access: Access) -> None:
        raise AssertionError(size_bytes)

    def on_closed(self, sentence: str) -> None:
        raise AssertionError(sentence)


def spawn(_: Coroutine[Any, Any, None]) -> None:
    raise AssertionError("there is nobody to dial")


async def test_a_session_that_nobody_waits_for_any_more_looks_no_further() -> None:
    """It would find the primary one day, and keep all others from writing for as long as it lives."""
    store = await MemoryStateDriver.open(MemoryStateOptions(name="given-up"))
    consumer = Consumer(
        name=NODE,
        cluster="c1",
        process="p1",
        store=store,
        transport=MemoryTransport(MemoryNetwork(), "c1", NODE),
        spawn=spawn,
        on_store_error=lambda _: None,
    )
    member = Member(CopyId("c1"), NODE, CopyState.IN_SYNC)
    record = GroupRecord(volume=VOLUME, epoch=Epoch(1), primary=member.copy, members=(member,))
    consumer.directory.specs[VOLUME] = VolumeSpec(VOLUME, "v1", MIB, 0)
    consumer.directory.groups[VOLUME] = (record, 1)
    opening = asyncio.create_task(consumer.open("v1", Handler()))
    async with asyncio.timeout(30):
        while not consumer._sessions.get(VOLUME):  # noqa: ASYNC110 - the task makes it.
            await asyncio.sleep(0)
    (session,) = consumer._sessions[VOLUME]
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert session._machine.phase is SessionPhase.CLOSED
    assert session._timer is None
    assert not consumer._sessions
    await store.aclose()
