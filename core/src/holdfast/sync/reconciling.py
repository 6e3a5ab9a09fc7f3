"""How a new primary makes all in-sync copies equal before it serves anybody (R6).

Only where one of them may differ: in what any of them holds above the last commit that it heard of,
and in the regions that an unclean stop has left marked. The new primary's version wins; what was
acknowledged is on all of them, so nothing acknowledged can lose.
"""

from __future__ import annotations

from holdfast.messages import Op, OpKind
from holdfast.sync.delta import SyncJob
from holdfast.sync.events import Instant
from holdfast.sync.leg import Phase
from holdfast.sync.primary import PrimaryRole
from holdfast.units import Sequence as Position


def begin(primary: PrimaryRole, now: Instant) -> None:
    """Give every in-sync leg its reconcile job; all of them have presented themselves."""
    ctx = primary.ctx
    primary.reconciling = True
    in_sync = [leg for leg in primary.legs.values() if leg.in_sync]
    extents = list(ctx.disk.suspects())
    positions = [ctx.disk.submitted]
    for leg in in_sync:
        assert leg.identity is not None
        extents.extend(leg.identity.suspects)
        positions.append(leg.identity.applied)
    # One sequence stands for all that was written under earlier primaries, so that the first flush
    # is never taken for one that has nothing to do: their acknowledged writes may lie in a page
    # cache still.
    before = Position(max(positions) + 1)
    primary.next = Position(before + 1)
    primary.written = before
    ctx.disk.applied = ctx.disk.submitted = before
    for leg in in_sync:
        assert leg.identity is not None
        leg.restart_at(before)
        leg.phase = Phase.STREAMING
        leg.process = leg.identity.session
        leg.progress_at = now.mono
        leg.job = SyncJob.confirming("reconcile", ctx.size_bytes, extents, None, now.mono)
        leg.equal = False
    # An absent copy may hold other bytes there, whichever version has won.
    ops = [Op(OpKind.ZERO, offset, length) for offset, length in ctx.clip(extents)]
    ctx.mark_absent(ops)
