"""The life of a primary's legs: open, attach, reconcile, time out.

What a copy says when it presents itself decides how it comes back (R8); what a leg does or fails to
do decides when it is lost (R12). The keeper only marks faults and wishes on the legs; what the record
becomes is decided in `healing.py`, and what happens to acknowledgements follows from the record. How a
copy is brought up to date is the business of `syncing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from holdfast.errors import FaultReason
from holdfast.messages import (
    Ack,
    Attach,
    Attached,
    CopyFailed,
    EpochChange,
    HashAnswer,
    Message,
    ReadAnswer,
    ReadLeaseQuery,
    Refused,
    Resized,
    SyncBegun,
)
from holdfast.model import CopyState, Member
from holdfast.sync import reconciling
from holdfast.sync.context import BUSY_TICK_S, IDLE_TICK_S, Context
from holdfast.sync.events import Effect, Instant, LinkId, MapDone, OpenLink
from holdfast.sync.growth import is_large_enough
from holdfast.sync.leg import (
    OPEN_PATIENCE_S,
    RETRY_OFFLINE_S,
    RETRY_S,
    Leg,
    Phase,
)
from holdfast.sync.mending import Mending
from holdfast.sync.primary import PrimaryRole
from holdfast.sync.reading import NEVER, grant
from holdfast.sync.syncing import Syncing
from holdfast.sync.verify import VerifyJob

SYNC_TICK_S = 0.005
"""While only the rate of a sync is to be waited for."""
LEASE_TICK_S = 0.005
"""While only a lease is missing, which comes beside the member's own events."""


