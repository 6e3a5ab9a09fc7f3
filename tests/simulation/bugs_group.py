"""Bugs in who is what: promotion, fencing, the record, identity, and what follows a failover."""

from __future__ import annotations

from typing import Any

import attrs
from tests.simulation.planting import Patch, bug

from holdfast.model import CopyState
from holdfast.sync import growth, membership, opening
from holdfast.sync.asking import Answer, Asking
from holdfast.sync.candidacy import Candidacy
from holdfast.sync.context import Context
from holdfast.sync.delta import SyncJob
from holdfast.sync.disk import DiskQueue
from holdfast.sync.events import CasDone
from holdfast.sync.keeper import Keeper
from holdfast.sync.leg import Leg
from holdfast.sync.member import GroupMember
from holdfast.sync.primary import PrimaryRole
from holdfast.testing.simulation import node


@bug(
    (5.0, "kill", "@replica", 2.0, 0.5),
    (6.0, "clog2", "@replica", 14.0, 0.4),
    (9.0, "kill", "@primary", 8.0, 0.5),
    nodes=2,
    replicas=1,
)
def promote_syncing(patch: Patch) -> None:
    """Promote a copy that is still syncing."""
    may, promote = membership.may_promote, membership.promote

    def whole(record: Any, me: Any) -> Any:
        mine = record.find(me)
        if mine is None or mine.state is CopyState.OFFLINE:
            return record
        return record.with_member(attrs.evolve(mine, state=CopyState.IN_SYNC))

    def asked(self: Candidacy) -> bool:
        return membership.may_promote(self.ctx.record, self.ctx.copy)

    patch(Candidacy, "may_promote", asked)
    patch(membership, "may_promote", lambda record, me: may(whole(record, me), me))
    patch(membership, "promote", lambda record, me, wall: promote(whole(record, me), me, wall))


@bug()
def promote_offline(patch: Patch) -> None:
    """Promote whoever asks, also a copy that was dropped."""
    promote = membership.promote

    def whole(record: Any, me: Any) -> Any:
        return record.with_member(attrs.evolve(record.member(me), state=CopyState.IN_SYNC))

    patch(membership, "may_promote", lambda record, me: record.find(me) is not None)
    patch(membership, "promote", lambda record, me, wall: promote(whole(record, me), me, wall))


@bug()
def trust_after_power_loss(patch: Patch) -> None:
    """Promote a copy that has lost power though another one has not."""
    patch(
        membership,
        "may_promote",
        lambda record, me: me in record.in_sync,
    )


@bug()
def impatient_replica(patch: Patch) -> None:
    """Take over while the primary still holds a lease."""

    def stand_at(self: Candidacy) -> float:
        heard = max(self.ctx.peers.heard_at(self.ctx.record.volume), self.replica.heard_since)
        return heard + 0.6

    patch(Candidacy, "stand_at", stand_at)


@bug(
    # A candidate asks for the group and dies; what it asked for is carried out when its next process
    # has promised the old primary a lease, and that one hears nothing from the store.
    (4.0, "store-cut", "@primary", 14.0, 0.5),
    (4.0, "pause", "@primary", 4.9, 0.5),
    (6.2, "store-slow", "", 2.7, 0.7),
    (8.8, "kill", "@replica", 0.05, 0.5),
    nodes=2,
    replicas=1,
    think_s=0.02,
    clients=2,
    # Its consumers' reads are what it answers, while their writes wait.
    readers=2,
    reads=0.85,
    depth=64,
)
def serve_when_named(patch: Patch) -> None:
    """Take over at once when the record says so, whoever was promised a lease."""
    original = Candidacy.stand_at

    def stand_at(self: Candidacy) -> float:
        named = self.ctx.record.primary == self.ctx.copy
        return float("-inf") if named else original(self)

    patch(Candidacy, "stand_at", stand_at)


@bug()
def unsure_is_won(patch: Patch) -> None:
    """Take a compare-and-set of unknown outcome for one that took place."""
    original = Asking.on_done

    def on_done(self: Asking, event: CasDone, out: Any) -> Answer | None:
        if event.outcome == "unknown":
            event = attrs.evolve(event, outcome="ok", version=self.ctx.version + 1)
        return original(self, event, out)

    patch(Asking, "on_done", on_done)


