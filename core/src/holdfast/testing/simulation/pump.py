"""Carries out the effects of one simulated member, with delays, faults and crashes between any two.

The order that it honours is the real pump's: effects of one step are started in order; operations of
the data run one after another, so do those of the metadata; flushes, reads and hashes run beside
them. Whatever has not finished when the process ends has happened, or not, by the roll of a die.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, field

from holdfast.errors import FaultReason
from holdfast.messages import Extent, Op, OpKind, Replies, Reply, Request, RequestKind, pack_extents
from holdfast.model import GroupRecord
from holdfast.sync import events as ev
from holdfast.sync.events import Event, LinkId
from holdfast.sync.member import GroupMember
from holdfast.sync.opening import opened
from holdfast.sync.roles import Role
from holdfast.testing.simulation.disk import CopyDisk
from holdfast.testing.simulation.invariants import Violation
from holdfast.testing.simulation.network import End
from holdfast.units import CHUNK_BYTES, VolumeId

if TYPE_CHECKING:
    from holdfast.testing.simulation.node import Process
    from holdfast.testing.simulation.workload import Client

STALL_TOLD_S = 1.0
"""How often a pump tells its member that the disk has not answered."""
REOPEN_S = 5.0
"""How long a failed disk rests before its copy is opened anew, as in the node."""
FLUSHED_AT_ONCE = 0.5
"""How often a disk flushes in no time, in the worlds whose consumers flush after each write."""
Job = tuple[Callable[[], None], Event | None, float]
SlowRead = tuple[ev.ServeReads, set[int]]
"""Reads that wait for a stalled disk, and the ids of those whose place was written meanwhile."""


@define(eq=False)
class Pump:
    """One member with its disk and links."""

    process: Process
    member: GroupMember
    disk: CopyDisk
    volume: VolumeId
    links: dict[LinkId, End] = field(factory=dict)
    inbox: deque[Event] = field(factory=deque)
    tick_at: float = float("inf")
    """World time of the next tick asked for."""
    closed: bool = False
    stalled_until: float = 0.0
    _stall_since: float = 0.0
    faults: dict[str, FaultReason] = field(factory=dict)
    """What the next operation of a kind fails with: `apply`, `flush`, `read` or `metadata`."""
    readers: dict[LinkId, Client] = field(factory=dict)
    """Consumers on this node that read from this copy."""
    _last_link: int = 0
    _stepping: bool = False
    _data: deque[Job] = field(factory=deque)
    _metadata: deque[Job] = field(factory=deque)
    _beside: int = 0
    _slow_reads: list[SlowRead] = field(factory=list)

    # -- stepping ----------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Step the member with `event`, and with whatever follows from it at once."""
        inbox = self.inbox
        inbox.append(event)
        if self._stepping or self.closed:
            return
        self._stepping = True
        process = self.process
        world = process.world
        member = self.member
        try:
            while inbox and not self.closed:
                now = process.clock.instant(world.now)
                world.steps += 1
                for effect in member.step(inbox.popleft(), now):
                    _CARRY[type(effect)](self, effect)
        finally:
            self._stepping = False
        if self.closed:
            return
        at = process.clock.when(member.next_tick)
        if at < self.tick_at:
            self.tick_at = at
            world.at(max(at, world.now), self._on_timer, at)
        if process.peers.changed:
            process.tend_peers()

    def _on_timer(self, at: float) -> None:
        if self.tick_at == at and not self.closed:
            self.process.run(self._tick)

    def _tick(self) -> None:
        self.tick_at = float("inf")
        if self.closed:
            return
        now = self.process.world.now
        at = self.process.clock.when(self.member.next_tick)
        if at > now + 1e-6:
            self.tick_at = at
            self.process.world.at(at, self._on_timer, at)
        else:
            self.feed(ev.Tick())

    # -- links -------------------------------------------------------------------------------------

    def accept(self, end: End) -> LinkId:
        """Give a link that came from outside its id."""
        self._last_link += 1
        link = self._last_link
        self._bind(link, end)
        return link

    def read_locally(self, client: Client, requests: Sequence[Request]) -> None:
        """A consumer on this node reads; the outcome is told to it in this very call."""
        link = next((link for link, other in self.readers.items() if other is client), None)
        if link is None:
            self._last_link += 1
            link = self._last_link
            self.readers[link] = client
        self.feed(ev.LocalReads(link, requests))

    def _unserved(self, effect: ev.Unserved) -> None:
        self.readers[effect.link].on_unserved(effect.requests)

    def _bind(self, link: LinkId, end: End) -> None:
        self.links[link] = end
        end.on_messages = lambda _end, messages: self.feed(ev.Received(link, messages))
        end.on_lost = lambda _end, gone, sentence: self._lost(link, gone, sentence)

    def _lost(self, link: LinkId, gone: bool, sentence: str) -> None:
        if self.links.pop(link, None) is not None:
            self.feed(ev.LinkLost(link, gone, sentence))

    def _send(self, effect: ev.Send) -> None:
        end = self.links.get(effect.link)
        if end is not None:
            self.process.world.network.send(end, effect.messages)

    def _reply(self, effect: ev.SendReplies) -> None:
        reader = self.readers.get(effect.link)
        if reader is not None:
            self.process.world.read_here += len(effect.replies)
            reader.on_replies(effect.replies)
            return
        end = self.links.get(effect.link)
        if end is not None:
            assert end.peer is not None
            self.process.world.invariants.on_replies(self, end.peer.asked, effect.replies)
            self.process.world.network.send(end, (Replies(tuple(effect.replies)),))

    def _open_link(self, effect: ev.OpenLink) -> None:
        end = End(self.process)
        self._bind(effect.link, end)
        opened = ev.LinkOpened(effect.link)
        network = self.process.world.network
        network.connect(end, effect.node, effect.hello, lambda _end: self.feed(opened))

    def _close_link(self, effect: ev.CloseLink) -> None:
        end = self.links.pop(effect.link, None)
        if end is not None:
            self.process.world.network.close(end)

    # -- the local copy ----------------------------------------------------------------------------

    def stall(self, until: float) -> None:
        """Let the disk answer nothing until then; the pump notices, as the node's does."""
        self.stalled_until = max(self.stalled_until, until)
        self._stall_since = self.process.world.now
        self.process.world.after(STALL_TOLD_S, self.process.run, self._tell_stall)

    def _tell_stall(self) -> None:
        world = self.process.world
        if self.closed:
            return
        if self.stalled_until <= world.now:
            self.feed(ev.DiskStalled(0.0))
        else:
            self.feed(ev.DiskStalled(world.now - self._stall_since))
            world.after(STALL_TOLD_S, self.process.run, self._tell_stall)

    def _delay(self, usual_s: float) -> float:
        world = self.process.world
        delay = world.rng.random() * 2 * usual_s
        # Not all of a stall at once: it may be called off.
        return delay + min(STALL_TOLD_S, max(0.0, self.stalled_until - world.now))

    def _apply(self, effect: ev.ApplyOps) -> None:
        disk, ops = self.disk, effect.ops
        for slow, overtaken in self._slow_reads:
            overtaken.update(each.id for each in slow.requests if each.meets(ops))
        done = ev.Applied(effect.through)
        if not self._data and self.stalled_until <= self.process.world.now:
            if self.process.world.rng.random() < 0.7:
                if not self._fails("apply"):
                    disk.apply(ops)
                    if self._flushes_at_once(ops):
                        if self._fails("flush"):
                            return
                        disk.flush_done(disk.flush_mark())
                        done = ev.Applied(effect.through, flushed=True)
                    self.inbox.append(done)
                return
        self._enqueue(self._data, lambda: disk.apply(ops), done, 0.0003, "apply")

    def _flushes_at_once(self, ops: Sequence[Op]) -> bool:
        world = self.process.world
        ends = bool(ops) and ops[-1].kind == OpKind.FLUSH
        return ends and world.config.commits and world.rng.random() < FLUSHED_AT_ONCE

    def _enqueue(
        self,
        lane: deque[Job],
        work: Callable[[], None],
        done: Event | None,
        usual_s: float,
        kind: str,
    ) -> None:
        lane.append((work, done, usual_s))
        if len(lane) == 1:
            self._start(lane, kind)

    def _start(self, lane: deque[Job], kind: str) -> None:
        self.process.world.after(self._delay(lane[0][2]), self._syscall_ends, lane, kind)

    def _syscall_ends(self, lane: deque[Job], kind: str) -> None:
        """The kernel has done it; the process learns it when it runs."""
        if self.closed or not lane:
            return
        wait = self.stalled_until - self.process.world.now
        if wait > 0:
            self.process.world.after(min(wait, STALL_TOLD_S), self._syscall_ends, lane, kind)
            return
        if self._fails(kind):
            return
        work, done, _ = lane[0]
        work()
        self.process.run(self._lane_goes_on, lane, done, kind)

    def _lane_goes_on(self, lane: deque[Job], done: Event | None, kind: str) -> None:
        if self.closed or not lane:
            return
        lane.popleft()
        if done is not None:
            self.feed(done)
        if lane and not self.closed:
            self._start(lane, kind)

    def _run_beside(self, kind: str, usual_s: float, work: Callable[[], Event | None]) -> None:
        """Run `work` at some moment of its time, and feed what it returns at the end."""
        total = self._delay(usual_s)
        self.process.world.after(total, self._beside_ends, kind, work)

    def _feed_open(self, event: Event) -> None:
        if not self.closed:
            self.feed(event)

    def _beside_ends(self, kind: str, work: Callable[[], Event | None]) -> None:
        if self.closed:
            return
        wait = self.stalled_until - self.process.world.now
        if wait > 0:
            self.process.world.after(min(wait, STALL_TOLD_S), self._beside_ends, kind, work)
        elif not self._fails(kind):
            event = work()
            if event is not None:
                # The thread has the bytes; the loop learns of it a little later.
                later = self._delay(0.0001)
                self.process.world.after(later, self.process.run, self._feed_open, event)

    def _flush(self, effect: ev.FlushDisk) -> None:
        disk, mark = self.disk, self.disk.flush_mark()

        def work() -> Event:
            disk.flush_done(mark)
            return ev.Flushed(effect.token)

        self._run_beside("flush", self.process.world.config.flush_s, work)

    def _read(self, effect: ev.ReadDisk) -> None:
        def work() -> Event:
            if not self.disk.can_read(effect.offset, effect.length):
                return ev.ReadFailed(effect.token)
            return ev.ReadDone(effect.token, self.disk.read(effect.offset, effect.length))

        self._run_beside("read", 0.0005, work)

    def _read_runs(self, effect: ev.ReadRuns) -> None:
        """Read each run at a moment of its own; writes go on in between."""
        pieces: list[bytes | None] = []

        def work() -> Event | None:
            run = effect.runs[len(pieces)]
            pieces.append(self.disk.read(*run) if self.disk.can_read(*run) else None)
            if len(pieces) < len(effect.runs):
                self._run_beside("read", 0.0002, work)
                return None
            return ev.RunsRead(effect.token, pieces)

        self._run_beside("read", 0.0002, work)

    def _hash(self, effect: ev.HashDisk) -> None:
        def work() -> Event:
            return ev.HashesDone(effect.token, self.disk.tree(effect.level, effect.indexes))

        self._run_beside("read", 0.001, work)

    def _map(self, effect: ev.MapDisk) -> None:
        def work() -> Event:
            return ev.MapDone(effect.token, self.disk.extents())

        self._run_beside("read", 0.001, work)

    def _mark(self, effect: ev.MarkRegions) -> None:
        regions = tuple(effect.regions)
        self._meta(lambda: self.disk.mark(regions), ev.RegionsMarked())

    def _clear(self, effect: ev.ClearRegions) -> None:
        regions = tuple(effect.regions)
        self._meta(lambda: self.disk.clear(regions), None)

    def _save(self, effect: ev.SaveSuperblock) -> None:
        self._meta(lambda: self.disk.save(effect.superblock), ev.Saved(effect.token))

    def _save_dirty(self, effect: ev.SaveDirty) -> None:
        self._meta(lambda: self.disk.save_dirty(effect.copy, effect.bits), None)

    def _drop_dirty(self, effect: ev.DropDirty) -> None:
        self._meta(lambda: self.disk.drop_dirty(effect.copy), None)

    def _resize(self, effect: ev.ResizeDisk) -> None:
        def work() -> None:
            self.disk.resize(effect.size_bytes)
            # One that does not serve yet first has the others grow (`sync.growth`).
            if self.member.primary is not None and self.member.primary.serving:
                self.process.world.invariants.on_grown(self)

        self._meta(work, ev.Saved(effect.token))

    def _meta(self, work: Callable[[], None], done: Event | None) -> None:
        self._enqueue(self._metadata, work, done, 0.0005, "metadata")

    def _fails(self, kind: str) -> bool:
        """Return whether this operation fails by a planted fault, having told the member."""
        reason = self.faults.pop(kind, None)
        if reason is None:
            return False
        self.process.world.struck[f"{_FAULTS[reason]}!"] += 1
        if reason is FaultReason.FLUSH_FAILED:
            self.disk.flush_failed(self.process.world.rng)
            self.disk.save(attrs.evolve(self.disk.superblock, boot="", clean=False))
            self.process.world.invariants.on_damage(self.volume, self.disk)
        self.process.run(self._disk_failed, reason)
        return True

    def _disk_failed(self, reason: FaultReason) -> None:
        self._data.clear()
        self._metadata.clear()
        self.feed(ev.DiskFailed(reason, f"the disk of {self.process.name} fails: {reason.value}"))
        self.process.world.after(REOPEN_S, self.process.run, self.process.reopen, self)

    # -- serving -----------------------------------------------------------------------------------

    def _serve_reads(self, effect: ev.ServeReads) -> None:
        if self.stalled_until > self.process.world.now and not effect.at_once:
            slow = (effect, set[int]())
            self._slow_reads.append(slow)
            wait = self.stalled_until - self.process.world.now
            self.process.world.after(wait, self.process.run, self._slow_read_ends, slow)
            return
        if self._fails("read"):
            if effect.at_once:
                self.feed(ev.ReadsFailed(effect.link, effect.requests, at_once=True))
            return
        able = self._can_read_here if effect.at_once else self.disk.can_read
        good = [request for request in effect.requests if able(request.offset, request.length)]
        if good:
            self._reply(ev.SendReplies(effect.link, [self._read_one(each) for each in good]))
        if len(good) < len(effect.requests):
            bad = [request for request in effect.requests if request not in good]
            self.feed(ev.ReadsFailed(effect.link, bad, at_once=effect.at_once))

    def _slow_read_ends(self, slow: SlowRead) -> None:
        """The disk answers again."""
        if self.closed:
            return
        self._slow_reads.remove(slow)
        effect, overtaken = slow
        if not self._fails("read"):
            good = [
                each for each in effect.requests if self.disk.can_read(each.offset, each.length)
            ]
            replies = [self._read_one(each) for each in good if each.id not in overtaken]
            self.feed(ev.LateReads(effect.link, good, replies))
            bad = [each for each in effect.requests if each not in good]
            if bad:
                self.feed(ev.ReadsFailed(effect.link, bad))

    def _can_read_here(self, offset: int, length: int) -> bool:
        """Whether the disk answers at once, and with bytes of which something is promised.

        What has rotted on a replica is told to its own consumers until a scrub mends it.
        """
        if self.stalled_until > self.process.world.now or not self.disk.can_read(offset, length):
            return False
        sick = self.process.world.invariants.damage.ever.get(self.volume, set())
        chunks = range(offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES + 1)
        return sick.isdisjoint(chunks)

    def _read_one(self, request: Request) -> Reply:
        if request.kind == RequestKind.EXTENTS:
            return Reply(request.id, 0, pack_extents([Extent(request.length, is_hole=False)]))
        return Reply(request.id, 0, self.disk.read(request.offset, request.length))

    # -- the store ---------------------------------------------------------------------------------

    def _compare_and_set(self, effect: ev.CompareAndSet) -> None:
        process = self.process
        process.world.store.compare_and_set(process, effect.record, effect.version, self._cas_done)

    def _cas_done(self, outcome: str, record: GroupRecord | None, version: int) -> None:
        self.feed(ev.CasDone(outcome, record, version))

    def _read_record(self, _effect: ev.ReadRecord) -> None:
        process = self.process
        process.world.store.read(process, self.volume, self._record_read)

    def _record_read(self, record: GroupRecord | None, version: int) -> None:
        self.feed(ev.RecordSeen(record, version))

    # -- the rest ----------------------------------------------------------------------------------

    def _note(self, effect: ev.Note) -> None:
        world = self.process.world
        world.trace("note", self.process.name, self.volume, effect.kind, effect.sentence)

    def _assign(self, _effect: ev.Assign) -> None:
        """The copy is made when its primary attaches to it."""

    def _verified(self, effect: ev.Verified) -> None:
        damaged = self.process.world.invariants.damage.ever.get(self.volume, set())
        differing = [each for each in effect.differing or () if each[0] not in damaged]
        if differing:
            raise Violation("I1", f"copies of {self.volume} differ: {differing}")

    def _remove(self, _effect: ev.RemoveCopy) -> None:
        self.close()
        self.process.removed(self)

    def _stopped(self, effect: ev.Stopped) -> None:
        """Come to rest: what was started in threads finishes, then the superblock is saved.

        A store that has failed takes no superblock any more: the last one says that what was not
        flushed may be gone.
        """
        if not self.member.failure:
            for lane in (self._data, self._metadata):
                for work, _, _ in lane:
                    work()
                lane.clear()
            self.disk.save(effect.superblock)
        self.close()
        self.process.stopped(self)

    def close(self) -> None:
        """Carry out nothing more."""
        self.closed = True
        for end in list(self.links.values()):
            self.process.world.network.close(end)
        self.links.clear()

    def crash(self) -> None:
        """The process has died: of what was under way, some has still happened."""
        self.closed = True
        rng = self.process.world.rng
        for lane in (self._data, self._metadata):
            for work, _, _ in lane:
                if rng.random() < 0.5:
                    break
                work()
            lane.clear()

    def is_primary(self) -> bool:
        """Return whether the member plays the primary."""
        return self.member.role is Role.PRIMARY


