"""When a copy may ask for its group, and by which record (R4 and R5).

A copy stands when the record counts it in and the primary has been silent for as long as the lease
that it could still hold. Nothing is asked or changed here: the member takes the step, and the store
decides between candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define

from holdfast.model import CopyState, GroupRecord
from holdfast.sync import membership
from holdfast.sync.context import BUSY_TICK_S, IDLE_TICK_S, REST_TICK_S, Context
from holdfast.sync.events import Instant, Note
from holdfast.sync.replica import ReplicaRole

_LOSS = (
    "No copy is known to have kept what was not flushed. Acknowledged writes may be gone; consumers "
    "that had such writes get errors from their flushes until they attach the volume anew."
)


@define
class Candidacy:
    """Whether and when one copy stands for primary."""

    ctx: Context
    replica: ReplicaRole
    read_until: float
    """Until when copies may read by leases of earlier primaries, which count on this copy's promise; at
    first, on what its process before this one promised. Monotonic."""
    is_forced: bool = False
    """An operator wants this copy to be primary, whatever may be missing on it."""

    def force(self) -> None:
        """Stand without waiting, and without the rule that keeps a doubtful copy from it."""
        self.is_forced = True
        self.replica.heard_since = float("-inf")

    def is_due(self, now: Instant) -> bool:
        """Whether it is in sync by the record, and the primary silent for long enough."""
        return self.may_promote() and now.mono >= self.stand_at()

    def may_promote(self) -> bool:
        """Whether the record lets this very disk become primary."""
        ctx = self.ctx
        return ctx.counted_in and (self.is_forced or membership.may_promote(ctx.record, ctx.copy))

    def stand_at(self) -> float:
        """Return when the primary has been silent for long enough; monotonic time."""
        ctx = self.ctx
        is_first = ctx.record.epoch == 1
        if ctx.record.primary == ctx.copy and (is_first or ctx.epoch >= ctx.record.epoch):
            # It was primary in that epoch, its old process is gone, it held the lock; or whoever was
            # has handed over. Otherwise a process of this node may have asked for the group, died, and
            # been carried out late, when the next one had promised the old primary a lease.
            return float("-inf")
        timing = ctx.peers.timing
        heard = max(ctx.peers.heard_at(ctx.record.volume), self.replica.heard_since)
        return heard + timing.lease_s + timing.margin_s

    def note_promise(self) -> None:
        """This copy follows nobody from here on: what it has promised last bounds `read_until`."""
        peers = self.ctx.peers
        last = max(peers.promised_at(self.ctx.record.volume), self.replica.heard_since)
        self.read_until = max(self.read_until, last + peers.timing.lease_s)

    def claim(self, now: Instant) -> tuple[GroupRecord, Sequence[Note]] | None:
        """Return the record to ask for, with what to tell if it is won; None: it may not be."""
        ctx = self.ctx
        promoted = membership.promote(ctx.record, ctx.copy, now.wall)
        if promoted is None or not self.may_promote():
            return None
        if ctx.record.primary == ctx.copy:
            again = "begins to serve" if ctx.record.epoch == 1 else "takes its group up again"
            sentence = f"{ctx.node} {again}."
        else:
            silent = ctx.record.primary_member.node
            sentence = f"{ctx.node} takes over from {silent}, which is silent."
        notes = [Note("promoted", sentence)]
        if promoted.loss_epoch == promoted.epoch:
            notes.append(Note("unflushed-lost", _LOSS))
        return promoted, notes

    def tick_after(self, now: Instant) -> float:
        """Return after how many seconds a replica looks again whether to stand."""
        mine = self.ctx.me
        if mine is None or mine.state is not CopyState.IN_SYNC:
            return IDLE_TICK_S
        return max(BUSY_TICK_S, min(self.stand_at() - now.mono, REST_TICK_S))