@bug()
def conflict_is_won(patch: Patch) -> None:
    """Take a lost compare-and-set for one that took place."""
    original = Asking.on_done

    def on_done(self: Asking, event: CasDone, out: Any) -> Answer | None:
        if event.outcome == "conflict":
            event = attrs.evolve(event, outcome="ok")
        return original(self, event, out)

    patch(Asking, "on_done", on_done)


@bug(
    (5.0, "wipe", "@replica", 0.02, 0.5),
    (9.0, "kill", "@primary", 12.0, 0.5),
    nodes=2,
    replicas=1,
)
def strange_disk(patch: Patch) -> None:
    """Count a disk that was wiped under its old name as the in-sync copy."""
    original = Keeper._on_attached

    def on_attached(self: Keeper, leg: Leg, identity: Any, *args: Any) -> None:
        known = self.ctx.record.member(leg.copy).incarnation
        identity = attrs.evolve(
            identity,
            incarnation=known or identity.incarnation,
            session=leg.process or identity.session,
        )
        original(self, leg, identity, *args)

    def counted_in(self: Context) -> bool:
        return self.me is not None and self.me.state is CopyState.IN_SYNC

    patch(Keeper, "_on_attached", on_attached)
    # The disk itself keeps the rule as well, and does not stand.
    patch(Context, "counted_in", property(counted_in))


@bug(
    (4.0, "power", "@replica", 0.02, 0.5),
    (8.0, "power", "@replica", 0.02, 0.5),
    nodes=3,
    depth=16,
    think_s=0.01,
)
def trust_restarted(patch: Patch) -> None:
    """Resume the stream to a copy whose machine has restarted."""
    original = Keeper._on_attached

    def on_attached(self: Keeper, leg: Leg, identity: Any, *args: Any) -> None:
        if leg.process:
            identity = attrs.evolve(identity, session=leg.process)
        original(self, leg, identity, *args)

    def opened(**known: Any) -> GroupMember:
        return opening.open_member(**{**known, "rebooted": False})

    patch(Keeper, "_on_attached", on_attached)
    patch(node, "open_member", opened)


@bug()
def skip_reconcile(patch: Patch) -> None:
    """Serve after a failover without making the copies equal."""
    original = SyncJob.confirming.__func__  # type: ignore[attr-defined]

    def confirming(cls: Any, how: str, size: int, extents: Any, known: Any, now: float) -> Any:
        return original(cls, how, size, [] if how == "reconcile" else extents, known, now)

    patch(SyncJob, "confirming", classmethod(confirming))


@bug()
def forget_window(patch: Patch) -> None:
    """Keep no window of recent writes."""

    def suspects(self: DiskQueue) -> list[tuple[int, int]]:
        self.window.clear()
        return []

    patch(DiskQueue, "suspects", suspects)


@bug()
def epoch_stays(patch: Patch) -> None:
    """Take over without raising the epoch."""
    promote = membership.promote

    def promoted(record: Any, *args: Any) -> Any:
        after = promote(record, *args)
        return None if after is None else attrs.evolve(after, epoch=record.epoch)

    patch(membership, "promote", promoted)


@bug()
def always_clean(patch: Patch) -> None:
    """Take every stop for a clean one."""

    def opened(**known: Any) -> GroupMember:
        return opening.open_member(**{**known, "was_clean": True})

    patch(node, "open_member", opened)


@bug()
def primary_grows_first(patch: Patch) -> None:
    """Serve the new size before every copy has grown."""
    original = growth.tend

    def tend(ctx: Any, role: PrimaryRole, now: Any, out: Any) -> None:
        original(ctx, role, now, out)
        if role.serving:
            ctx.grow(ctx.spec.size_bytes, out)

    patch(growth, "tend", tend)


@bug()
def window_not_compared(patch: Patch) -> None:
    """Compare after a failover only what restarted copies suspect, and no window."""
    original = DiskQueue.suspects

    def suspects(self: DiskQueue) -> Any:
        kept, self.window = self.window, type(self.window)()
        try:
            return original(self)
        finally:
            self.window = kept

    patch(DiskQueue, "suspects", suspects)
