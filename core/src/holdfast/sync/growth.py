"""How a volume grows while it is in use: every copy first, then the size that consumers see.

The rule is one sentence: a copy that streams, or that acknowledgements need, is at least as large
as the primary's, and consumers are served the size of the primary's. So the primary grows last,
when all the others have said that they are that large, durably; and a new primary, whose own copy
may have grown before the failover while another had not, reconciles only when the others are as
large as it. Whatever size was ever served, every in-sync copy has it: no failover takes it back.
"""

from __future__ import annotations

from holdfast.sync.context import Context
from holdfast.sync.events import Effect, Instant
from holdfast.sync.leg import Leg, Phase
from holdfast.sync.primary import PrimaryRole
from holdfast.units import format_size


def needed_bytes(ctx: Context) -> int:
    """Return how large another copy must be before anything of this one is sent to it."""
    return max(ctx.size_bytes, ctx.growing_to)


def is_large_enough(ctx: Context, leg: Leg) -> bool:
    """Return whether the stream to a copy may begin."""
    return leg.size_bytes >= needed_bytes(ctx)


def tend(ctx: Context, primary: PrimaryRole, now: Instant, out: list[Effect]) -> None:
    """Ask the copies that are too small to grow, and grow our own when they have."""
    wanted = ctx.spec.size_bytes if primary.serving else 0
    ready = True
    for leg in primary.legs.values():
        if leg.fault is not None:
            pass  # It is not asked any more, but it counts until the record says that it is out.
        elif leg.phase is Phase.READY:
            leg.ask_size(ctx.epoch, needed_bytes(ctx), now.mono, out)
        elif leg.phase is Phase.STREAMING:
            leg.ask_size(ctx.epoch, wanted, now.mono, out)
        if leg.in_sync or leg.counted_on or leg.phase is Phase.STREAMING:
            ready = ready and leg.size_bytes >= wanted
    if ready:
        ctx.grow(wanted, out)


def on_grown(ctx: Context, primary: PrimaryRole, out: list[Effect]) -> None:
    """Our own copy has grown: serve the new size."""
    for leg in primary.legs.values():
        if leg.job is not None:
            leg.job.grow(ctx.size_bytes)
    ctx.note("resized", f"The volume has {format_size(ctx.size_bytes)} now.", out)
    primary.attachments.tell(out)
