"""Which role one copy plays in its group, and every change of role.

    REPLICA ──silence of the primary──▶ CANDIDATE ──compare-and-set won──▶ PRIMARY
       ▲                                   │ lost, or the primary is back      │
       └───────────────────────────────────┴──────────── deposed, handed over ─┘

A role changes by the record, by a primary that presents itself, or by the own disk, and here is all that
each of them may do. The roles (`replica.py`, `primary.py` with `keeper.py` and `healing.py`) know their
own work, `asking.py` what the store was asked, `candidacy.py` when a replica may stand and `departure.py`
what is planned. Which event comes to whom is the business of `member.py`.
"""

from __future__ import annotations

import enum

from attrs import define, field

from holdfast.model import CopyState, GroupRecord
from holdfast.sync import events as ev
from holdfast.sync.asking import Answer, Asking
from holdfast.sync.attachments import Attachments
from holdfast.sync.candidacy import Candidacy
from holdfast.sync.context import Context
from holdfast.sync.departure import Departure
from holdfast.sync.events import Effect, Instant
from holdfast.sync.healing import Healing, PolicyOf
from holdfast.sync.keeper import Keeper
from holdfast.sync.pace import Pace
from holdfast.sync.primary import PrimaryRole
from holdfast.sync.replica import ReplicaRole


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
class Roles:
    """The roles of one copy on one node; at any time it plays one of them."""

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

    def __attrs_post_init__(self) -> None:
        """Begin as a replica; the first `Tick` decides whether that is right."""
        self.replica = ReplicaRole(self.ctx, heard_since=self.started_at)
        self.asking = Asking(self.ctx)
        self.candidacy = Candidacy(
            self.ctx, self.replica, self.started_at + self.ctx.peers.timing.lease_s
        )
        self.departure = Departure(self)

    def review(self) -> None:
        """Something happened that may change which record is wanted."""
        if self.keeper is not None:
            self.keeper.review = True

    # -- the record --------------------------------------------------------------------------------

    def follow_record(self, answer: Answer | None, now: Instant, out: list[Effect]) -> None:
        """Take what the store has told of the record; None: nothing that decides anything."""
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
                self.become_primary(now, out)
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
        self.review()

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
                self.review()
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
            promoted, notes = claim
            self.asking.change(promoted, out, notes)

    # -- another primary ---------------------------------------------------------------------------

    def on_attach(self, event: ev.AttachReceived, now: Instant, out: list[Effect]) -> None:
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

    # -- changes of role ---------------------------------------------------------------------------

    def _follow(self, now: Instant) -> None:
        """Be a replica of whoever the record names."""
        ctx = self.ctx
        self.role = Role.REPLICA
        self.replica.heard_since = now.mono
        epoch = max(ctx.epoch, ctx.record.epoch)
        ctx.peers.follow(ctx.record.volume, epoch, ctx.record.primary_member.node)

    def become_candidate(self, out: list[Effect]) -> None:
        """Ask for the group; the old primary gets no promise and no acknowledgement any more."""
        ctx = self.ctx
        self.role = Role.CANDIDATE
        self.candidacy.note_promise()
        # Nor for the epoch that it stands against, though it may have only read of that one.
        ctx.peers.follow(ctx.record.volume, max(ctx.epoch, ctx.record.epoch), None)
        self.replica.close_link("this copy stands for primary", out)
        self.asking.read(out)

    def become_primary(self, now: Instant, out: list[Effect]) -> None:
        """The record in force names this copy: hold the group, and serve once it is reconciled."""
        ctx = self.ctx
        self.candidacy.note_promise()
        self.replica.promoted = self.candidacy.is_forced = False
        self.replica.close_link("this copy is primary now", out)
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

    def on_disk_failed(self, event: ev.DiskFailed, out: list[Effect]) -> None:
        """R1: a copy whose disk fails is lost; a primary's group goes on without it."""
        self.failure = event.sentence
        self.asking.forget()
        self.ctx.note("disk-failed", event.sentence, out)
        self.replica.fail(event.reason, event.sentence, out)
        if self.primary is not None:
            # No acknowledgement, no lease: an in-sync replica takes over.
            self.lay_down(event.sentence, event.sentence, out)
        else:
            self.replica.close_link(event.sentence, out)
        self.ctx.peers.unfollow(self.ctx.record.volume)
        self.role = Role.FAILED

    def _on_removed(self, why: str, now: Instant, out: list[Effect]) -> None:
        """The record proves this copy superseded, or the volume deleted."""
        if self.primary is not None:
            self._step_down(now, out, why)
        self.replica.close_link("the copy was removed", out)
        self.ctx.peers.unfollow(self.ctx.record.volume)
        self.role = Role.REMOVED
        out.append(ev.RemoveCopy())

    def end(self) -> None:
        """The member is at rest; it takes no event any more."""
        self.role = Role.STOPPED
