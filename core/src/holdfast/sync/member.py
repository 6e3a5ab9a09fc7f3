"""One copy as a member of its group: which event comes to whom, and what follows by itself.

A member is stepped by its pump with one event at a time and returns what is to be done. Hot events take
the shortest way to the role that the copy plays; after every other one the member *settles*: it does
whatever its state asks for, so that nothing depends on which event brought that state about. What a
role does is its own business, and every change of role is in `roles.py`.
"""

from __future__ import annotations

import errno
from typing import cast

from attrs import define

from holdfast.messages import (
    Ack,
    Reply,
    RequestKind,
    Requests,
    SessionClose,
    SessionOpen,
)
from holdfast.model import GroupRecord
from holdfast.sync import events as ev
from holdfast.sync import growth, membership, reading
from holdfast.sync.context import BUSY_TICK_S, IDLE_TICK_S, REST_TICK_S
from holdfast.sync.events import Effect, Event, Instant, LinkId
from holdfast.sync.leg import Phase
from holdfast.sync.roles import Role, Roles
from holdfast.sync.verify import VerifyJob

_Read = (
    ev.HashesDone
    | ev.ReadDone
    | ev.ReadFailed
    | ev.ReadsFailed
    | ev.LateReads
    | ev.RunsRead
    | ev.MapDone
)
_STOPPED, _REMOVED, _STREAMING = Role.STOPPED, Role.REMOVED, Phase.STREAMING
"""Looked up in its enum, a member costs more than a call, on the hot path."""
_READING = frozenset({RequestKind.READ, RequestKind.EXTENTS, RequestKind.FLUSH})


