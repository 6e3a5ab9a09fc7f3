"""The local work of one pump: the effects that touch the copy's own disk, on the loop or in threads.

What returns in microseconds runs on the event loop: writes into the page cache, reads from it, and
flushes where those take no time (decision 0010). What may block runs in threads: other flushes,
hashes, and metadata, the latter one at a time and in order. A disk that is seen stalling is moved
off the loop until it behaves again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from holdfast.errors import CopyError, FaultReason
from holdfast.interfaces.copy import CopyStore
from holdfast.messages import DATA_LEVEL, Op, OpKind, Reply, Request, RequestKind, pack_extents
from holdfast.node.disk_threads import DiskThreads
from holdfast.sync import events as ev
from holdfast.sync.events import Event
from holdfast.sync.hashlist import HASH_BYTES, ZERO_HASH, chunk_hash, parse_key
from holdfast.units import CHUNK_BYTES, KIB

SLOW_S = 0.1
"""A page-cache operation that takes longer has met a stalling disk; a busy machine may take a
process off its core for tens of milliseconds, and that is none."""
SLOW_FOR_S = 1.0
"""How long operations then stay off the loop."""
WATCH_S = 0.5
"""How often a disk in use is asked whether it answers."""
FLUSH_QUICK_S = 0.0002
"""A flush that takes no longer costs less than handing it to a thread and back."""
FLUSH_FEW_BYTES = 256 * KIB
"""What may wait to be flushed for the last flush's time to be a measure of the next one's."""
STALL_S = 1.0
"""A disk that has answered nothing for longer is stalled."""
_EXTENTS = int(RequestKind.EXTENTS)
_FLUSH = int(OpKind.FLUSH)
_LENGTH = itemgetter(2)
_new = tuple.__new__  # Half the cost of calling the named tuple.
_monotonic = time.monotonic


def unexpected(error: BaseException) -> CopyError:
    """Return what it means for a copy when its work ends in an error that nobody has foreseen."""
    return CopyError(
        f"Something unexpected happened to the copy: {type(error).__name__}: {error}.",
        reason=FaultReason.IO_ERROR,
        hint="The node's log has the details; please report them.",
    )


class _SlowRead:
    """Reads of consumers that a thread is at."""

    __slots__ = ("overtaken", "requests")

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.overtaken: set[int] = set()
        """Ids of the requests whose place was written meanwhile."""

    def note(self, ops: Sequence[Op]) -> None:
        """Take note of what is applied beside."""
        self.overtaken.update(each.id for each in self.requests if each.meets(ops))


class DiskWork:
    """Carries out the disk effects of one member."""

    def __init__(
        self,
        store: CopyStore,
        threads: DiskThreads,
        feed: Callable[[Event], None],
        reply: Callable[[ev.SendReplies], None],
        fail: Callable[[CopyError], None],
    ) -> None:
        """Work on `store`.

        Args:
            store: The open copy.
            threads: Those of its disk.
            feed: Steps the member.
            reply: Answers consumers.
            fail: The copy has failed.
        """
        self._store = store
        self._threads = threads
        self._feed = feed
        self._reply = reply
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._slow_until = 0.0
        self._running: dict[asyncio.Future[Any], float] = {}
        """What threads do that a disk answers at once if it answers at all, and since when."""
        self._in_threads = 0
        self._flush_is_quick = False
        """The last flush took no longer than `FLUSH_QUICK_S`."""
        self._unflushed_bytes = 0
        """Written since it began; counted only while it was quick."""
        self._used = False
        self._probing = False
        self._watch: asyncio.TimerHandle | None = None
        self._stalled = False
        self._applying: deque[ev.ApplyOps] = deque()
        self._slow_reads: list[_SlowRead] = []
        self._drained = asyncio.Event()
        self._metadata: deque[tuple[Callable[[], object], Event | None]] = deque()
        self._metadata_busy = False

    def close(self) -> None:
        """Tell no outcome any more; `drain` waits for what still runs."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()

    async def drain(self) -> None:
        """Wait until no thread works on the store; only after `close`."""
        while self._in_threads:
            self._drained.clear()
            await self._drained.wait()

    # -- the local copy: the data path -------------------------------------------------------------

    def apply(self, effect: ev.ApplyOps) -> None:
        """Write into the page cache, flush as well if that takes no time, then `Applied`."""
        ops, through = effect
        if self._slow_reads:
            for read in self._slow_reads:
                read.note(ops)
        began = _monotonic()
        if self._applying or self._is_slow(began):
            self._applying.append(effect)
            if len(self._applying) == 1:
                self._apply_next()
            return
        self._used = True
        if self._watch is None:
            self._watch = self._loop.call_later(WATCH_S, self._look)
        flushed = False
        try:
            self._store.apply(ops)
            if self._flush_is_quick:
                self._unflushed_bytes += sum(map(_LENGTH, ops))
                if ops and ops[-1][0] == _FLUSH and self._unflushed_bytes <= FLUSH_FEW_BYTES:
                    # One acknowledgement for both, and one wake-up of whoever waits for it.
                    self._unflushed_bytes = 0
                    self._flush_is_quick = self._flush() <= FLUSH_QUICK_S
                    flushed = True
        except CopyError as error:
            self._fail(error)
            return
        ended = _monotonic()
        if ended - began > SLOW_S:
            self._slow_until = ended + SLOW_FOR_S
        self._feed(_new(ev.Applied, (through, flushed)))

    def _apply_next(self) -> None:
        effect = self._applying[0]

        def done() -> None:
            self._applying.popleft()
            self._feed(ev.Applied(effect.through))
            if self._applying:
                self._apply_next()

        self._in_thread(lambda: self._store.apply(effect.ops), lambda _: done(), prompt=True)

    def serve_reads(self, effect: ev.ServeReads) -> None:
        """Read for consumers and reply."""
        began = _monotonic()
        if self._is_slow(began):
            if effect.at_once:
                self._feed(ev.ReadsFailed(effect.link, effect.requests, at_once=True))
                return
            self._read_slowly(effect)
            return
        try:
            replies, failed = self._read_all(effect.requests)
        except CopyError as error:
            self._fail(error)
            if effect.at_once:
                self._feed(ev.ReadsFailed(effect.link, effect.requests, at_once=True))
            return
        ended = _monotonic()
        if ended - began > SLOW_S:
            self._slow_until = ended + SLOW_FOR_S
        if replies:
            self._reply(ev.SendReplies(effect.link, replies))
        if failed:
            self._feed(ev.ReadsFailed(effect.link, failed, effect.at_once))

    def _read_slowly(self, effect: ev.ServeReads) -> None:
        """Read in a thread; the member decides what of it is still an answer."""
        read = _SlowRead(effect.requests)
        self._slow_reads.append(read)

        def done(found: tuple[list[Reply], list[Request]]) -> None:
            self._slow_reads.remove(read)
            replies, failed = found
            asked = [each for each in read.requests if each not in failed]
            replies = [each for each in replies if each.id not in read.overtaken]
            self._feed(ev.LateReads(effect.link, asked, replies))
            if failed:
                self._feed(ev.ReadsFailed(effect.link, failed))

        self._in_thread(lambda: self._read_all(effect.requests), done, prompt=True)

    def _read_all(self, requests: Sequence[Request]) -> tuple[list[Reply], list[Request]]:
        """Return the replies, and the requests that met a media error."""
        replies: list[Reply] = []
        failed: list[Request] = []
        for request in requests:
            try:
                replies.append(self._read_one(request))
            except CopyError as error:
                if error.reason is not FaultReason.UNREADABLE:
                    raise
                failed.append(request)
        return replies, failed

    def _read_one(self, request: Request) -> Reply:
        if request.kind == _EXTENTS:
            extents = self._store.extents(request.offset, request.length)
            return Reply(request.id, 0, pack_extents(extents))
        return Reply(request.id, 0, self._store.read(request.offset, request.length))

    def flush(self, effect: ev.FlushDisk) -> None:
        """fdatasync, then `Flushed`: on the loop where the disk was seen to need no time for it."""
        few = self._flush_is_quick and self._unflushed_bytes <= FLUSH_FEW_BYTES
        self._unflushed_bytes = 0
        if few and not self._is_slow(_monotonic()):
            try:
                took_s = self._flush()
            except CopyError as error:
                self._fail(error)
                return
            self._flushed(effect.token, took_s)
        else:
            self._in_thread(self._flush, partial(self._flushed, effect.token), stable=True)

    def _flush(self) -> float:
        """Flush; return how many seconds it took."""
        began = _monotonic()
        self._store.flush()
        return _monotonic() - began

    def _flushed(self, token: int, took_s: float) -> None:
        self._flush_is_quick = took_s <= FLUSH_QUICK_S
        self._feed(ev.Flushed(token))

    def read(self, effect: ev.ReadDisk) -> None:
        """Read, then `ReadDone`."""

        def done(data: bytes | None) -> None:
            told = ev.ReadFailed(effect.token) if data is None else ev.ReadDone(effect.token, data)
            self._feed(told)

        work = partial(self._read_or_none, effect.offset, effect.length)
        self._in_thread(work, done, prompt=True)

    def _read_or_none(self, offset: int, length: int) -> bytes | None:
        """Return the bytes, or None when the medium has lost some of them."""
        try:
            return self._store.read(offset, length)
        except CopyError as error:
            if error.reason is not FaultReason.UNREADABLE:
                raise
            return None

    def read_runs(self, effect: ev.ReadRuns) -> None:
        """Read for a sync, then `RunsRead`."""
        self._in_thread(
            lambda: [self._read_or_none(*run) for run in effect.runs],
            lambda pieces: self._feed(ev.RunsRead(effect.token, pieces)),
            prompt=True,
        )

    def hash(self, effect: ev.HashDisk) -> None:
        """Hash chunks or tree nodes, then `HashesDone`."""
        work = self._store.tree if effect.level != DATA_LEVEL else self._hash_data
        self._in_thread(
            lambda: work(effect.level, effect.indexes),
            lambda hashes: self._feed(ev.HashesDone(effect.token, hashes)),
        )

    def _hash_data(self, _level: int, chunks: Sequence[int]) -> bytes:
        """Hash what is on disk now, whatever the hash list says."""
        block = self._store.superblock
        key = parse_key(block.hash_key)
        hashes = []
        # Most of a thin volume is nothing: 4 GiB of it were read and compared with zeros for 20 s.
        for chunk, is_hole in zip(chunks, self._store.zero_chunks(chunks), strict=True):
            if is_hole:
                hashes.append(ZERO_HASH)
                continue
            offset = chunk * CHUNK_BYTES
            data = self._read_or_none(offset, min(CHUNK_BYTES, block.size_bytes - offset))
            # What cannot be read is like nothing else; a repair then takes it for rotten.
            hashes.append(os.urandom(HASH_BYTES) if data is None else chunk_hash(data, key))
        return b"".join(hashes)

    def refresh(self, limit: int, done: Callable[[int], None]) -> None:
        """Recompute up to `limit` stale hashes in a thread, then tell how many are still stale."""
        self._in_thread(partial(self._refresh, limit), done)

    def _refresh(self, limit: int) -> int:
        try:
            return self._store.refresh_hashes(limit)
        except CopyError as error:
            if error.reason is not FaultReason.NO_SPACE:
                raise
            return 0  # No copy is lost for want of a hash; it is tried again after the next write.

    def map(self, effect: ev.MapDisk) -> None:
        """List holes and data by chunk, then `MapDone`."""
        self._in_thread(
            lambda: self._store.extents(0, self._store.superblock.size_bytes, grain=CHUNK_BYTES),
            lambda extents: self._feed(ev.MapDone(effect.token, extents)),
        )

    def _in_thread(
        self,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        *,
        prompt: bool = False,
        stable: bool = False,
    ) -> None:
        """Run `work` in a thread, then `done` with its result on the loop.

        What is `prompt` takes no longer than the disk needs for a moderate amount of data. A flush
        is not: it may have a lot to write. What is `stable` does little but wait for that.
        """
        threads = self._threads.many if stable else self._threads.few
        future = self._loop.run_in_executor(threads, work)
        self._in_threads += 1
        if prompt:
            self._running[future] = _monotonic()
        if self._watch is None:
            self._watch = self._loop.call_later(WATCH_S, self._look)

        def finish(future: asyncio.Future[Any]) -> None:
            self._in_threads -= 1
            self._running.pop(future, None)
            if self._closed or future.cancelled():
                self._drained.set()
                # Its outcome is for nobody any more, but must have been looked at.
                _ = future.cancelled() or future.exception()
                return
            error = future.exception()
            if error is not None:
                # Also what nobody has foreseen: what waits for this would wait for ever.
                self._fail(error if isinstance(error, CopyError) else unexpected(error))
            else:
                done(future.result())

        future.add_done_callback(finish)

    # -- stalls ------------------------------------------------------------------------------------

    def _is_slow(self, now: float) -> bool:
        """Whether an operation might block the loop: one did of late, or one in a thread does now."""
        if self._slow_until > now:
            return True
        return bool(self._running) and now - next(iter(self._running.values())) > SLOW_S

    def _look(self) -> None:
        """Ask the disk itself whether it answers, and tell the member when it does not.

        The page cache takes writes for a while after a disk has stalled, and the first one that it
        does not take would block the loop and with it the heartbeats of all groups. The probe waits
        in a thread by then, and all else with it.
        """
        self._watch = None
        if self._closed:
            return
        since = next(iter(self._running.values()), None)
        for_s = 0.0 if since is None else _monotonic() - since
        if for_s > STALL_S:
            self._stalled = True
            self._feed(ev.DiskStalled(for_s))
        elif self._stalled:
            self._stalled = False
            self._feed(ev.DiskStalled(0.0))
        if self._used or self._in_threads > self._probing:
            self._used = False
            if not self._probing:
                self._probing = True
                self._in_thread(self._store.probe, self._probed, prompt=True)
        if self._watch is None and (self._in_threads or self._used):
            self._watch = self._loop.call_later(WATCH_S, self._look)

    def _probed(self, _: object) -> None:
        self._probing = False

    # -- the local copy: metadata, one thing at a time, in order -----------------------------------

    def mark(self, effect: ev.MarkRegions) -> None:
        """Mark write intent, then `RegionsMarked`."""
        self.in_order(lambda: self._store.mark_regions(effect.regions), ev.RegionsMarked())

    def clear(self, effect: ev.ClearRegions) -> None:
        """Unmark write intent."""
        self.in_order(lambda: self._store.clear_regions(effect.regions), None)

    def save(self, effect: ev.SaveSuperblock) -> None:
        """Save the superblock, then `Saved`."""
        self.in_order(lambda: self._store.save(effect.superblock), ev.Saved(effect.token))

    def save_dirty(self, effect: ev.SaveDirty) -> None:
        """Keep a dirty map."""
        self.in_order(lambda: self._store.save_dirty(effect.copy, effect.bits), None)

    def drop_dirty(self, effect: ev.DropDirty) -> None:
        """Forget a dirty map."""
        self.in_order(lambda: self._store.drop_dirty(effect.copy), None)

    def resize(self, effect: ev.ResizeDisk) -> None:
        """Grow the copy, then `Saved`."""
        self.in_order(lambda: self._store.resize(effect.size_bytes), ev.Saved(effect.token))

    def in_order(self, work: Callable[[], object], event: Event | None) -> None:
        """Run `work` in a thread after all earlier metadata, then feed `event`."""
        self._metadata.append((work, event))
        if not self._metadata_busy:
            self._next_metadata()

    def _next_metadata(self) -> None:
        self._metadata_busy = bool(self._metadata)
        if not self._metadata:
            return
        work, event = self._metadata.popleft()

        def done(_: object) -> None:
            if event is not None:
                self._feed(event)
            self._next_metadata()

        self._in_thread(work, done, stable=True)
