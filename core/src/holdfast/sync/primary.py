"""The primary role: order writes, count acknowledgements, answer consumers.

The path of one write, which is the whole hot path: a batch of requests arrives on a session; each
write takes the next sequence; one `Batch` goes to every leg and one `ApplyOps` to the local disk; as
acknowledgements arrive the *commit* rises to the lowest sequence that every in-sync copy has applied;
what is at or below it is answered. Nothing here allocates per request beyond the `Op` itself and an
entry in a deque.

What freezes acknowledgements needs no flag: a failed leg stops acknowledging, so the commit cannot
pass it until the record says that the copy is out (R2). `healing.py` decides which record to ask for.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator, Sequence

from attrs import define, field

from holdfast.messages import (
    Batch,
    EpochChange,
    Op,
    OpKind,
    Reply,
    Request,
    RequestFlag,
    RequestKind,
)
from holdfast.model import Access, CopyState, GroupRecord
from holdfast.sync.attachments import Attachments
from holdfast.sync.context import Context
from holdfast.sync.events import Effect, Instant, LateReads, LinkId, SendReplies, ServeReads
from holdfast.sync.flush_habit import FlushHabit
from holdfast.sync.leg import Leg, Phase, batch_bytes
from holdfast.sync.pace import Pace
from holdfast.sync.plain_writes import plain_writes
from holdfast.sync.refusing import ERRNOS, MISALIGNED, write_errno
from holdfast.units import CHUNK_BYTES, REQUEST_BYTES_MAX, CopyId
from holdfast.units import Sequence as Position

_READ, _WRITE, _FLUSH = int(RequestKind.READ), int(RequestKind.WRITE), int(RequestKind.FLUSH)
_DISCARD, _ZERO = int(RequestKind.DISCARD), int(RequestKind.ZERO)
_READS = frozenset({int(RequestKind.READ), int(RequestKind.EXTENTS)})
_FUA, _NO_HOLE = int(RequestFlag.FUA), int(RequestFlag.NO_HOLE)
_OP_WRITE, _OP_FLUSH = int(OpKind.WRITE), int(OpKind.FLUSH)
_OP_DISCARD, _OP_ZERO = int(OpKind.DISCARD), int(OpKind.ZERO)
_READ_WRITE, _IN_SYNC, _STREAMING = Access.READ_WRITE, CopyState.IN_SYNC, Phase.STREAMING
"""Looked up in its enum, a member costs more than a call, on the hot path."""
_new = tuple.__new__  # Half the cost of calling the named tuple.
_OP_FLUSH_ENTRY = Op(_OP_FLUSH, 0, 0)
_FOR_EVER = float("inf")


@define
class PrimaryRole:
    """The copy that orders writes and serves reads."""

    ctx: Context
    attachments: Attachments
    serving: bool = False
    """Reconciled; requests are taken."""
    next: Position = Position(1)
    """The sequence of the next operation."""
    commit: Position = Position(0)
    """Every copy that acknowledgements need has applied everything up to here."""
    durable: Position = Position(0)
    """The same for stable storage."""
    written: Position = Position(0)
    """The last sequence that changed data."""
    _flush_at: Position = Position(0)
    """The last flush that was sent, for whomever."""
    _habit: FlushHabit = field(factory=FlushHabit)
    legs: dict[CopyId, Leg] = field(factory=dict)
    holds: int = 0
    """While positive, writes wait: a run is read for a sync, or a handover drains."""
    reconciling: bool = False
    """The reconcile jobs were made: every in-sync copy had presented itself."""
    draining: bool = False
    """One of the holds is a handover's."""
    stopped: bool = False
    """Deposed or handing over: nothing is acknowledged or read any more."""
    told_commit: Position = Position(0)
    lost: set[int] = field(factory=set)
    """Chunks that no in-sync copy could read when they were last asked for."""
    _held: deque[tuple[LinkId, Request]] = field(factory=deque)
    _writes: deque[tuple[int, LinkId, list[Reply]]] = field(factory=deque)
    """What is not answered: (sequence, session link, replies), a reply for each sequence from there
    on, a list for each batch."""
    _flushes: deque[tuple[int, LinkId, int]] = field(factory=deque)
    """The same for flushes: (sequence that must be durable, session link, request id)."""
    _reads: list[tuple[int, LinkId, Request]] = field(factory=list)
    """Reads that overlap unacknowledged writes, or wait for the lease (I5)."""
    _crowded: bool = False
    """Some of them have waited for one write and found another: further writes are held for them."""
    _required: tuple[Leg, ...] = ()
    foreground_at: float = 0.0
    """When a consumer last wrote; sync yields to that."""
    pace: Pace = field(factory=Pace)
    """How fast syncs may go beside that."""
    _timed: tuple[Position, float] | None = None
    """One write under way: its sequence, and when it was sent."""

    # -- consumers --------------------------------------------------------------------------------

    def on_requests(
        self, link: LinkId, requests: Sequence[Request], now: Instant, out: list[Effect]
    ) -> None:
        """Take a batch of requests of one open session."""
        reads = [request for request in requests if request[1] in _READS]
        writes = [r for r in requests if r[1] not in _READS] if reads else requests
        if writes:
            held = self.holds or self._held or self.stopped or self._crowded
            if held or self.ctx.record.access is not _READ_WRITE:
                self._hold_or_refuse(link, writes, now, out)
            else:
                self._write(link, writes, now, out)
        if reads:
            self._read(link, reads, now, out)

    def _write(
        self, link: LinkId, requests: Sequence[Request], now: Instant, out: list[Effect]
    ) -> None:
        ctx = self.ctx
        size = ctx.size_bytes
        first = self.next
        ops, replies, size_bytes = plain_writes(requests, size)
        if replies:
            self._writes.append((first, link, replies))
        sequence: int = first + len(ops)
        flush_wanted: list[int] | None = None
        for request_id, kind, flags, offset, length, data in requests[len(ops) :]:
            if kind == _FLUSH:
                if flush_wanted is None:
                    flush_wanted = []
                flush_wanted.append(request_id)
                continue
            if (
                (offset | length) & MISALIGNED
                or length <= 0
                or offset + length > size
                or (length > REQUEST_BYTES_MAX and kind == _WRITE)
            ):
                out.append(
                    SendReplies(link, (Reply(request_id, write_errno(offset, length, size)),))
                )
                continue
            if kind == _WRITE:
                ops.append(_new(Op, (_OP_WRITE, offset, length, data)))
                size_bytes += length
            elif kind == _DISCARD or (kind == _ZERO and not flags & _NO_HOLE):
                ops.append(Op(_OP_DISCARD, offset, length))
            elif kind == _ZERO:
                ops.append(Op(_OP_ZERO, offset, length))
            else:
                out.append(SendReplies(link, (Reply(request_id, errno.EINVAL),)))
                continue
            if flags & _FUA:
                if flush_wanted is None:
                    flush_wanted = []
                flush_wanted.append(request_id)
            else:
                self._writes.append((sequence, link, [Reply(request_id, 0)]))
            sequence += 1
        if ops:
            self.written = Position(sequence - 1)
        if flush_wanted is not None:
            self._habit.flushed()
            if max(self._flush_at, self.durable) < self.written:
                # One flush covers the batch.
                ops.append(_OP_FLUSH_ENTRY)
                self._flush_at = Position(sequence)
            at = self._flush_at if self.durable < self.written else self.written
            self._flushes.extend((at, link, i) for i in flush_wanted)
            if not ops:
                # All that was written is flushed on every copy, or about to be. It is answered like
                # any other all the same: not without the lease.
                self.advance(now, out)
        elif ops and self._habit.wrote(size_bytes):
            ops.append(_OP_FLUSH_ENTRY)
            self._flush_at = Position(sequence)
        if ops:
            self.foreground_at = now.mono
            if self._timed is None:
                self._timed = (first, now.mono)
            self._emit(first, ops, size_bytes, now, out)

    def _emit(
        self, first: Position, ops: list[Op], size_bytes: int, now: Instant, out: list[Effect]
    ) -> None:
        """Send a batch to every streaming copy and to the local disk."""
        ctx = self.ctx
        self.next = Position(first + len(ops))
        mono = now.mono
        commit = self.told_commit = self.commit
        batch = _new(Batch, (ctx.superblock.epoch, first, commit, ops))
        for leg in self.legs.values():
            if leg.job is None and leg.phase is _STREAMING:
                leg.push(batch, size_bytes, mono, out)
            elif leg.phase is _STREAMING or leg.in_sync or leg.counted_on:
                leg.stream(batch, size_bytes, mono, out)
        if ctx.absent:
            ctx.mark_absent(ops)
        if self.lost:
            self._forget_lost(ops)
        ctx.disk.submit(first, ops, mono, out)

    def _forget_lost(self, ops: Sequence[Op]) -> None:
        """What is written anew can be read again, or is told again."""
        for op in ops:
            touched = range(op.offset // CHUNK_BYTES, -(-(op.offset + op.length) // CHUNK_BYTES))
            self.lost = {chunk for chunk in self.lost if chunk not in touched}

    def _hold_or_refuse(
        self, link: LinkId, requests: Sequence[Request], now: Instant, out: list[Effect]
    ) -> None:
        denied = ERRNOS.get(self.ctx.record.access)
        if denied is None or self.stopped:
            self._held.extend((link, request) for request in requests)
            return
        flushes = [r for r in requests if r.kind == _FLUSH]
        refused = [Reply(r.id, denied[1]) for r in requests if r.kind != _FLUSH]
        if refused:
            out.append(SendReplies(link, refused))
        if flushes:
            # A flush of what was acknowledged before is a promise that still holds.
            self._write(link, flushes, now, out)

    def release(self, now: Instant, out: list[Effect]) -> None:
        """Take up the writes that were held, if nothing holds them any longer."""
        access = self.ctx.record.access
        suspended = access is Access.SUSPENDED
        if self.holds or self._crowded or suspended or not self._held or self.stopped:
            return
        held, self._held = self._held, deque()
        while held:
            link = held[0][0]
            run = []
            while held and held[0][0] == link:
                run.append(held.popleft()[1])
            if link in self.attachments.open:
                if access is Access.READ_WRITE:
                    self._write(link, run, now, out)
                else:
                    self._hold_or_refuse(link, run, now, out)

    def _read(self, link: LinkId, requests: list[Request], now: Instant, out: list[Effect]) -> None:
        denied = ERRNOS.get(self.ctx.record.access)
        if denied is not None and denied[0]:
            out.append(SendReplies(link, [Reply(r.id, denied[0]) for r in requests]))
            return
        ready: list[Request] = []
        lease = self.lease_until() > now.mono and not self.stopped
        window = list(self.ctx.disk.recent()) if self.commit < self.next - 1 else ()
        for request in requests:
            offset, length = request.offset, request.length
            if (
                (offset | length) & MISALIGNED
                or length <= 0
                or offset + length > self.ctx.size_bytes
                or (length > REQUEST_BYTES_MAX and request.kind == _READ)
            ):
                out.append(SendReplies(link, (Reply(request.id, errno.EINVAL),)))
                continue
            after = 0
            for sequence, start, count in window:
                if start < offset + length and offset < start + count:
                    after = sequence
            if lease and after <= self.commit:
                ready.append(request)
            else:
                self._reads.append((after, link, request))
        if ready:
            out.append(ServeReads(link, ready))

    def on_late_reads(self, event: LateReads, now: Instant, out: list[Effect]) -> None:
        """Answer reads that have waited for the disk, as far as it is true now; the rest anew."""
        requests: Sequence[Request] = event.requests
        if event.replies and self.lease_until() > now.mono and not self.stopped:
            answered = {reply.id for reply in event.replies}
            out.append(SendReplies(event.link, event.replies))
            requests = [request for request in requests if request.id not in answered]
        self.on_requests(event.link, requests, now, out)

    # -- acknowledgements -------------------------------------------------------------------------

    def advance(self, now: Instant, out: list[Effect]) -> None:
        """Raise the commit as far as acknowledgements allow, and answer what it covers (R1)."""
        if not self.serving:
            # Until the copies are equal, nothing may leave anybody's window.
            return
        disk = self.ctx.disk
        writes, flushes = self._writes, self._flushes
        # Sequences that went to one copy alone (a sync) hold nobody else's commit back: a copy that
        # has acknowledged all that it was sent has applied everything that there is for it.
        commit: int = disk.applied if disk.applied < disk.submitted else self.next - 1
        durable = disk.durable
        for leg in self._required:
            if leg.unacked and leg.applied < commit:
                commit = leg.applied
            if leg.durable < durable:
                durable = leg.durable
        if durable > self.durable:
            self.durable = durable
        if commit > self.commit:
            self.commit = Position(commit)
            timed = self._timed
            if timed is not None and timed[0] <= commit:
                self.pace.wrote(now.mono, now.mono - timed[1])
                self._timed = None
        elif writes and writes[0][0] > self.commit and not (flushes or self._reads):
            # The common case: of several copies, this was not the last one to acknowledge.
            return
        if not (
            (writes and writes[0][0] <= self.commit)
            or (flushes and flushes[0][0] <= self.durable)
            or self._reads
        ):
            if not (writes or flushes) and self.commit > disk.commit:
                disk.advance_commit(self.commit)
            return
        if self.stopped or self.lease_until() <= now.mono:
            return
        self._answer(out)
        disk.advance_commit(self.commit)
        if self._reads:
            self._read_anew(now, out)

    def _answer(self, out: list[Effect]) -> None:
        replies: list[Reply] = []
        to: LinkId | None = None
        for link, due in self._due():
            if link == to:
                replies += due
                continue
            if to is not None:
                out.append(SendReplies(to, replies))
            to, replies = link, due
        if to is not None:
            out.append(SendReplies(to, replies))

    def _due(self) -> Iterator[tuple[LinkId, list[Reply]]]:
        """Take what may be answered now off its queues, in order."""
        writes, flushes, commit = self._writes, self._flushes, self.commit
        while writes and writes[0][0] <= commit:
            first, link, due = writes.popleft()
            if first + len(due) - 1 > commit:
                # A copy has applied one frame of a batch that took several.
                count = commit - first + 1
                writes.appendleft((first + count, link, due[count:]))
                due = due[:count]
            yield link, due
        while flushes and flushes[0][0] <= self.durable:
            _, link, request_id = flushes.popleft()
            yield link, [Reply(request_id, 0)]

    def _read_anew(self, now: Instant, out: list[Effect]) -> None:
        """Look again at reads that have waited: a write that came behind them may be in their way."""
        waiting, self._reads = self._reads, []
        due: list[tuple[int, LinkId, Request]] = []
        for entry in waiting:
            (due if entry[0] <= self.commit else self._reads).append(entry)
        before = len(self._reads)
        for _, link, request in due:
            self._read(link, [request], now, out)
        if len(self._reads) > before:
            self._crowded = True
        elif self._crowded and not self._reads:
            self._crowded = False
            self.release(now, out)

    def lease_until(self) -> float:
        """Return until when this primary may answer (R5); +inf while it needs nobody."""
        until = _FOR_EVER
        volume, valid_until = self.ctx.record.volume, self.ctx.peers.valid_until
        for leg in self._required:
            if leg.state is _IN_SYNC or leg.counted_on:
                valid = valid_until(leg.node, volume)
                if valid < until:
                    until = valid
        return until

    def require(self) -> None:
        """Work out anew whose acknowledgements are needed, after a change of record or leg."""
        self._required = tuple(
            leg for leg in self.legs.values() if leg.in_sync or leg.joining or leg.counted_on
        )

    def count_on(self, record: GroupRecord) -> None:
        """Reckon with `record`, which is asked for, being in force before its author knows."""
        for leg in self.legs.values():
            member = record.find(leg.copy)
            leg.counted_on = member is not None and member.state is CopyState.IN_SYNC
        self.require()

    @property
    def idle(self) -> bool:
        """Whether everything that consumers asked for has been answered."""
        return not (self._writes or self._flushes)

    def others_in_sync(self) -> int:
        """Return how many other copies acknowledgements need."""
        return sum(1 for leg in self._required if leg.in_sync)

    # -- sync -------------------------------------------------------------------------------------

    def push_to(self, leg: Leg, ops: list[Op], now: Instant, out: list[Effect]) -> Position:
        """Send operations to one copy alone; they take sequences like any others."""
        first = self.next
        self.next = Position(first + len(ops))
        batch = Batch(self.ctx.epoch, first, self.commit, ops)
        leg.push(batch, batch_bytes(batch), now.mono, out)
        # The local copy has nothing to do for these; its position must not hold the commit back.
        disk = self.ctx.disk
        if disk.idle:
            disk.applied = disk.submitted = Position(self.next - 1)
        return first

    def rewrite(self, op: Op, now: Instant, out: list[Effect]) -> None:
        """Write good bytes over bad ones on every copy; writes are held and nothing is under way."""
        first = self.next
        self._emit(first, [op], len(op.data), now, out)
        self.written = first

    def tell_commit(self, now: Instant, out: list[Effect]) -> None:
        """Let idle copies know the commit, so that their windows empty."""
        if self.commit > self.told_commit and self.idle:
            self.told_commit = self.commit
            batch = Batch(self.ctx.epoch, self.next, self.commit, ())
            for leg in self.legs.values():
                leg.send(batch, out)

    def announce(self, out: list[Effect]) -> None:
        """Tell every streaming copy the epoch and record in force (R2)."""
        change = EpochChange(self.ctx.epoch, self.ctx.record.to_bytes())
        for leg in self.legs.values():
            # A leg that is cut has batches to send again, and they must carry the new epoch.
            leg.change_epoch(change, out)
