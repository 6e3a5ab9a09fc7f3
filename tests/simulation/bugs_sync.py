"""Bugs in how a copy comes back: dirty maps, intent, comparison, copying, joining."""

from __future__ import annotations

from typing import Any

from tests.simulation.planting import Patch, bug

from holdfast.messages import OpKind
from holdfast.sync import context, opening
from holdfast.sync.bitmap import Bitmap
from holdfast.sync.context import Context
from holdfast.sync.delta import SyncJob
from holdfast.sync.disk import DiskQueue
from holdfast.sync.leg import Leg
from holdfast.sync.syncing import Syncing
from holdfast.units import MIB
from holdfast.units import Sequence as Position


@bug()
def no_dirty_bits(patch: Patch) -> None:
    """Mark no dirty bits for copies that are absent."""
    patch(Context, "mark_absent", lambda _self, _ops: None)


@bug()
def no_window_in_map(patch: Patch) -> None:
    """Begin a dirty map without what the lost copy may not have received."""
    patch(context, "mark_extents", lambda _bitmap, _extents, _size: None)


@bug(
    (4.0, "kill", "@replica", 8.0, 0.5),
    (7.0, "kill", "@primary", 0.3, 0.5),
    nodes=2,
    replicas=1,
    size_bytes=256 * MIB,
)
def no_intent_in_map(patch: Patch) -> None:
    """Do not widen the dirty maps on disk by what may have been marked after they were saved."""
    patch(opening, "mark_extents", lambda _bitmap, _extents, _size: None)
    patch(Context, "clip", lambda _self, _extents: [])


@bug(
    (5.0, "wipe", "@replica", 0.3, 0.5),
    (8.0, "wipe", "@replica", 0.3, 0.5),
    nodes=3,
    depth=16,
    think_s=0.002,
)
def no_hold(patch: Patch) -> None:
    """Let writes pass a chunk that was read for a sync and is not enqueued yet."""
    patch(SyncJob, "overtake", lambda *_args: None)


@bug(
    (5.0, "wipe", "@replica", 0.3, 0.5),
    (6.5, "disk-stall", "@primary", 0.4, 0.5),
    (8.0, "wipe", "@replica", 0.3, 0.5),
    nodes=3,
    depth=16,
    think_s=0.002,
)
def hasty_read(patch: Patch) -> None:
    """Read for a sync what is before it in the stream and not on the local disk yet."""
    patch(DiskQueue, "is_settled", lambda *_args: True)


@bug()
def early_hash(patch: Patch) -> None:
    """Compare for a sync before the local disk has what precedes the stream."""
    patch(Leg, "settled_at", property(lambda _self: 0, lambda _self, _value: None))


@bug(
    (6.0, "wipe", "@replica", 0.3, 0.5),
    (6.45, "store-slow", "@replica", 4.0, 0.2),
    (8.3, "kill", "@replica", 0.1, 0.5),
    nodes=3,
)
def old_map(patch: Patch) -> None:
    """Use a dirty map for another disk than it was kept for."""
    patch(context, "_is_another", lambda _old, _member: False)
    patch(opening, "map_tag", lambda _member: b"-" * 8)
    patch(context, "map_tag", lambda _member: b"-" * 8)


@bug(
    (6.0, "wipe", "@replica", 0.5, 0.5),
    (6.62, "power-all", "@replica", 1.0, 0.5),
    nodes=2,
    replicas=1,
    think_s=0.1,
)
def join_unflushed(patch: Patch) -> None:
    """Let a copy join before what it has received is on stable storage."""
    original = Syncing._on_equal

    def on_equal(self: Syncing, leg: Leg, now: Any, out: Any) -> bool:
        if leg.job is not None:
            leg.job.flush_at = Position(0)
        return original(self, leg, now, out)

    patch(Syncing, "_on_equal", on_equal)


@bug(
    # The copy flushes what a primary has sent to it alone when that primary dies; the next one, which
    # knows of nothing that high, counts on from a lower number.
    (5.0, "wipe", "@replica", 0.3, 0.5),
    (5.46, "kill", "@primary", 9.0, 0.5),
    nodes=3,
    depth=16,
    think_s=0.2,
    reads=0.1,
    flush_s=4.0,
)
def flush_of_before(patch: Patch) -> None:
    """Count a flush that was asked for under an earlier primary for what the present one has sent."""
    original = DiskQueue.restart_at

    def restart_at(self: DiskQueue, before: Position) -> None:
        original(self, before)
        self._stale_flush = False

    patch(DiskQueue, "restart_at", restart_at)


@bug()
def empty_holes(patch: Patch) -> None:
    """Take every chunk of a tree comparison for equal."""
    patch(SyncJob, "_descend", lambda *_args: None)


@bug(
    (4.0, "kill", "@replica", 4.0, 0.5),
    (7.5, "clog2", "@replica", 14.0, 0.03),
    *((8.3 + at * (0.3 + at * 0.011), "reset2", "@replica", 0.0, 0.5) for at in range(20)),
    nodes=3,
    think_s=0.01,
    size_bytes=256 * MIB,
)
def clear_on_send(patch: Patch) -> None:
    """Clear a dirty bit when the chunk is sent instead of when it is applied."""
    original = SyncJob.on_read

    def on_read(self: SyncJob, pieces: Any, first: Any) -> Any:
        for run in self.reading:
            self.dirty.clear(*run)
        return original(self, pieces, first)

    def missed(self: Leg, _size_bytes: int) -> Bitmap | None:
        return None if self.job is None else self.job.dirty.copy()

    patch(SyncJob, "on_read", on_read)
    patch(Leg, "missed", missed)


@bug()
def unseen_discards(patch: Patch) -> None:
    """Mark no dirty bits for what was discarded or zeroed while a copy was absent."""
    original = Context.mark_absent

    def mark_absent(self: Context, ops: Any) -> None:
        original(self, [op for op in ops if op.kind in {OpKind.WRITE, OpKind.SYNC_WRITE}])

    patch(Context, "mark_absent", mark_absent)


@bug()
def equal_by_decree(patch: Patch) -> None:
    """Take chunks whose hashes differ for equal."""
    original = SyncJob.on_hashes

    def on_hashes(self: SyncJob, *args: Any, **known: Any) -> None:
        original(self, *args, **known)
        self.differ = Bitmap(len(self.differ))
        self.dirty = Bitmap(len(self.dirty))

    patch(SyncJob, "on_hashes", on_hashes)