@define
class Keeper:
    """Keeps one leg for every other member of the record."""

    ctx: Context
    primary: PrimaryRole
    deposed_by: int = 0
    """An epoch above ours that a copy has told of; the record must be read."""
    review: bool = True
    """Something happened that may change which record is wanted."""
    verifying: list[VerifyJob] = field(factory=list)
    mending: Mending = field(init=False)
    syncing: Syncing = field(init=False)
    inherited_until: float = NEVER
    """Until when a copy that has not presented itself may read by a lease of an earlier primary."""

    def __attrs_post_init__(self) -> None:
        """Begin with nothing to mend or to sync."""
        self.mending = Mending(self.primary)
        self.syncing = Syncing(self.ctx, self.primary, self.mending)

    # -- following the record ---------------------------------------------------------------------

    def follow_record(self, now: Instant, out: list[Effect]) -> None:
        """Make the legs match the record in force, and the leases the in-sync set."""
        ctx = self.ctx
        legs = self.primary.legs
        members = {m.copy: m for m in ctx.record.members if m.copy != ctx.copy}
        for copy in [c for c in legs if c not in members]:
            self._end(legs.pop(copy), "the copy was taken out of the group", out)
        for member in members.values():
            leg = legs.get(member.copy)
            if leg is None:
                legs[member.copy] = Leg(
                    member.copy,
                    member.node,
                    member.state,
                    required_since=now.mono,
                    progress_at=now.mono,
                    reads_until=self.inherited_until,
                )
            elif leg.state is not member.state or (leg.wants_sync and _names(member, leg)):
                self._change_state(leg, member, now, out)
        for leg in legs.values():
            leg.counted_on = False
        needed = [leg.node for leg in legs.values() if leg.in_sync or leg.joining]
        ctx.peers.revoke(ctx.record.volume, keep=frozenset(needed))
        for node in needed:
            ctx.peers.grant(node, ctx.record.volume, ctx.record.epoch)
        self.primary.require()

    def _change_state(self, leg: Leg, member: Member, now: Instant, out: list[Effect]) -> None:
        before, leg.state = leg.state, member.state
        if member.state is CopyState.IN_SYNC:
            leg.required_since = now.mono
            leg.joining = False
            leg.equal = True
            leg.last_job, leg.job = leg.job, None
            self.ctx.note("copy-in-sync", f"The copy on {leg.node} is in sync.", out)
        elif member.state is CopyState.OFFLINE:
            sentence = leg.fault[1] if leg.fault else "it was dropped"
            kind = "copy-dropped" if before is CopyState.IN_SYNC else "sync-ended"
            self.ctx.note(kind, f"The copy on {leg.node} is offline: {sentence}.", out)
            self._end(leg, "dropped from the in-sync set", out)
            leg.fault = None
            leg.joining = leg.equal = leg.wants_sync = False
            leg.retry_at = now.mono + RETRY_S
        elif member.state is CopyState.SYNCING and leg.wants_sync:
            self._begin_sync(leg, now, out)

    def _end(self, leg: Leg, why: str, out: list[Effect]) -> None:
        leg.close(why, out)
        leg.unacked.clear()
        leg.unacked_bytes = 0
        leg.job = None
        leg.read_token = None

    def try_serving(self, now: Instant, out: list[Effect]) -> None:
        """R6: reconcile with every in-sync copy, then serve."""
        primary, ctx = self.primary, self.ctx
        in_sync = [leg for leg in primary.legs.values() if leg.in_sync]
        if not ctx.epoch_is_durable or not ctx.disk.idle:
            return
        if any(leg.phase not in {Phase.READY, Phase.STREAMING} for leg in in_sync):
            return
        if not all(is_large_enough(ctx, leg) for leg in in_sync):
            return
        if any(leg.job is None and not leg.equal for leg in in_sync) or not primary.reconciling:
            reconciling.begin(primary, now)
            for leg in in_sync:
                self._drive(leg, now, out)
        if all(leg.equal for leg in in_sync) and primary.lease_until() > now.mono:
            primary.serving = True
            ctx.disk.release_pins()
            ctx.trust(out)
            ctx.note("primary-serving", f"{ctx.node} serves as primary, epoch {ctx.epoch}.", out)
            primary.advance(now, out)
            self.review = True

    def tick_after(self, now: Instant) -> float:
        """Return after how many seconds the primary looks again at what sends no event."""
        primary, legs = self.primary, self.primary.legs.values()
        if self.verifying or self.mending.active:
            return BUSY_TICK_S
        if self.syncing.go_on_at < now.mono + BUSY_TICK_S:
            return max(SYNC_TICK_S, self.syncing.go_on_at - now.mono)
        if not primary.serving and all(leg.equal for leg in legs if leg.in_sync):
            return LEASE_TICK_S
        settled = primary.serving and primary.idle and primary.commit >= primary.told_commit
        if settled and not any(
            leg.joining or (leg.in_sync and leg.phase is not Phase.STREAMING) for leg in legs
        ):
            return IDLE_TICK_S
        return BUSY_TICK_S

    # -- links -------------------------------------------------------------------------------------

    def tend(self, now: Instant, out: list[Effect]) -> None:
        """Open links that are due, find legs that are lost, and go on with what waits."""
        self.syncing.go_on_at = float("inf")
        for job in self.verifying:
            job.on_leg_changed(now, out)
            job.advance(now, out)
        self.verifying = [job for job in self.verifying if not job.done]
        if self.mending.active:
            self.mending.advance(now, out)
        for leg in self.primary.legs.values():
            if leg.fault is None and leg.state is not CopyState.OFFLINE:
                self._look_for_fault(leg, now)
            if (
                leg.phase in {Phase.OPENING, Phase.ATTACHING}
                and now.mono - leg.opened_at > OPEN_PATIENCE_S
            ):
                leg.close("no answer", out)
                leg.retry_at = now.mono + RETRY_OFFLINE_S
            if leg.phase is Phase.CLOSED and now.mono >= leg.retry_at and leg.fault is None:
                self._open(leg, now, out)
            if leg.phase is Phase.READY and leg.wants_sync:
                member = self.ctx.record.find(leg.copy)
                if member is not None and _names(member, leg):
                    self._begin_sync(leg, now, out)
            if leg.job is not None and leg.phase is Phase.STREAMING:
                self._drive(leg, now, out)

    def _open(self, leg: Leg, now: Instant, out: list[Effect]) -> None:
        ctx = self.ctx
        if leg.state is CopyState.OFFLINE and leg.node not in ctx.nodes:
            leg.retry_at = now.mono + RETRY_OFFLINE_S
            return
        leg.link = ctx.new_link()
        leg.phase = Phase.OPENING
        leg.opened_at = now.mono
        out.append(
            OpenLink(
                leg.link,
                leg.node,
                Attach(
                    cluster=ctx.cluster,
                    volume=ctx.record.volume,
                    epoch=ctx.epoch,
                    node=ctx.node,
                    session=ctx.process,
                    primary=ctx.copy,
                    target=leg.copy,
                    record=ctx.record.to_bytes(),
                    spec=ctx.spec.to_bytes(),
                    resume=leg.in_sync and leg.equal,
                ),
            )
        )

    def _look_for_fault(self, leg: Leg, now: Instant) -> None:
        """R12: silence for `lease` loses a copy; living heartbeats with dead acks take longer."""
        ctx = self.ctx
        timing = ctx.peers.timing
        member = ctx.record.find(leg.copy)
        if leg.in_sync:
            silent_since = leg.silent_since(ctx.peers, ctx.record.volume, now.mono)
            if now.mono - silent_since > timing.lease_s:
                self._fault(leg, FaultReason.LINK_LOST, "its node answers no heartbeat")
                return
            if member is not None and member.suspect:
                self._fault(leg, FaultReason.RESTARTED, "its machine restarted")
                return
        if leg.phase is Phase.READY and not leg.growing:
            return  # It has presented itself; what comes next is up to us.
        if leg.phase not in {Phase.READY, Phase.STREAMING}:
            since = leg.lost_since
            if since is None:
                leg.lost_since = now.mono
            elif leg.gone_since is not None and now.mono - leg.gone_since > timing.gone_s:
                self._fault(leg, FaultReason.LINK_LOST, "its process is gone")
            elif now.mono - since > timing.lease_s:
                self._fault(leg, FaultReason.LINK_LOST, "no stream to it could be opened")
            return
        asked = leg.job is not None and leg.job.asking
        if leg.unacked or leg.growing or asked or self._holds_for(leg):
            patience = timing.ack_timeout_s
            if leg.in_sync and self.primary.others_in_sync() == 1:
                patience *= 2
            if now.mono - leg.progress_at > patience:
                self._fault(
                    leg,
                    FaultReason.ACK_TIMEOUT,
                    f"it has acknowledged nothing for {patience:.0f} s",
                )

    def _holds_for(self, leg: Leg) -> bool:
        return self.mending.awaits(leg) or any(job.awaits(leg) for job in self.verifying)

    def _fault(self, leg: Leg, reason: FaultReason, sentence: str) -> None:
        if leg.fault is not None or leg.state is CopyState.OFFLINE:
            return  # A copy that is offline already is only tried again.
        leg.fault = (reason, sentence)
        leg.joining = False
        self.review = True
        if leg.state is CopyState.SYNCING:
            # From now until the record says so, what it misses must still be noted somewhere.
            missed = leg.missed(self.ctx.size_bytes)
            if missed is not None:
                self.ctx.absent[leg.copy] = missed
        self.primary.require()

    def on_link_lost(
        self, leg: Leg, now: Instant, *, gone: bool, sentence: str, out: list[Effect]
    ) -> None:
        """The link broke, or could not be opened."""
        was_streaming = leg.phase is Phase.STREAMING
        leg.drop_link()
        leg.read_token = None
        leg.retry_at = now.mono + (RETRY_OFFLINE_S if leg.state is CopyState.OFFLINE else RETRY_S)
        if leg.lost_since is None:
            leg.lost_since = now.mono
        if not gone:
            leg.gone_since = None
        elif leg.gone_since is None:
            leg.gone_since = now.mono
        if was_streaming and leg.state is CopyState.SYNCING:
            self._fault(leg, FaultReason.LINK_LOST, sentence or "its link broke during the sync")
        elif leg.in_sync and not (leg.equal and self.primary.serving):
            # A reconcile begins anew with what the copy says when it is back.
            leg.equal = False
            leg.job = None
            leg.unacked.clear()
            leg.unacked_bytes = 0

    # -- messages ----------------------------------------------------------------------------------

    def on_message(self, leg: Leg, message: Message, now: Instant, out: list[Effect]) -> None:
        """Take one message of a copy."""
        if isinstance(message, Ack):
            if message.epoch == self.ctx.epoch or leg.phase is Phase.STREAMING:
                leg.on_ack(message.applied, message.durable, now.mono)
                if leg.job is not None:
                    self._drive(leg, now, out)
        elif isinstance(message, Attached):
            if leg.phase in {Phase.OPENING, Phase.ATTACHING}:
                self._on_attached(leg, message, now, out)
        elif isinstance(message, HashAnswer):
            if any(
                job.on_remote(leg, message.id, message.hashes, now, out) for job in self.verifying
            ) or self.mending.on_hashes(leg, message.id, message.hashes, now, out):
                return
            if leg.job is not None:
                leg.progress_at = now.mono
                leg.job.on_hashes(message.id, message.hashes, local=False)
                self.review = True
                self._drive(leg, now, out)
        elif isinstance(message, Resized):
            leg.size_bytes = max(leg.size_bytes, message.size_bytes)
            leg.progress_at = now.mono
            self.review = True
            if leg.phase is Phase.READY and is_large_enough(self.ctx, leg):
                self._present(leg, now, out)
        elif isinstance(message, CopyFailed):
            self._fault(leg, FaultReason(message.reason), message.sentence)
            leg.reads_until = NEVER  # It answers nothing by itself any more.
            if leg.state is CopyState.OFFLINE:
                leg.close("it has failed", out)
                leg.wants_sync = False
                leg.retry_at = now.mono + RETRY_OFFLINE_S
        elif isinstance(message, Refused):
            self._on_refused(leg, message, now, out)
        elif isinstance(message, ReadAnswer):
            data = b"" if message.errno else bytes(message.data)
            self.mending.on_bytes(leg, message.id, data, now, out)
            for job in self.verifying:
                job.on_bytes(message.id, data, now, out)
        elif isinstance(message, ReadLeaseQuery):
            grant(self.primary, leg, message, now, out)
        else:
            assert isinstance(message, SyncBegun), message

    def _on_refused(self, leg: Leg, refusal: Refused, now: Instant, out: list[Effect]) -> None:
        if refusal.epoch > self.ctx.epoch:
            # R3: the fence is there for us; the copy is well.
            self.deposed_by = max(self.deposed_by, refusal.epoch)
            return
        if refusal.code in {"no-such-copy", "wrong-copy"}:
            self._fault(leg, FaultReason.WRONG_IDENTITY, refusal.sentence)
        leg.close("refused", out)
        leg.retry_at = now.mono + (RETRY_OFFLINE_S if leg.state is CopyState.OFFLINE else RETRY_S)

    def _on_attached(self, leg: Leg, identity: Attached, now: Instant, out: list[Effect]) -> None:
        ctx = self.ctx
        leg.identity = identity
        leg.phase = Phase.READY
        leg.reads_until = NEVER  # Whatever it was granted before, it has given up.
        leg.size_bytes = identity.size_bytes
        leg.lost_since = leg.gone_since = None
        if identity.epoch < ctx.epoch:
            # The epoch rose while the copy was presenting itself to the one before.
            leg.change_epoch(EpochChange(ctx.epoch, ctx.record.to_bytes()), out)
        self.review = True
        if is_large_enough(ctx, leg):
            self._present(leg, now, out)

    def _present(self, leg: Leg, now: Instant, out: list[Effect]) -> None:
        """A copy has presented itself, and is as large as ours: decide how it comes back."""
        ctx, identity = self.ctx, leg.identity
        assert identity is not None
        member = ctx.record.member(leg.copy)
        stranger = bool(member.incarnation) and member.incarnation != identity.incarnation
        if leg.in_sync:
            if stranger:
                self._fault(leg, FaultReason.WRONG_IDENTITY, "its disk is another one")
            elif not self.primary.serving:
                return  # Reconciled together with the others.
            elif leg.equal and identity.session == leg.process:
                leg.resume(identity.applied, identity.durable, now.mono, out)
            else:
                self._fault(leg, FaultReason.RESTARTED, "its process restarted")
            return
        leg.wants_sync = True
        if member.state is CopyState.SYNCING and member.incarnation == identity.incarnation:
            self._begin_sync(leg, now, out)
        else:
            self.review = True

    # -- what was read of the own disk -------------------------------------------------------------

    def on_hashes(self, token: int, hashes: bytes, now: Instant, out: list[Effect]) -> None:
        """Take the local half of a comparison."""
        if any(job.on_local(token, hashes, now, out) for job in self.verifying):
            return
        if self.syncing.on_hashes(token, hashes, now, out):
            self.review = True

    def on_map(self, event: MapDone, now: Instant, out: list[Effect]) -> None:
        """Take the local data extents for a fresh copy."""
        if self.syncing.on_map(event, now, out):
            self.review = True

    def on_read(self, token: int, data: bytes, now: Instant, out: list[Effect]) -> None:
        """Take bytes that were read for a verification."""
        for job in self.verifying:
            job.on_bytes(token, data, now, out)

    def on_read_failed(self, token: int, now: Instant, out: list[Effect]) -> None:
        """The own disk cannot read what a verification asked for."""
        self.on_read(token, b"", now, out)

    def on_runs(
        self, token: int, pieces: Sequence[bytes | None], now: Instant, out: list[Effect]
    ) -> None:
        """Take runs that were read for sending."""
        if self.syncing.on_runs(token, pieces, now, out):
            self.review = True

    # -- inside ------------------------------------------------------------------------------------

    def _begin_sync(self, leg: Leg, now: Instant, out: list[Effect]) -> None:
        if self.syncing.begin(leg, now, out):
            self.review = True

    def _drive(self, leg: Leg, now: Instant, out: list[Effect]) -> None:
        if self.syncing.drive(leg, now, out):
            self.review = True

    def leg_of(self, link: LinkId) -> Leg | None:
        """Return the leg whose link this is."""
        for leg in self.primary.legs.values():
            if leg.link == link:
                return leg
        return None


def _names(member: Member, leg: Leg) -> bool:
    """Whether the record names the very copy that presented itself, and counts it as syncing."""
    return (
        member.state is CopyState.SYNCING
        and leg.identity is not None
        and member.incarnation == leg.identity.incarnation
    )