@define
class GroupMember(Roles):
    """The state machine of one copy on one node."""

    next_tick: float = 0.0
    """The monotonic time at which to step with `Tick` though nothing else has happened."""

    # -- the step ---------------------------------------------------------------------------------

    def step(self, event: Event, now: Instant) -> list[Effect]:
        """Take one event and return what is to be done, in order."""
        out: list[Effect] = []
        role = self.role
        if role is _STOPPED or role is _REMOVED:
            return out
        # Not a `match`: on the hot path its class patterns cost as much as the work behind them.
        if type(event) is ev.Received:
            self._on_received(event, now, out)
        elif type(event) is ev.Applied:
            disk = self.ctx.disk
            disk.applied = event.through
            if event.flushed:
                disk.flushed_through(event.through)
            if self.primary is None:
                self.replica.on_progress(out)
            else:
                self.primary.advance(now, out)
            # Behind the acknowledgement, which need not wait for it.
            if disk.flush_at:
                disk.flush_due(out)
        elif type(event) is ev.Flushed:
            self.ctx.disk.on_flushed(event.token, out)
            self._on_progress(now, out)
        elif type(event) is ev.LocalReads:
            if role is Role.REPLICA and not self.departure.stopping:
                self.replica.read(event.link, event.requests, now, out)
            else:
                out.append(ev.Unserved(event.link, event.requests))
        elif type(event) is ev.RegionsMarked:
            self.ctx.disk.on_marked(out)
        else:
            self._on_rare(event, now, out)
        if self.keeper is not None and self.keeper.review:
            self._settle(now, out)
        return out

    def _on_received(self, event: ev.Received, now: Instant, out: list[Effect]) -> None:
        """The hot events: requests of sessions, acknowledgements of legs, batches of the stream."""
        primary = self.primary
        if primary is None:
            if event.link == self.replica.link:
                self.replica.on_messages(event.messages, now, out)
                if self.replica.promoted:
                    self.become_primary(now, out)
            return
        if event.link in primary.attachments.open:
            for message in event.messages:
                if type(message) is Requests:
                    self._on_requests(event.link, message, now, out)
                elif isinstance(message, SessionClose):
                    primary.attachments.leave(event.link, message.generation, out)
                    self.review()
            return
        assert self.keeper is not None
        leg = self.keeper.leg_of(event.link)
        if leg is not None:
            for message in event.messages:
                if leg.job is None and type(message) is Ack and leg.phase is _STREAMING:
                    _, applied, durable = message
                    leg.on_ack(applied, durable, now.mono)
                else:
                    self.keeper.on_message(leg, message, now, out)
            if self.keeper.deposed_by:
                self.asking.read(out)
            primary.advance(now, out)

    def _on_requests(
        self, link: LinkId, message: Requests, now: Instant, out: list[Effect]
    ) -> None:
        assert self.primary is not None
        attachment = self.primary.attachments.open.get(link)
        if attachment is None or message.generation < attachment.generation:
            return
        requests = message.requests
        if attachment.hello.read_only:
            denied = [r for r in requests if r.kind not in _READING]
            if denied:
                out.append(ev.SendReplies(link, [Reply(r.id, errno.EPERM) for r in denied]))
                requests = [r for r in requests if r.kind in _READING]
        self.primary.on_requests(link, requests, now, out)
        if self.next_tick > now.mono + IDLE_TICK_S and not self.primary.idle:
            self.next_tick = now.mono + BUSY_TICK_S

    def _on_progress(self, now: Instant, out: list[Effect]) -> None:
        if self.primary is not None:
            self.primary.advance(now, out)
        else:
            self.replica.on_progress(out)

    def _on_rare(self, event: Event, now: Instant, out: list[Effect]) -> None:
        ctx = self.ctx
        match event:
            case ev.Tick():
                pass
            case ev.Saved():
                if ctx.on_saved(event.token) and self.primary is not None:
                    growth.on_grown(ctx, self.primary, out)
                self._on_progress(now, out)
            case ev.RecordSeen():
                if self.keeper is not None and event.version >= ctx.version:
                    self.keeper.deposed_by = 0
                self.departure.reconsider(event, now)
                self.follow_record(self.asking.on_seen(event, out), now, out)
            case ev.CasDone():
                self.follow_record(self.asking.on_done(event, out), now, out)
            case ev.SpecSeen():
                ctx.spec = event.spec
                if self.primary is not None:
                    self.primary.attachments.tell(out)
            case ev.NodesSeen():
                ctx.nodes = event.nodes
            case ev.AttachReceived():
                self.on_attach(event, now, out)
            case ev.SessionLinked():
                self._on_session(event.link, cast("SessionOpen", event.hello), out)
            case ev.LinkLost():
                self._on_link_lost(event, now, out)
            case ev.LinkOpened():
                leg = None if self.keeper is None else self.keeper.leg_of(event.link)
                if leg is not None and leg.phase is Phase.OPENING:
                    leg.phase = Phase.ATTACHING
            case (
                ev.HashesDone()
                | ev.ReadDone()
                | ev.ReadFailed()
                | ev.ReadsFailed()
                | ev.LateReads()
                | ev.RunsRead()
                | ev.MapDone()
            ):
                self._on_read(event, now, out)
            case ev.DiskStalled():
                ctx.stalled_s = event.for_s
                ctx.peers.on_stall(ctx.record.volume, event.for_s)
            case ev.DiskFailed():
                self.on_disk_failed(event, out)
            case ev.Fenced():
                if event.epoch > ctx.epoch:
                    self.asking.read(out)
            case ev.Handover():
                self.departure.hand_over(event, now)
            case ev.Evict():
                if self.healing is not None:
                    self.healing.evict(event.node)
            case ev.AddCopy():
                if self.healing is not None:
                    self.healing.wanted_nodes.add(event.node)
            case ev.MoveCopy():
                if self.healing is not None:
                    self.healing.move(event.source, event.target)
            case ev.Verify():
                self._on_verify(event, out)
            case ev.ForcePromote():
                self.candidacy.force()
            case ev.Stop():
                self.departure.begin_stop(event, now)
            case _:
                raise AssertionError(event)
        self._settle(now, out)

    def _on_read(self, event: _Read, now: Instant, out: list[Effect]) -> None:
        """What was read of the own disk, for whichever role asked, or could not be."""
        match event:
            case ev.HashesDone():
                if not self.replica.on_answer(event.token, event.hashes, out) and self.keeper:
                    self.keeper.on_hashes(event.token, event.hashes, now, out)
            case ev.ReadDone():
                if not self.replica.on_answer(event.token, event.data, out) and self.keeper:
                    self.keeper.on_read(event.token, event.data, now, out)
            case ev.ReadFailed():
                if not self.replica.on_read_failed(event.token, out) and self.keeper:
                    self.keeper.on_read_failed(event.token, now, out)
            case ev.RunsRead():
                if self.keeper is not None:
                    self.keeper.on_runs(event.token, event.pieces, now, out)
            case ev.LateReads():
                if self.primary is not None and event.link in self.primary.attachments.open:
                    self.primary.on_late_reads(event, now, out)
            case ev.ReadsFailed():
                # A consumer whose primary was deposed before its disk answered asks the next one.
                if event.at_once:
                    out.append(ev.Unserved(event.link, event.requests))
                elif self.keeper is not None:
                    self.keeper.mending.add(event.link, event.requests, now, out)
            case ev.MapDone():
                if self.keeper is not None:
                    self.keeper.on_map(event, now, out)

    # -- settling: everything that follows from state, not from an event ---------------------------

    def _settle(self, now: Instant, out: list[Effect]) -> None:
        if self.role in {Role.REMOVED, Role.STOPPED, Role.FAILED}:
            if self.role is Role.FAILED and self.departure.stopping:
                self.departure.rest(out)
            self.next_tick = now.mono + IDLE_TICK_S
            return
        if self.primary is not None:
            self._settle_primary(now, out)
        else:
            self._settle_replica(now, out)
        if self.role in {Role.REPLICA, Role.PRIMARY}:
            self.ctx.tidy_intent(now, out)
        self.next_tick = now.mono + self._tick_after(now)

    def _settle_primary(self, now: Instant, out: list[Effect]) -> None:
        primary, keeper, healing = self.primary, self.keeper, self.healing
        assert primary is not None
        assert keeper is not None
        assert healing is not None
        keeper.review = False
        growth.tend(self.ctx, primary, now, out)
        keeper.tend(now, out)
        if keeper.deposed_by:
            self.asking.read(out)
        if not primary.serving:
            keeper.try_serving(now, out)
        primary.advance(now, out)
        primary.release(now, out)
        primary.tell_commit(now, out)
        self.departure.advance(now, out)
        if self.asking.is_idle and self.role is Role.PRIMARY:
            if primary.serving or any(leg.fault for leg in primary.legs.values()):
                effects: list[Effect] = []
                desired = self._desired(now, effects)
                # What is told of a change is told once it has come to pass.
                notes = [effect for effect in effects if isinstance(effect, ev.Note)]
                out.extend(effect for effect in effects if not isinstance(effect, ev.Note))
                if reading.are_over(primary, desired, now) and desired != self.ctx.record:
                    primary.count_on(desired)
                    self.asking.change(desired, out, notes)

    def _desired(self, now: Instant, out: list[Effect]) -> GroupRecord:
        primary, healing = self.primary, self.healing
        assert primary is not None
        assert healing is not None
        handed_over = self.departure.desired(now)
        if handed_over is not None:
            return handed_over
        if not primary.serving:
            return healing.drop_faulty(self.ctx.record, now)
        return healing.desired(now, out)

    def _settle_replica(self, now: Instant, out: list[Effect]) -> None:
        ctx, replica = self.ctx, self.replica
        replica.on_progress(out)
        if self.departure.stopping:
            self.departure.leave(now, out)
            return
        if not self.asking.is_idle:
            return
        mine = ctx.me
        if ctx.rebooted and ctx.counted_in and mine is not None and not mine.suspect:
            # Whenever the record counts it in, also when that was asked for before it lost power; but
            # not when it was synced since, and the store tells of that sooner than the primary.
            if ctx.record.epoch < ctx.epoch or not replica.on_joined(out):
                if ctx.told:
                    self.asking.read(out)
                else:
                    self.asking.change(membership.mark_suspect(ctx.record, ctx.copy), out)
                return
        if self.role is Role.REPLICA and self.candidacy.is_due(now):
            self.become_candidate(out)

    # -- sessions and links -------------------------------------------------------------------------

    def _on_session(self, link: LinkId, hello: SessionOpen, out: list[Effect]) -> None:
        primary = self.primary
        if primary is None or primary.stopped:
            refusal = self.ctx.refused("not-primary", f"{self.ctx.node} is not the primary.")
            out.append(ev.Send(link, (refusal,)))
            out.append(ev.CloseLink(link, refusal.sentence))
        else:
            primary.attachments.add(link, hello, out)

    def _on_verify(self, event: ev.Verify, out: list[Effect]) -> None:
        if self.primary is None or self.keeper is None or not self.primary.serving:
            out.append(ev.Verified(event.token, 0, 0, 0, None, failed=True))
        else:
            job = VerifyJob.over(
                event.token, self.primary, repair=event.repair, pace_s=event.pace_s
            )
            self.keeper.verifying.append(job)

    def _on_link_lost(self, event: ev.LinkLost, now: Instant, out: list[Effect]) -> None:
        if event.link == self.replica.link:
            self.replica.on_link_lost()
        if self.primary is None or self.keeper is None:
            return
        if self.primary.attachments.lost(event.link):
            return
        leg = self.keeper.leg_of(event.link)
        if leg is not None:
            self.keeper.on_link_lost(leg, now, gone=event.gone, sentence=event.sentence, out=out)

    # -- time --------------------------------------------------------------------------------------

    @property
    def waits_for_store(self) -> bool:
        """Whether a change of the record was asked for and the store has not answered."""
        return self.asking.is_unsure

    def _tick_after(self, now: Instant) -> float:
        if self.departure.under_way or self.role is Role.CANDIDATE:
            return BUSY_TICK_S
        if self.keeper is None:
            return self.candidacy.tick_after(now)
        after = self.keeper.tick_after(now)
        if after == IDLE_TICK_S and self._rests:
            return max(BUSY_TICK_S, min(self._silent_at(now) - now.mono, REST_TICK_S))
        return after

    @property
    def _rests(self) -> bool:
        """Whether nothing but a copy's silence, or an event, can give this primary work to do."""
        ctx = self.ctx
        return (
            self.healing is not None
            and self.healing.is_content
            and self.asking.is_idle
            and not ctx.disk.marked
            and ctx.size_bytes == ctx.spec.size_bytes
        )

    def _silent_at(self, now: Instant) -> float:
        """Return the monotonic time before which no copy can have been silent for too long (R12)."""
        assert self.primary is not None
        peers, volume = self.ctx.peers, self.ctx.record.volume
        legs = self.primary.legs.values()
        since = (leg.silent_since(peers, volume, now.mono) for leg in legs if leg.in_sync)
        return min(since, default=float("inf")) + peers.timing.lease_s
