"""One copy as a member of its group: which role it plays, and every change of role.

    REPLICA ──silence of the primary──▶ CANDIDATE ──compare-and-set won──▶ PRIMARY
       ▲                                   │ lost, or the primary is back      │
       └───────────────────────────────────┴──────────── deposed, handed over ─┘

A member is stepped by its pump with one event at a time and returns what is to be done. The roles
(`replica.py`, `primary.py` with `keeper.py` and `healing.py`) know their own work, `asking.py` what the
store was asked, `candidacy.py` when a replica may stand and `departure.py` what is planned; this module
knows who is who, and what follows for that from an event or a record.
"""

from __future__ import annotations

import enum
import errno
from typing import cast

from attrs import define, field

from holdfast.messages import (
    Ack,
    Reply,
    RequestKind,
    Requests,
    SessionClose,
    SessionOpen,
)
from holdfast.model import CopyState, GroupRecord
from holdfast.sync import events as ev
from holdfast.sync import growth, membership, reading
from holdfast.sync.asking import Answer, Asking
from holdfast.sync.attachments import Attachments
from holdfast.sync.candidacy import Candidacy
from holdfast.sync.context import BUSY_TICK_S, IDLE_TICK_S, Context
from holdfast.sync.departure import Departure
from holdfast.sync.events import Effect, Event, Instant, LinkId
from holdfast.sync.healing import Healing, PolicyOf
from holdfast.sync.keeper import Keeper
from holdfast.sync.leg import Phase
from holdfast.sync.pace import Pace
from holdfast.sync.primary import PrimaryRole
from holdfast.sync.replica import ReplicaRole
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
_READING = frozenset({RequestKind.READ, RequestKind.EXTENTS, RequestKind.FLUSH})


class Role(enum.Enum):
    """What the copy is in its group right now."""

    REPLICA = "replica"
    """Follows a primary, or waits for one."""
    CANDIDATE = "candidate"
    """The primary was silent for too long: follows it no longer and asks for the group."""
    PRIMARY = "primary"
    """Named by the record; serves once it has reconciled."""
    FAILED = "failed"
    """Its disk failed; it takes part in nothing until it is opened anew."""
    REMOVED = "removed"
    """The record names it no longer; its data is deleted."""
    STOPPED = "stopped"
    """At rest; its node is stopping."""


