"""The pump of one group member: carries its effects out, and decides nothing.

Everything the machine asks for is started in order. What returns in microseconds runs on the event
loop (writes into the page cache, small reads); what may block runs in threads: flushes, hashes,
metadata. A disk that is seen stalling is moved off the loop until it behaves, so that heartbeats and
other volumes never wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from holdfast.errors import CopyError, HoldfastError, StateConflictError, StateError
from holdfast.interfaces.copy import CopyStore
from holdfast.messages import (
    DATA_LEVEL,
    Attach,
    Message,
    Replies,
    Reply,
    Request,
    RequestKind,
    pack_extents,
)
from holdfast.model import GroupRecord
from holdfast.sync import events as ev
from holdfast.sync.events import Event, Instant, LinkId
from holdfast.sync.hashlist import chunk_hash, parse_key
from holdfast.sync.member import GroupMember, Role
from holdfast.units import CHUNK_BYTES, NodeName, VolumeId

SLOW_S = 0.02
"""A page-cache operation that takes longer has met a stalling disk."""
SLOW_FOR_S = 5.0
"""How long operations then stay off the loop."""
STORE_RETRY_S = 0.25
_EXTENTS = int(RequestKind.EXTENTS)
_log = logging.getLogger("holdfast.node")


class Outlet(Protocol):
    """Where messages on a link go; a transport's link, or a session of this very process."""

    def send(self, messages: Sequence[Message]) -> None:
        """Send in order; never blocks."""
        ...

    def close(self, reason: str = "") -> None:
        """Close after what was sent."""
        ...


class PumpHost(Protocol):
    """What a pump needs of its node."""

    executor: ThreadPoolExecutor

    async def read_group(self, volume: VolumeId) -> tuple[GroupRecord | None, int]:
        """Read a group record; raises `StateError`."""
        ...

    async def write_group(self, record: GroupRecord, version: int) -> int:
        """Compare-and-set a group record and return its version; raises `StateError`, or
        `StateConflictError`.
        """
        ...

    async def dial(self, node: NodeName, hello: Attach, handler: PumpLink) -> Outlet:
        """Open a link to a node; raises `ConnectionRefusedError` or `HoldfastError`."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine under the node's task group."""
        ...

    def heard(self, pump: Pump) -> None:
        """Leases or roles may have changed."""
        ...

    def note(self, pump: Pump, kind: str, sentence: str) -> None:
        """Keep a line of a volume's history."""
        ...

    def removed(self, pump: Pump) -> None:
        """The copy is superseded; its pump is closed and its data goes."""
        ...

    def failed(self, pump: Pump) -> None:
        """The copy's disk has failed."""
        ...


