"""The local work of one pump: the effects that touch the copy's own disk, on the loop or in threads.

What returns in microseconds runs on the event loop: writes into the page cache, reads from it. What
may block runs in threads: flushes, hashes, and metadata, the latter one at a time and in order. A
disk that is seen stalling is moved off the loop until it behaves again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from holdfast.errors import CopyError
from holdfast.interfaces.copy import CopyStore
from holdfast.messages import DATA_LEVEL, Reply, Request, RequestKind, pack_extents
from holdfast.sync import events as ev
from holdfast.sync.events import Event
from holdfast.sync.hashlist import chunk_hash, parse_key
from holdfast.units import CHUNK_BYTES

SLOW_S = 0.1
"""A page-cache operation that takes longer has met a stalling disk; a busy machine may take a
process off its core for tens of milliseconds, and that is none."""
SLOW_FOR_S = 1.0
"""How long operations then stay off the loop."""
_EXTENTS = int(RequestKind.EXTENTS)


class DiskWork:
    """Carries out the disk effects of one member."""

    def __init__(
        self,
        store: CopyStore,
        executor: ThreadPoolExecutor,
        feed: Callable[[Event], None],
        reply: Callable[[ev.SendReplies], None],
        fail: Callable[[CopyError], None],
    ) -> None:
        """Work on `store`.

        Args:
            store: The open copy.
            executor: The node's disk threads.
            feed: Steps the member.
            reply: Answers consumers.
            fail: The copy has failed.
        """
        self._store = store
        self._executor = executor
        self._feed = feed
        self._reply = reply
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._slow_until = 0.0
        self._applying: deque[ev.ApplyOps] = deque()
        self._in_threads = 0
        self._drained = asyncio.Event()
        self._metadata: deque[tuple[Callable[[], object], Event | None]] = deque()
        self._metadata_busy = False

    def close(self) -> None:
        """Tell no outcome any more; `drain` waits for what still runs."""
        self._closed = True

    async def drain(self) -> None:
        """Wait until no thread works on the store; only after `close`."""
        while self._in_threads:
            self._drained.clear()
            await self._drained.wait()

    # -- the local copy: the data path -------------------------------------------------------------

    def apply(self, effect: ev.ApplyOps) -> None:
        """Write into the page cache, then `Applied`."""
        if self._applying or self._slow_until > self._loop.time():
            self._applying.append(effect)
            if len(self._applying) == 1:
                self._apply_next()
            return
        began = time.monotonic()
        try:
            self._store.apply(effect.ops)
        except CopyError as error:
            self._fail(error)
            return
        if time.monotonic() - began > SLOW_S:
            self._slow_until = self._loop.time() + SLOW_FOR_S
        self._feed(ev.Applied(effect.through))

    def _apply_next(self) -> None:
        effect = self._applying[0]

        def done() -> None:
            self._applying.popleft()
            self._feed(ev.Applied(effect.through))
            if self._applying:
                self._apply_next()

        self._in_thread(lambda: self._store.apply(effect.ops), lambda _: done())

    def serve_reads(self, effect: ev.ServeReads) -> None:
        """Read for consumers and reply."""
        if self._slow_until > self._loop.time():
            self._in_thread(
                lambda: [self._read_one(request) for request in effect.requests],
                lambda replies: self._reply(ev.SendReplies(effect.link, replies)),
            )
            return
        began = time.monotonic()
        try:
            replies = [self._read_one(request) for request in effect.requests]
        except CopyError as error:
            self._fail(error)
            return
        if time.monotonic() - began > SLOW_S:
            self._slow_until = self._loop.time() + SLOW_FOR_S
        self._reply(ev.SendReplies(effect.link, replies))

    def _read_one(self, request: Request) -> Reply:
        if request.kind == _EXTENTS:
            extents = self._store.extents(request.offset, request.length)
            return Reply(request.id, 0, pack_extents(extents))
        return Reply(request.id, 0, self._store.read(request.offset, request.length))

    def flush(self, effect: ev.FlushDisk) -> None:
        """fdatasync, then `Flushed`."""
        self._in_thread(self._store.flush, lambda _: self._feed(ev.Flushed(effect.token)))

    def read(self, effect: ev.ReadDisk) -> None:
        """Read for a sync, then `ReadDone`."""
        self._in_thread(
            lambda: self._store.read(effect.offset, effect.length),
            lambda data: self._feed(ev.ReadDone(effect.token, data)),
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
        for chunk in chunks:
            offset = chunk * CHUNK_BYTES
            data = self._store.read(offset, min(CHUNK_BYTES, block.size_bytes - offset))
            hashes.append(chunk_hash(data, key))
        return b"".join(hashes)

    def refresh(self, limit: int, done: Callable[[int], None]) -> None:
        """Recompute up to `limit` stale hashes in a thread, then tell how many are still stale."""
        self._in_thread(lambda: self._store.refresh_hashes(limit), done)

    def map(self, effect: ev.MapDisk) -> None:
        """List holes and data, then `MapDone`."""
        self._in_thread(
            lambda: self._store.extents(0, self._store.superblock.size_bytes),
            lambda extents: self._feed(ev.MapDone(effect.token, extents)),
        )

    def _in_thread(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run `work` in a thread, then `done` with its result on the loop."""
        future = self._loop.run_in_executor(self._executor, work)
        self._in_threads += 1

        def finish(future: asyncio.Future[Any]) -> None:
            self._in_threads -= 1
            if self._closed or future.cancelled():
                self._drained.set()
                # Its outcome is for nobody any more, but must have been looked at.
                _ = future.cancelled() or future.exception()
                return
            error = future.exception()
            if isinstance(error, CopyError):
                self._fail(error)
            elif error is not None:
                raise error
            else:
                done(future.result())

        future.add_done_callback(finish)

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

        self._in_thread(work, done)