@define
class GroupMember:
    """The state machine of one copy on one node."""

    ctx: Context
    policy_of: PolicyOf
    started_at: float
    """Monotonic time; silence of the primary counts from here at the earliest."""
    role: Role = Role.REPLICA
    replica: ReplicaRole = field(init=False)
    primary: PrimaryRole | None = None
    keeper: Keeper | None = None
    healing: Healing | None = None
    failure: str = ""
    """Why the role is FAILED."""
    asking: Asking = field(init=False)
    candidacy: Candidacy = field(init=False)
    departure: Departure = field(init=False)
    _next_tick: float = 0.0

    def __attrs_post_init__(self) -> None:
        """Begin as a replica; the first `Tick` decides whether that is right."""
        self.replica = ReplicaRole(self.ctx, heard_since=self.started_at)
        self.asking = Asking(self.ctx)
        self.candidacy = Candidacy(
            self.ctx, self.replica, self.started_at + self.ctx.peers.timing.lease_s
        )
        self.departure = Departure(self)

    # -- the step ---------------------------------------------------------------------------------

    def step(self, event: Event, now: Instant) -> list[Effect]:
        """Take one event and return what is to be done, in order."""
        out: list[Effect] = []
        role = self.role
        if role is Role.STOPPED or role is Role.REMOVED:
            return out
        # Not a `match`: on the hot path its class patterns cost as much as the work behind them.
        if type(event) is ev.Received:
            self._on_received(event, now, out)
        elif type(event) is ev.Applied:
            self.ctx.disk.on_applied(event.through, out)
            if self.primary is None:
                self.replica.on_progress(out)
            else:
                self.primary.advance(now, out)
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
                    self._become_primary(now, out)
            return
        if event.link in primary.attachments.open:
            for message in event.messages:
                if type(message) is Requests:
                    self._on_requests(event.link, message, now, out)
                elif isinstance(message, SessionClose):
                    primary.attachments.leave(event.link, message.generation, out)
                    self._review()
            return
        assert self.keeper is not None
        leg = self.keeper.leg_of(event.link)
        if leg is not None:
            for message in event.messages:
                if leg.job is None and type(message) is Ack and leg.phase is Phase.STREAMING:
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
                self._follow_record(self.asking.on_seen(event, out), now, out)
            case ev.CasDone():
                self._follow_record(self.asking.on_done(event, out), now, out)
            case ev.SpecSeen():
                ctx.spec = event.spec
                if self.primary is not None:
                    self.primary.attachments.tell(out)
            case ev.NodesSeen():
                ctx.nodes = event.nodes
            case ev.AttachReceived():
                self._on_attach(event, now, out)
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
                self._on_disk_failed(event, out)
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

    def _review(self) -> None:
        if self.keeper is not None:
            self.keeper.review = True

    def _settle(self, now: Instant, out: list[Effect]) -> None:
        if self.role in {Role.REMOVED, Role.STOPPED, Role.FAILED}:
            if self.role is Role.FAILED and self.departure.stopping:
                self.departure.rest(out)
            self._next_tick = now.mono + IDLE_TICK_S
            return
        if self.primary is not None:
            self._settle_primary(now, out)
        else:
            self._settle_replica(now, out)
        if self.role in {Role.REPLICA, Role.PRIMARY}:
            self.ctx.tidy_intent(now, out)
        self._next_tick = now.mono + self._tick_after(now)

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
            # From here on the old primary gets no promise and no acknowledgement from this copy.
            self.role = Role.CANDIDATE
            self.candidacy.note_promise()
            # Nor for the epoch that it stands against, though it may have only read of that one.
            ctx.peers.follow(ctx.record.volume, max(ctx.epoch, ctx.record.epoch), None)
            if replica.link is not None:
                out.append(ev.CloseLink(replica.link, "this copy stands for primary"))
                replica.on_link_lost()
            self.asking.read(out)

    # -- the record --------------------------------------------------------------------------------

    def _follow_record(self, answer: Answer | None, now: Instant, out: list[Effect]) -> None:
        if answer is None:
            return
        if answer.is_won:
            assert answer.record is not None
            self._on_won(answer.record, answer.version, now, out)
        else:
            self._take_record(answer.record, answer.version, now, out)

    def _on_won(self, record: GroupRecord, version: int, now: Instant, out: list[Effect]) -> None:
        """The record is what this member asked for."""
        ctx = self.ctx
        before = ctx.record
        if self.role is Role.FAILED:
            ctx.record, ctx.version = record, version
            return
        self.asking.tell(out)
        ctx.adopt(record, version, out)
        if self.primary is None:
            if record.primary == ctx.copy and record.epoch > before.epoch:
                self._become_primary(now, out)
            return
        if record.epoch != before.epoch:
            ctx.raise_epoch(record.epoch, CopyState.IN_SYNC, out)
        if record.primary != ctx.copy:
            self.primary.announce(out)
            self._step_down(now, out, "handed over")
            return
        assert self.keeper is not None
        if record.epoch != before.epoch or record.members != before.members:
            self.primary.announce(out)
        self.keeper.follow_record(now, out)
        self.primary.attachments.on_record(record, out)
        if record.access is not before.access:
            assert self.healing is not None
            reason = self.healing.verdict.reason if self.healing.verdict else ""
            ctx.note("access", f"Access is now {record.access.value}: {reason}", out)
            self.primary.attachments.tell(out)
        self.primary.advance(now, out)
        self.primary.release(now, out)
        self._review()

    def _take_record(
        self, record: GroupRecord | None, version: int, now: Instant, out: list[Effect]
    ) -> None:
        """Somebody else wrote this record, or nobody did and we only looked."""
        ctx = self.ctx
        if record is None or (record.find(ctx.copy) is None and version > ctx.version):
            why = "the volume is deleted" if record is None else "the group has replaced its copy"
            self._on_removed(why, now, out)
            return
        if self.role is Role.FAILED:
            # Whoever leads the group now, this copy follows nobody until it is opened anew.
            ctx.record, ctx.version = record, version
            return
        if self.primary is not None:
            if record.primary != ctx.copy or record.epoch > ctx.record.epoch:
                ctx.adopt(record, version, out)
                self._step_down(now, out, f"deposed by epoch {record.epoch}")
            elif version != ctx.version or ctx.told:
                self.primary.stopped = False
                ctx.adopt(record, version, out)
                assert self.keeper is not None
                self.keeper.follow_record(now, out)
                self._review()
            return
        changed = record.epoch != ctx.record.epoch or record.primary != ctx.record.primary
        if self.role is Role.CANDIDATE and not changed:
            ctx.adopt(record, version, out)
            self._stand(now, out)
            return
        if self.replica.link is None or record.epoch >= ctx.epoch:
            ctx.adopt(record, version, out)
        if self.role is Role.CANDIDATE or changed:
            self._follow(now)

    def _stand(self, now: Instant, out: list[Effect]) -> None:
        """Ask for the group, by the record that was just read."""
        claim = self.candidacy.claim(now)
        if claim is None:
            self._follow(now)
        else:
            promoted, note = claim
            self.asking.change(promoted, out, (note,))

    def _follow(self, now: Instant) -> None:
        """Be a replica of whoever the record names."""
        ctx = self.ctx
        self.role = Role.REPLICA
        self.replica.heard_since = now.mono
        epoch = max(ctx.epoch, ctx.record.epoch)
        ctx.peers.follow(ctx.record.volume, epoch, ctx.record.primary_member.node)

    def _on_removed(self, why: str, now: Instant, out: list[Effect]) -> None:
        """The record proves this copy superseded, or the volume deleted."""
        if self.primary is not None:
            self._step_down(now, out, why)
        if self.replica.link is not None:
            out.append(ev.CloseLink(self.replica.link, "the copy was removed"))
            self.replica.on_link_lost()
        self.ctx.peers.unfollow(self.ctx.record.volume)
        self.role = Role.REMOVED
        out.append(ev.RemoveCopy())

    # -- changes of role ---------------------------------------------------------------------------

    def _become_primary(self, now: Instant, out: list[Effect]) -> None:
        ctx = self.ctx
        self.candidacy.note_promise()
        self.replica.promoted = self.candidacy.is_forced = False
        if self.replica.link is not None:
            out.append(ev.CloseLink(self.replica.link, "this copy is primary now"))
            self.replica.on_link_lost()
        self.role = Role.PRIMARY
        ctx.fresh = False  # It is about to be written to; zeros may not be assumed again.
        ctx.raise_epoch(ctx.record.epoch, CopyState.IN_SYNC, out)
        ctx.peers.follow(ctx.record.volume, ctx.record.epoch, ctx.node)
        attachments = Attachments(ctx)
        self.primary = PrimaryRole(ctx, attachments, pace=Pace(ctx.pace_limits))
        self.keeper = Keeper(ctx, self.primary, inherited_until=self.candidacy.read_until)
        self.healing = Healing(ctx, self.primary, self.policy_of)
        self.keeper.follow_record(now, out)
        self.asking.read(out)

    def _step_down(self, now: Instant, out: list[Effect], why: str) -> None:
        """Stop being primary; what was not acknowledged stays in the window for R6 and R8."""
        ctx = self.ctx
        self.lay_down(f"This node stepped down: {why}.", "stepped down", out)
        ctx.note("stepped-down", f"{ctx.node} is no longer primary: {why}.", out)
        self._follow(now)
        self.departure.on_stepped_down(out)

    def lay_down(self, sentence: str, why: str, out: list[Effect]) -> None:
        """End the primary's work at once: no acknowledgement, no lease, no outcome after this.

        Args:
            sentence: What its consumers are told.
            why: What its copies are told.
            out: What is to be done.
        """
        primary, keeper = self.primary, self.keeper
        assert primary is not None
        assert keeper is not None
        primary.stopped = True
        for job in keeper.verifying:
            job.abandon(out)
        primary.attachments.close_all("not-primary", sentence, out)
        for leg in primary.legs.values():
            leg.close(why, out)
        self.ctx.peers.revoke(self.ctx.record.volume)
        self.primary = self.keeper = self.healing = None

    def _on_disk_failed(self, event: ev.DiskFailed, out: list[Effect]) -> None:
        """R1: a copy whose disk fails is lost; a primary's group goes on without it."""
        self.failure = event.sentence
        self.asking.forget()
        self.ctx.note("disk-failed", event.sentence, out)
        self.replica.fail(event.reason, event.sentence, out)
        if self.primary is not None:
            # No acknowledgement, no lease: an in-sync replica takes over.
            self.lay_down(event.sentence, event.sentence, out)
        elif self.replica.link is not None:
            out.append(ev.CloseLink(self.replica.link, event.sentence))
            self.replica.on_link_lost()
        self.ctx.peers.unfollow(self.ctx.record.volume)
        self.role = Role.FAILED

    # -- links -------------------------------------------------------------------------------------

    def _on_attach(self, event: ev.AttachReceived, now: Instant, out: list[Effect]) -> None:
        """A primary presents itself (R3): follow it unless its epoch is stale."""
        ctx, hello = self.ctx, event.hello
        refusal = None
        record = GroupRecord.from_bytes(hello.record)
        if hello.cluster != ctx.cluster or hello.volume != ctx.record.volume:
            refusal = ctx.refused("wrong-cluster", f"This is volume {ctx.spec.name} of another.")
        elif hello.target != ctx.copy:
            refusal = ctx.refused("wrong-copy", f"The copy here is {ctx.copy}.")
        elif self.role is Role.FAILED:
            refusal = ctx.refused("failed", self.failure)
        elif hello.epoch < max(ctx.epoch, ctx.record.epoch):
            refusal = ctx.refused("stale-epoch", f"This copy knows epoch {ctx.epoch}.")
        elif hello.epoch == ctx.epoch and self.primary is not None:
            refusal = ctx.refused("not-replica", "This copy is the primary of that epoch.")
        elif self.role is Role.CANDIDATE and self.asking.wanted is not None:
            refusal = ctx.refused(
                "busy", "This copy has asked for the group and awaits the answer."
            )
        elif self.departure.stopping:
            refusal = ctx.refused("stopping", "This node is stopping.")
        if refusal is not None:
            out.append(ev.Send(event.link, (refusal,)))
            out.append(ev.CloseLink(event.link, refusal.sentence))
            if hello.epoch > ctx.epoch:
                self.asking.read(out)
            return
        if self.primary is not None:
            self._step_down(now, out, f"{hello.node} is primary of epoch {hello.epoch}")
        self.role = Role.REPLICA
        self.replica.on_attach(event.link, hello, record, now, out)

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

    def end(self) -> None:
        """The member is at rest; it takes no event any more."""
        self.role = Role.STOPPED

    # -- time --------------------------------------------------------------------------------------

    @property
    def waits_for_store(self) -> bool:
        """Whether a change of the record was asked for and the store has not answered."""
        return self.asking.is_unsure

    @property
    def deadline(self) -> float:
        """The monotonic time at which to step with `Tick` though nothing else has happened."""
        return self._next_tick

    def _tick_after(self, now: Instant) -> float:
        if self.departure.under_way or self.role is Role.CANDIDATE:
            return BUSY_TICK_S
        if self.keeper is not None:
            return self.keeper.tick_after(now)
        return self.candidacy.tick_after(now)