class PumpLink:
    """The handler of one transport link of a pump: turns callbacks into events."""

    __slots__ = ("_id", "_pump")

    def __init__(self, pump: Pump, link: LinkId) -> None:
        """Report what happens on `link` to `pump`."""
        self._pump = pump
        self._id = link

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Take what has arrived."""
        self._pump.feed(ev.Received(self._id, messages))

    def on_lost(self, error: HoldfastError) -> None:
        """The link is gone."""
        self._pump.lost(self._id, error.message)


class Pump:
    """Steps one member and carries out what it asks for."""

    def __init__(self, host: PumpHost, member: GroupMember, store: CopyStore) -> None:
        """Begin; the owner feeds a first `Tick`."""
        self.host = host
        self.member = member
        self.store = store
        self.volume: VolumeId = member.ctx.record.volume
        self.stopped = asyncio.Event()
        self.listeners: dict[int, Callable[[ev.Verified], None]] = {}
        """By token: who waits for a verification."""
        self._loop = asyncio.get_running_loop()
        self._links: dict[LinkId, Outlet] = {}
        self._dialling: set[LinkId] = set()
        self._last_link = 0
        self._inbox: deque[Event] = deque()
        self._stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._closed = False
        self._slow_until = 0.0
        self._applying: deque[ev.ApplyOps] = deque()
        self._in_threads = 0
        self._drained = asyncio.Event()
        self._metadata: deque[tuple[Callable[[], object], Event | None]] = deque()
        self._metadata_busy = False
        self._carry: dict[type[Any], Callable[[Any], None]] = {
            ev.Send: self._send,
            ev.ApplyOps: self._apply,
            ev.SendReplies: self._reply,
            ev.ServeReads: self._serve_reads,
            ev.FlushDisk: self._flush,
            ev.MarkRegions: self._mark,
            ev.ClearRegions: self._clear,
            ev.SaveSuperblock: self._save,
            ev.ReadDisk: self._read,
            ev.HashDisk: self._hash,
            ev.MapDisk: self._map,
            ev.OpenLink: self._open_link,
            ev.CloseLink: self._close_link,
            ev.CompareAndSet: self._compare_and_set,
            ev.ReadRecord: self._read_record,
            ev.SaveDirty: self._save_dirty,
            ev.DropDirty: self._drop_dirty,
            ev.ResizeDisk: self._resize,
            ev.Note: self._note,
            ev.Assign: self._assign,
            ev.Verified: self._verified,
            ev.RemoveCopy: self._remove,
            ev.Stopped: self._stopped,
        }

    # -- stepping ---------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Step the member with `event`, and with whatever follows from it at once."""
        inbox = self._inbox
        inbox.append(event)
        if self._stepping or self._closed:
            return
        self._stepping = True
        carry = self._carry
        member = self.member
        try:
            while inbox:
                now = Instant(time.monotonic(), time.time())
                for effect in member.step(inbox.popleft(), now):
                    carry[type(effect)](effect)
        finally:
            self._stepping = False
        if member.deadline < self._timer_at or self._timer is None:
            self._set_timer()
        if member.ctx.peers.changed:
            self.host.heard(self)

    def lost(self, link: LinkId, sentence: str, *, gone: bool = False) -> None:
        """Tell the member that a link is gone."""
        self._dialling.discard(link)
        self._links.pop(link, None)
        self.feed(ev.LinkLost(link, gone, sentence))

    def accept(self, outlet: Outlet) -> LinkId:
        """Give a link that came from outside its id."""
        self._last_link += 1
        self._links[self._last_link] = outlet
        return self._last_link

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._closed:
            return
        self._timer_at = self.member.deadline
        delay = max(0.0, self._timer_at - time.monotonic())
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        self.feed(ev.Tick())

    # -- links ------------------------------------------------------------------------------------

    def _send(self, effect: ev.Send) -> None:
        link = self._links.get(effect.link)
        if link is not None:
            link.send(effect.messages)

    def _reply(self, effect: ev.SendReplies) -> None:
        link = self._links.get(effect.link)
        if link is not None:
            link.send((Replies(effect.replies),))

    def _close_link(self, effect: ev.CloseLink) -> None:
        self._dialling.discard(effect.link)
        link = self._links.pop(effect.link, None)
        if link is not None:
            link.close(effect.reason)

    def _open_link(self, effect: ev.OpenLink) -> None:
        self._dialling.add(effect.link)
        self.host.spawn(self._dial(effect))

    async def _dial(self, effect: ev.OpenLink) -> None:
        link = effect.link
        handler = PumpLink(self, link)
        try:
            outlet = await self.host.dial(effect.node, effect.hello, handler)
        except ConnectionRefusedError:
            if link in self._dialling:
                self.lost(link, f"node {effect.node} refuses connections", gone=True)
        except HoldfastError as error:
            if link in self._dialling:
                self.lost(link, error.message)
        else:
            if link in self._dialling:
                self._dialling.discard(link)
                self._links[link] = outlet
                self.feed(ev.LinkOpened(link))
            else:
                outlet.close("no longer wanted")

    # -- the local copy: the data path --------------------------------------------------------------

    def _apply(self, effect: ev.ApplyOps) -> None:
        if self._applying or self._slow_until > self._loop.time():
            self._applying.append(effect)
            if len(self._applying) == 1:
                self._apply_next()
            return
        began = time.monotonic()
        try:
            self.store.apply(effect.ops)
        except CopyError as error:
            self._fail(error)
            return
        if time.monotonic() - began > SLOW_S:
            self._slow_until = self._loop.time() + SLOW_FOR_S
        self._inbox.append(ev.Applied(effect.through))

    def _apply_next(self) -> None:
        effect = self._applying[0]

        def done() -> None:
            self._applying.popleft()
            self.feed(ev.Applied(effect.through))
            if self._applying:
                self._apply_next()

        self._in_thread(lambda: self.store.apply(effect.ops), lambda _: done())

    def _serve_reads(self, effect: ev.ServeReads) -> None:
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
            extents = self.store.extents(request.offset, request.length)
            return Reply(request.id, 0, pack_extents(extents))
        return Reply(request.id, 0, self.store.read(request.offset, request.length))

    def _flush(self, effect: ev.FlushDisk) -> None:
        self._in_thread(self.store.flush, lambda _: self.feed(ev.Flushed(effect.token)))

    def _read(self, effect: ev.ReadDisk) -> None:
        self._in_thread(
            lambda: self.store.read(effect.offset, effect.length),
            lambda data: self.feed(ev.ReadDone(effect.token, data)),
        )

    def _hash(self, effect: ev.HashDisk) -> None:
        work = self.store.tree if effect.level != DATA_LEVEL else self._hash_data
        self._in_thread(
            lambda: work(effect.level, effect.indexes),
            lambda hashes: self.feed(ev.HashesDone(effect.token, hashes)),
        )

    def _hash_data(self, _level: int, chunks: Sequence[int]) -> bytes:
        """Hash what is on disk now, whatever the hash list says."""
        block = self.store.superblock
        key = parse_key(block.hash_key)
        hashes = []
        for chunk in chunks:
            offset = chunk * CHUNK_BYTES
            data = self.store.read(offset, min(CHUNK_BYTES, block.size_bytes - offset))
            hashes.append(chunk_hash(data, key))
        return b"".join(hashes)

    def _map(self, effect: ev.MapDisk) -> None:
        self._in_thread(
            lambda: self.store.extents(0, self.store.superblock.size_bytes),
            lambda extents: self.feed(ev.MapDone(effect.token, extents)),
        )

    def _in_thread(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run `work` in a thread, then `done` with its result on the loop."""
        future = self._loop.run_in_executor(self.host.executor, work)
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

    # -- the local copy: metadata, one thing at a time, in order --------------------------------------

    def _mark(self, effect: ev.MarkRegions) -> None:
        self._in_order(lambda: self.store.mark_regions(effect.regions), ev.RegionsMarked())

    def _clear(self, effect: ev.ClearRegions) -> None:
        self._in_order(lambda: self.store.clear_regions(effect.regions), None)

    def _save(self, effect: ev.SaveSuperblock) -> None:
        self._in_order(lambda: self.store.save(effect.superblock), ev.Saved(effect.token))

    def _save_dirty(self, effect: ev.SaveDirty) -> None:
        self._in_order(lambda: self.store.save_dirty(effect.copy, effect.bits), None)

    def _drop_dirty(self, effect: ev.DropDirty) -> None:
        self._in_order(lambda: self.store.drop_dirty(effect.copy), None)

    def _resize(self, effect: ev.ResizeDisk) -> None:
        self._in_order(lambda: self.store.resize(effect.size_bytes), ev.Saved(effect.token))

    def _in_order(self, work: Callable[[], object], event: Event | None) -> None:
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
                self.feed(event)
            self._next_metadata()

        self._in_thread(work, done)

    def _fail(self, error: CopyError) -> None:
        _log.error("The copy of volume %s has failed: %s", self.volume, error)
        self.feed(ev.DiskFailed(error.reason, error.message))
        self.host.failed(self)

    # -- the state store ------------------------------------------------------------------------------

    def _compare_and_set(self, effect: ev.CompareAndSet) -> None:
        self.host.spawn(self._write_record(effect))

    async def _write_record(self, effect: ev.CompareAndSet) -> None:
        try:
            version = await self.host.write_group(effect.record, effect.version)
        except StateConflictError:
            try:
                record, present = await self.host.read_group(self.volume)
            except StateError:
                self.feed(ev.CasDone("unknown", None, effect.version))
            else:
                present = present if record is not None else effect.version + 1
                self.feed(ev.CasDone("conflict", record, present))
        except StateError as error:
            _log.warning("A group record could not be written: %s", error)
            await asyncio.sleep(STORE_RETRY_S)
            self.feed(ev.CasDone("unknown", None, effect.version))
        else:
            self.feed(ev.CasDone("ok", effect.record, version))

    def _read_record(self, effect: ev.ReadRecord) -> None:
        self.host.spawn(self._fetch_record())

    async def _fetch_record(self) -> None:
        while not self._closed:
            try:
                record, version = await self.host.read_group(self.volume)
            except StateError:
                await asyncio.sleep(STORE_RETRY_S)
            else:
                self.saw_record(record, version)
                return

    def saw_record(self, record: GroupRecord | None, version: int) -> None:
        """Tell the member a record that was read or watched."""
        if record is None:
            version = self.member.ctx.version + 1
        self.feed(ev.RecordSeen(record, version))

    # -- the rest -----------------------------------------------------------------------------------

    def _note(self, effect: ev.Note) -> None:
        self.host.note(self, effect.kind, effect.sentence)

    def _assign(self, effect: ev.Assign) -> None:
        """Nothing to do: a node learns of its copies from the records that it watches."""

    def _verified(self, effect: ev.Verified) -> None:
        listener = self.listeners.get(effect.token)
        if listener is not None:
            listener(effect)

    def _remove(self, effect: ev.RemoveCopy) -> None:
        self.host.removed(self)

    def _stopped(self, effect: ev.Stopped) -> None:
        if self.member.failure:
            self.stopped.set()
            return
        # In order: after everything else that is still being written.
        self._in_order(lambda: self.store.save(effect.superblock), None)
        self._metadata.append((self._rest, None))

    def _rest(self) -> None:
        self._loop.call_soon_threadsafe(self.stopped.set)

    def close(self) -> None:
        """Stop stepping and let go of links and files. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for link in list(self._links.values()):
            link.close("the node is stopping")
        self._links.clear()
        self.stopped.set()

    async def drain(self) -> None:
        """Wait until no thread works on the store any more; only after `close`."""
        while self._in_threads:
            self._drained.clear()
            await self._drained.wait()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def is_primary(self) -> bool:
        """Whether this copy is the serving primary of its group."""
        primary = self.member.primary
        return self.member.role is Role.PRIMARY and primary is not None and primary.serving
