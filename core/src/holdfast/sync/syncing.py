"""How the copies behind a primary's legs are brought up to date: compared, read, sent, joined.

A leg's job (`delta.py`) knows which chunks are not known to be equal; this module asks the disks and
the stream on its behalf, no faster than consumers and the copy leave room for. It opens and closes no
link, and loses no copy. What it returns as news is true when the record may have to change by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import define, field

from holdfast.messages import BeginSync, HashQuery, Op, OpKind
from holdfast.sync.context import Context
from holdfast.sync.delta import READ_CHUNKS_BUSY, READ_CHUNKS_MAX, SyncJob
from holdfast.sync.events import Effect, HashDisk, Instant, MapDisk, MapDone, ReadRuns
from holdfast.sync.growth import is_large_enough
from holdfast.sync.leg import RETRY_OFFLINE_S, SYNC_BUSY_BYTES, SYNC_IN_FLIGHT_BYTES, Leg, Phase
from holdfast.sync.mending import Mending
from holdfast.sync.primary import PrimaryRole
from holdfast.units import Sequence as Position
from holdfast.units import format_size


@define
class Syncing:
    """The jobs of all legs of one primary; owned by its keeper."""

    ctx: Context
    primary: PrimaryRole
    mending: Mending
    go_on_at: float = float("inf")
    """When a sync may go on that waits for nothing but its rate; monotonic."""
    _maps: dict[int, tuple[Leg, SyncJob]] = field(factory=dict)
    _hashes: dict[int, Leg] = field(factory=dict)
    _reads: dict[int, tuple[Leg, bool]] = field(factory=dict)
    """Token to leg, and whether writes are held until it is read."""

    def begin(self, leg: Leg, now: Instant, out: list[Effect]) -> bool:
        """Choose how the copy is caught up, and begin its stream (design, section 6)."""
        ctx = self.ctx
        identity = leg.identity
        if identity is None or leg.phase is not Phase.READY or not is_large_enough(ctx, leg):
            return False
        if not self.primary.serving:
            return False  # A new primary has no numbering of its own before it has reconciled.
        leg.wants_sync = False
        size = ctx.size_bytes
        known = ctx.absent.get(leg.copy)
        if identity.fresh:
            leg.job = SyncJob.filling(size, now.mono)
        elif known is not None:
            how = "dirty-map" if not identity.suspects else "dirty-map and intent"
            leg.job = SyncJob.confirming(how, size, identity.suspects, known, now.mono)
        else:
            leg.job = SyncJob.comparing(size, now.mono)
        before = Position(self.primary.next - 1)
        leg.restart_at(before)
        leg.settled_at = ctx.disk.submitted
        leg.phase = Phase.STREAMING
        leg.process = identity.session
        leg.progress_at = now.mono
        leg.send(BeginSync(ctx.epoch, self.primary.next), out)
        ctx.note("sync-begun", f"The copy on {leg.node} is synced by {leg.job.how}.", out)
        return self.drive(leg, now, out)

    def drive(self, leg: Leg, now: Instant, out: list[Effect]) -> bool:
        """Do whatever the leg's job can do now; return whether there is news."""
        job = leg.job
        if job is None or leg.phase is not Phase.STREAMING or leg.fault is not None:
            return False
        ctx = self.ctx
        if ctx.disk.applied < leg.settled_at:
            # What was written before the stream began does not travel in it; until it is on the
            # local disk, that disk would compare equal to a copy that lacks it too.
            return False
        if job.mapping and not job.map_asked:
            job.map_asked = True
            token = ctx.token()
            self._maps[token] = (leg, job)
            out.append(MapDisk(token))
        while (query := job.next_query(query_id := ctx.token())) is not None:
            level, indexes = query
            token = ctx.token()
            leg.queries[token] = query_id
            self._hashes[token] = leg
            leg.send(HashQuery(ctx.epoch, query_id, level, indexes), out)
            out.append(HashDisk(token, level, indexes))
        waits = self._read_next(leg, job, now, out)
        return (job.equal and self._on_equal(leg, now, out)) or waits

    def _read_next(self, leg: Leg, job: SyncJob, now: Instant, out: list[Effect]) -> bool:
        """Begin to read what is to be sent next, if the copy and the consumers leave room for it.

        Returns whether it waits for its rate, earlier than anything else does.
        """
        disk, primary = self.ctx.disk, self.primary
        busy = now.mono - primary.foreground_at < 1.0
        limit = SYNC_BUSY_BYTES if busy else SYNC_IN_FLIGHT_BYTES
        if leg.read_token is not None or job.in_flight_bytes >= limit:
            return False
        if job.contended and not disk.idle:
            return False
        if job.set_aside and now.mono >= leg.read_again_at and job.retry():
            leg.read_again_at = now.mono + RETRY_OFFLINE_S
        ready_at = primary.pace.ready_at(now.mono)
        if ready_at > now.mono:
            is_next = ready_at < self.go_on_at
            self.go_on_at = min(self.go_on_at, ready_at)
            return is_next
        runs = job.next_read(READ_CHUNKS_BUSY if busy else READ_CHUNKS_MAX)
        if not runs:
            return False
        if not disk.is_settled(runs):
            # What is on the way to the disk is before it in the stream, and would be undone.
            job.give_up_read(contended=True)
            return False
        leg.read_token = self.ctx.token()
        self._reads[leg.read_token] = (leg, job.contended)
        if job.contended:
            primary.holds += 1
        out.append(ReadRuns(leg.read_token, runs))
        return False

    def _on_equal(self, leg: Leg, now: Instant, out: list[Effect]) -> bool:
        job = leg.job
        assert job is not None
        if leg.in_sync:
            if leg.equal:
                return False
            leg.equal = True
            leg.job = None
            return True
        if leg.unacked_bytes > SYNC_IN_FLIGHT_BYTES:
            return False  # Counting on it now would make everybody wait for its backlog.
        if job.flush_at is None:
            job.flush_at = self.primary.push_to(leg, [Op(OpKind.FLUSH, 0, 0)], now, out)
            return False
        if leg.durable < job.flush_at or leg.joining:
            return False
        # From here on acknowledgements need it, so that when the record says "in sync" it holds
        # every acknowledged write; before this, it must have what was acknowledged already.
        if leg.applied < self.primary.commit and leg.unacked:
            return False
        leg.joining = True
        # It joins once it has given its promise, so that nothing has to wait for that then.
        ctx = self.ctx
        ctx.peers.grant(leg.node, ctx.record.volume, ctx.epoch)
        job.finished_at = now.mono
        self.primary.require()
        if not leg.has_on_disk(self.primary.durable):
            # Consumers have flushed meanwhile and were answered without this copy. It joins when it
            # has that on disk: after a loss of power of all it might be the one that is promoted.
            self.primary.push_to(leg, [Op(OpKind.FLUSH, 0, 0)], now, out)
        ctx.note(
            "sync-done",
            f"The copy on {leg.node} was synced by {job.how} with "
            f"{format_size(job.sent_bytes)} in {now.mono - job.started_at:.1f} s.",
            out,
        )
        return True

    def on_hashes(self, token: int, hashes: bytes, now: Instant, out: list[Effect]) -> bool:
        """Take the local half of a comparison; return whether there is news."""
        leg = self._hashes.pop(token, None)
        if leg is None or leg.job is None:
            return False
        query_id = leg.queries.pop(token, None)
        if query_id is None:
            return False
        leg.job.on_hashes(query_id, hashes, local=True)
        self.drive(leg, now, out)
        return True

    def on_map(self, event: MapDone, now: Instant, out: list[Effect]) -> bool:
        """Take the local data extents for a fresh copy; return whether there is news."""
        leg, job = self._maps.pop(event.token, (None, None))
        if leg is None or job is None or leg.job is not job:
            return False
        job.on_map(_data_extents(event))
        self.drive(leg, now, out)
        return True

    def on_runs(
        self, token: int, pieces: Sequence[bytes | None], now: Instant, out: list[Effect]
    ) -> bool:
        """Take runs that were read for sending; what the disk cannot read is mended first."""
        leg, held = self._reads.pop(token, (None, False))
        if held:
            self.primary.holds -= 1
        news = False
        # A read goes on when its link is lost, but then its outcome is for nobody.
        if leg is not None and leg.read_token == token and leg.job is not None:
            leg.read_token = None
            for run in leg.job.lost_in(pieces):
                self.mending.add_range(*run, now, out)
            ops = leg.job.on_read(pieces, self.primary.next)
            if ops:
                self.primary.pace.sent(now.mono, sum(len(op.data) for op in ops))
                self.primary.push_to(leg, ops, now, out)
            news = self.drive(leg, now, out)
        if held:
            self.primary.release(now, out)
        return news


def _data_extents(event: MapDone) -> Iterator[tuple[int, int]]:
    offset = 0
    for extent in event.extents:
        if not extent.is_hole:
            yield offset, extent.length
        offset += extent.length