_FAULTS = {
    FaultReason.FLUSH_FAILED: "fsync-error",
    FaultReason.NO_SPACE: "disk-full",
    FaultReason.IO_ERROR: "disk-error",
}
"""What a disk's error is called among the faults."""
_CARRY: dict[type[Any], Callable[[Pump, Any], None]] = {
    ev.Send: Pump._send,
    ev.ApplyOps: Pump._apply,
    ev.SendReplies: Pump._reply,
    ev.ServeReads: Pump._serve_reads,
    ev.Unserved: Pump._unserved,
    ev.FlushDisk: Pump._flush,
    ev.MarkRegions: Pump._mark,
    ev.ClearRegions: Pump._clear,
    ev.SaveSuperblock: Pump._save,
    ev.ReadDisk: Pump._read,
    ev.ReadRuns: Pump._read_runs,
    ev.HashDisk: Pump._hash,
    ev.MapDisk: Pump._map,
    ev.OpenLink: Pump._open_link,
    ev.CloseLink: Pump._close_link,
    ev.CompareAndSet: Pump._compare_and_set,
    ev.ReadRecord: Pump._read_record,
    ev.SaveDirty: Pump._save_dirty,
    ev.DropDirty: Pump._drop_dirty,
    ev.ResizeDisk: Pump._resize,
    ev.Note: Pump._note,
    ev.Assign: Pump._assign,
    ev.RemoveCopy: Pump._remove,
    ev.Stopped: Pump._stopped,
    ev.Verified: Pump._verified,
}


def opened_superblock(disk: CopyDisk, boot: str) -> None:
    """Say on disk that the copy is in use, as whoever opens it must before anything else."""
    disk.save(opened(disk.superblock, boot))
