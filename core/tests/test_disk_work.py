"""Where the disk effects of a pump run: on the event loop or in a thread."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import attrs
import pytest

from holdfast.errors import CopyError, FaultReason
from holdfast.local.copy_store import FileCopyStore, create_copy
from holdfast.messages import DATA_LEVEL, Op, OpKind, Request, RequestKind
from holdfast.node import disk_work
from holdfast.node.disk_threads import FEW, DiskThreads
from holdfast.node.disk_work import FLUSH_FEW_BYTES, FLUSH_QUICK_S, DiskWork
from holdfast.sync import events as ev
from holdfast.sync.events import Event
from holdfast.sync.hashlist import ZERO_HASH, chunk_hash
from holdfast.units import CHUNK_BYTES, MIB, CopyId, Sequence, VolumeId

pytestmark = pytest.mark.anyio


class Flushes:
    """The flushes of a store: in which thread each ran, on a clock that only they advance."""

    def __init__(self, store: FileCopyStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on_loop: list[bool] = []
        self.takes_s = 0.0
        self._now = 0.0
        self._loop_thread = threading.get_ident()
        monkeypatch.setattr(store, "flush", self._flush)
        monkeypatch.setattr(disk_work, "_monotonic", lambda: self._now)

    def _flush(self) -> None:
        self.on_loop.append(threading.get_ident() == self._loop_thread)
        self._now += self.takes_s


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileCopyStore]:
    store = create_copy(
        tmp_path / "copy",
        cluster="c",
        volume=VolumeId("v" * 32),
        copy=CopyId("c" * 32),
        size_bytes=4 * MIB,
        hash_key="00" * 32,
        boot="b",
    )
    yield store
    store.close()


@attrs.frozen
class Timed:
    """Disk work whose flushes take as long as the test says, and what it has told."""

    work: DiskWork
    flushes: Flushes
    events: asyncio.Queue[Event]
    failures: list[CopyError]


@pytest.fixture
async def timed(store: FileCopyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Timed]:
    flushes = Flushes(store, monkeypatch)
    events: asyncio.Queue[Event] = asyncio.Queue()
    failures: list[CopyError] = []
    store.mark_regions([0])
    with contextlib.closing(DiskThreads()) as threads:
        work = DiskWork(store, threads, events.put_nowait, lambda _: None, failures.append)
        yield Timed(work, flushes, events, failures)
        work.close()
        await work.drain()


async def test_a_flush_runs_on_the_loop_only_where_flushes_take_no_time(timed: Timed) -> None:
    work, flushes, events = timed.work, timed.flushes, timed.events

    async def flush(write_bytes: int = 4096) -> None:
        op = Op(int(OpKind.WRITE), 0, write_bytes, bytes(write_bytes))
        work.apply(ev.ApplyOps([op], Sequence(1)))
        assert await events.get() == ev.Applied(Sequence(1))
        work.flush(ev.FlushDisk(Sequence(1)))
        assert await events.get() == ev.Flushed(1)

    await flush()
    await flush()
    assert flushes.on_loop == [False, True], "nobody knew how long the first one would take"
    await flush(FLUSH_FEW_BYTES + 4096)
    assert flushes.on_loop.pop() is False, "a quick flush of little says nothing of a large one"
    flushes.takes_s = 2 * FLUSH_QUICK_S
    await flush()
    await flush()
    await flush()
    assert flushes.on_loop == [False, True, True, False, False], "one slow flush was enough"
    assert not timed.failures


async def test_flushes_wait_for_no_thread_and_nothing_waits_for_flushes(
    timed: Timed, store: FileCopyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, events = timed.work, timed.events
    all_there = threading.Barrier(FEW + 2)
    monkeypatch.setattr(store, "flush", lambda: all_there.wait(60))
    for token in range(FEW + 1):
        work.flush(ev.FlushDisk(token))
    work.read(ev.ReadDisk(7, 0, 4096))
    with anyio.fail_after(60):
        assert await events.get() == ev.ReadDone(7, bytes(4096)), "the disk seemed to stall"
        await asyncio.to_thread(all_there.wait, 60)
        flushed = {await events.get() for _ in range(FEW + 1)}
    assert flushed == {ev.Flushed(token) for token in range(FEW + 1)}


@pytest.mark.parametrize("reason", [FaultReason.NO_SPACE, FaultReason.IO_ERROR])
async def test_no_copy_is_lost_for_want_of_room_for_a_hash(
    reason: FaultReason, store: FileCopyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: asyncio.Queue[int | CopyError] = asyncio.Queue()

    def fail(_limit: int) -> int:
        raise CopyError("It fails.", reason=reason)

    monkeypatch.setattr(store, "refresh_hashes", fail)
    with contextlib.closing(DiskThreads()) as threads:
        work = DiskWork(store, threads, lambda _: None, lambda _: None, told.put_nowait)
        work.refresh(16, told.put_nowait)
        assert (await told.get() == 0) is (reason is FaultReason.NO_SPACE)
        work.close()
        await work.drain()


async def test_a_flush_behind_a_write_is_told_with_it_where_flushes_take_no_time(
    timed: Timed, store: FileCopyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, flushes, events = timed.work, timed.flushes, timed.events

    async def commit(through: int, write_bytes: int = 4096) -> bool:
        """Write and flush as one batch; return whether both were told at once."""
        op = Op(int(OpKind.WRITE), 0, write_bytes, bytes(write_bytes))
        work.apply(ev.ApplyOps([op, Op(int(OpKind.FLUSH), 0, 0)], Sequence(through)))
        applied = await events.get()
        assert isinstance(applied, ev.Applied)
        assert applied.through == through
        if not applied.flushed:
            work.flush(ev.FlushDisk(Sequence(through)))
            assert await events.get() == ev.Flushed(through)
        return applied.flushed

    assert not await commit(1), "nobody knew how long it would take"
    assert await commit(2)
    assert not await commit(3, FLUSH_FEW_BYTES + 4096), "a lot may take longer"
    assert await commit(4)
    flushes.takes_s = 2 * FLUSH_QUICK_S
    assert await commit(5)
    assert not await commit(6), "the last one took its time"
    assert flushes.on_loop == [False, True, False, True, True, False]

    def fail() -> None:
        raise CopyError("no", reason=FaultReason.FLUSH_FAILED)

    flushes.takes_s = 0.0
    assert not await commit(7)
    monkeypatch.setattr(store, "flush", fail)
    work.apply(ev.ApplyOps([Op(int(OpKind.FLUSH), 0, 0)], Sequence(8)))
    assert [each.reason for each in timed.failures] == [FaultReason.FLUSH_FAILED]
    assert events.empty()


async def test_holes_are_not_read_to_be_hashed(
    store: FileCopyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: asyncio.Queue[Event] = asyncio.Queue()
    key = bytes(32)
    zeros, data = bytes(CHUNK_BYTES), b"d" * CHUNK_BYTES
    store.mark_regions([0])
    ops = [
        Op(int(OpKind.WRITE), n * CHUNK_BYTES, CHUNK_BYTES, d) for n, d in ((1, data), (3, zeros))
    ]
    store.apply(ops)
    read_now, read = store.read, []

    def noted(offset: int, length: int) -> bytes:
        read.append(offset // CHUNK_BYTES)
        return read_now(offset, length)

    monkeypatch.setattr(store, "read", noted)
    with contextlib.closing(DiskThreads()) as threads:
        work = DiskWork(store, threads, events.put_nowait, lambda _: None, lambda _: None)
        work.hash(ev.HashDisk(5, DATA_LEVEL, range(5)))
        hashed = [ZERO_HASH, chunk_hash(data, key), *[ZERO_HASH] * 3]
        assert await events.get() == ev.HashesDone(5, b"".join(hashed))
        assert read == [1, 3]
        work.close()
        await work.drain()


async def test_what_a_write_overtakes_while_a_thread_reads_it_is_no_answer(
    store: FileCopyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: asyncio.Queue[Event] = asyncio.Queue()
    replies: asyncio.Queue[ev.SendReplies] = asyncio.Queue()
    reading, written = threading.Event(), threading.Event()
    read_now = store.read

    def read_late(offset: int, length: int) -> bytes:
        reading.set()
        assert written.wait(60)
        return read_now(offset, length)

    monkeypatch.setattr(store, "read", read_late)
    store.mark_regions([0])
    requests = [Request(number, RequestKind.READ, 0, number * 4096, 4096) for number in range(3)]
    with contextlib.closing(DiskThreads()) as threads:
        work = DiskWork(store, threads, events.put_nowait, replies.put_nowait, lambda _: None)
        work._slow_until = float("inf")  # The disk was seen stalling, and goes on doing so.
        work.serve_reads(ev.ServeReads(7, requests))
        await asyncio.to_thread(reading.wait)
        work.apply(ev.ApplyOps([Op(int(OpKind.WRITE), 4096, 4096, b"n" * 4096)], Sequence(1)))
        assert await events.get() == ev.Applied(Sequence(1))
        written.set()
        late = await events.get()
        assert isinstance(late, ev.LateReads)
        assert (late.link, late.requests) == (7, requests)
        zeros = bytes(4096)
        assert [(reply.id, reply.data) for reply in late.replies] == [(0, zeros), (2, zeros)]
        assert replies.empty(), "whether it is an answer is not for the disk to say"
        work.close()
        await work.drain()
