"""Planned change: handing the primary over, and coming to rest when the node stops.

A handover needs no lease to run out. Writes are held, what is under way is acknowledged, and one
compare-and-set names the new primary while every copy is known to be equal; the epoch change on the
stream tells it. A node that stops hands its primaries over and leaves the in-sync sets first, so that
nobody waits for its silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs import define

from holdfast.errors import FaultReason
from holdfast.messages import CopyFailed
from holdfast.model import GroupRecord
from holdfast.sync import membership
from holdfast.sync.events import Effect, Handover, Instant, RecordSeen, Send, Stop, Stopped
from holdfast.sync.leg import Leg, Phase
from holdfast.units import CopyId

if TYPE_CHECKING:
    from holdfast.sync.roles import Roles

STOP_PATIENCE_S = 5.0
"""How long a handover may take before the primary goes on, or stops all the same."""
VACATE_RETRY_S = 30.0
"""How long a primary that is to go waits after a handover that failed; each holds writes."""
LEAVE_PATIENCE_S = 1.0
"""How long a stopping replica waits for the record to say that it has left."""


@define
class Departure:
    """The planned changes of one member."""

    roles: Roles
    handover: Handover | None = None
    _handover_since: float = 0.0
    _stopping_since: float | None = None
    _in_place: bool = False
    _vacate_at: float = 0.0

    @property
    def stopping(self) -> bool:
        """Whether the node is stopping."""
        return self._stopping_since is not None

    @property
    def under_way(self) -> bool:
        """Whether there is anything to wait for."""
        return self.handover is not None or self._stopping_since is not None

    def hand_over(self, event: Handover, now: Instant) -> None:
        """An operator wants another copy to be primary; one that stops hands over anyway."""
        if self.roles.primary is not None and not self.stopping:
            self.handover = event
            self._handover_since = now.mono

    def begin_stop(self, event: Stop, now: Instant) -> None:
        """The node stops."""
        if self._stopping_since is None:
            self._stopping_since = now.mono
            self._in_place = not event.handover

    def advance(self, now: Instant, out: list[Effect]) -> None:
        """Begin or give up what a primary has to do."""
        primary, healing = self.roles.primary, self.roles.healing
        assert primary is not None
        assert healing is not None
        if not self.under_way and primary.serving and now.mono >= self._vacate_at:
            successor = healing.successor()
            if successor is not None:
                self._vacate_at = now.mono + VACATE_RETRY_S
                self.hand_over(Handover(successor, leave=False), now)
        if self._stopping_since is not None and self.handover is None:
            if not self._in_place and any(leg.in_sync for leg in primary.legs.values()):
                self.handover = Handover(None, leave=True)
                self._handover_since = now.mono
            elif primary.idle or now.mono - self._stopping_since > STOP_PATIENCE_S:
                self._stop_primary(out)
                return
        if self.handover is None:
            return
        if not primary.draining:
            primary.draining = True
            primary.holds += 1
        assert self.roles.keeper is not None
        # Every acknowledgement may be the one that was waited for; consumers wait until it is seen.
        self.roles.keeper.review = True
        if now.mono - self._handover_since > STOP_PATIENCE_S and self.roles.asking.wanted is None:
            self._abandon(now, out)

    def desired(self, now: Instant) -> GroupRecord | None:
        """Return the record that hands over, once nothing is under way; None: not yet, or no need."""
        relief = self._relief(now)
        if relief is not None:
            return relief
        target = self._target(now)
        primary = self.roles.primary
        if self.handover is None or target is None or primary is None or not self._drained():
            return None
        primary.stopped = True
        return membership.hand_over(
            self.roles.ctx.record, target, leave=self.handover.leave, wall=now.wall
        )

    def reconsider(self, event: RecordSeen, now: Instant) -> None:
        """Withdraw a handover of unknown outcome to a copy that may be none any more.

        The record in force is asked for instead. If that is won, what was asked for before cannot be
        carried out any more; if it is not, it was.
        """
        asking, primary, ctx = self.roles.asking, self.roles.primary, self.roles.ctx
        if primary is None or not asking.is_unsure or event.version != ctx.version:
            return
        heir = None if asking.wanted is None else primary.legs.get(asking.wanted.primary)
        if heir is not None and not self._can_take_over(heir, now):
            asking.wanted = ctx.record

    def on_stepped_down(self, out: list[Effect]) -> None:
        """The primary has become a replica, by its own wish or not."""
        handover, self.handover = self.handover, None
        if handover is not None and handover.leave and self._stopping_since is not None:
            self.rest(out)

    def leave(self, now: Instant, out: list[Effect]) -> None:
        """A replica tells the primary, then waits a moment for the record to say so."""
        replica = self.roles.replica
        assert self._stopping_since is not None
        if self._in_place:
            self.rest(out)
            return
        if replica.link is not None and not replica.leaving:
            replica.leaving = True
            reason = FaultReason.REMOVED.value
            failed = CopyFailed(self.roles.ctx.epoch, reason, "its node is stopping")
            out.append(Send(replica.link, (failed,)))
        if replica.link is None or now.mono - self._stopping_since > LEAVE_PATIENCE_S:
            self.rest(out)

    def rest(self, out: list[Effect]) -> None:
        """Come to rest: dirty maps first, then the superblock, clean if nothing is suspect."""
        ctx, disk = self.roles.ctx, self.roles.ctx.disk
        ctx.peers.unfollow(ctx.record.volume)
        for copy in ctx.absent:
            ctx.save_map(copy, out)
        clean = not self.roles.failure and disk.idle and not disk.window and not disk.pinned
        self.roles.end()
        out.append(
            Stopped(
                attrs.evolve(
                    ctx.superblock,
                    applied=disk.applied,
                    durable=disk.applied if clean else disk.durable,
                    clean=clean,
                )
            )
        )

    def _relief(self, now: Instant) -> GroupRecord | None:
        """R12 for the primary itself: a stalled disk of its own holds nobody up either.

        What is under way cannot drain. Unanswered requests are the consumers' to send again, and
        what may differ is in the windows, as after any failover (R6).
        """
        primary, ctx = self.roles.primary, self.roles.ctx
        if primary is None or not primary.serving:
            return None
        patience = ctx.peers.timing.ack_timeout_s
        if primary.others_in_sync() == 1:
            patience *= 2
        if ctx.stalled_s <= patience:
            return None
        heir = next((leg for leg in primary.legs.values() if self._can_take_over(leg, now)), None)
        if heir is None:
            return None  # Nobody else has it all: be patient with the last.
        primary.stopped = True
        return membership.hand_over(
            ctx.record, heir.copy, leave=True, wall=now.wall, reason=FaultReason.ACK_TIMEOUT
        )

    # -- inside -----------------------------------------------------------------------------------

    def _target(self, now: Instant) -> CopyId | None:
        primary = self.roles.primary
        if self.handover is None or primary is None:
            return None
        for leg in primary.legs.values():
            if self._can_take_over(leg, now) and self.handover.node in {None, leg.node}:
                return leg.copy
        return None

    def _can_take_over(self, leg: Leg, now: Instant) -> bool:
        """Whether a copy has all that this one has, as it has said of late.

        A primary that was away has not heard yet what became of the others meanwhile: the link that
        still seems to stand may lead to a disk that is no more.
        """
        ctx = self.roles.ctx
        return (
            leg.in_sync
            and leg.equal
            and leg.phase is Phase.STREAMING
            and leg.fault is None
            and ctx.peers.valid_until(leg.node, ctx.record.volume) > now.mono
        )

    def _drained(self) -> bool:
        primary = self.roles.primary
        assert primary is not None
        return (
            primary.serving
            and primary.idle
            and self.roles.ctx.disk.idle
            and all(not leg.unacked for leg in primary.legs.values() if leg.in_sync)
        )

    def _abandon(self, now: Instant, out: list[Effect]) -> None:
        primary = self.roles.primary
        assert primary is not None
        self.handover = None
        primary.draining = primary.stopped = False
        primary.holds -= 1
        note = "No replica could take over; this node goes on."
        self.roles.ctx.note("handover-failed", note, out)
        primary.release(now, out)
        if self._stopping_since is not None:
            self._stop_primary(out)

    def _stop_primary(self, out: list[Effect]) -> None:
        self.roles.lay_down("This node is stopping.", "stopping", out)
        self.rest(out)
