"""The order of everything that happens to the local copy: intent, then data, then flush.

R10 says that a region is marked durably before the first write that touches it; R1 that a flush
covers everything before it. Both roles of a member push their operations through one `DiskQueue`,
so there is one place that can get this wrong.

The queue also keeps the *window* (R6): extent and sequence of every operation above the last commit
that this copy has heard of. Two copies can differ only inside a window, inside a marked region of a
copy that restarted, or where a dirty bit says so (I3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from attrs import define, field

from holdfast.compiled import compiled
from holdfast.messages import Op, OpKind
from holdfast.sync.events import (
    ApplyOps,
    Effect,
    FlushDisk,
    MarkRegions,
)
from holdfast.units import REGION_BYTES
from holdfast.units import Sequence as Position

_REGION_SHIFT = REGION_BYTES.bit_length() - 1
_FLUSH = int(OpKind.FLUSH)

_new = tuple.__new__  # Half the cost of calling the named tuple.

CLEAR_AFTER_S = 5.0
"""A region keeps its mark this long after its last write: a hot region is marked once, and a copy
that dies idle has next to nothing to compare."""


@compiled
def note_ops(
    ops: Sequence[Op],
    first: int,
    now: float,
    marked: set[int],
    touched: dict[int, tuple[int, float]],
) -> tuple[list[tuple[int, int, int]], list[int], bool]:
    """Note operations `first`, `first` + 1, … and the regions that they touch.

    Args:
        ops: The operations, in order.
        first: The sequence of the first of them.
        now: Monotonic time in seconds.
        marked: Regions with a durable mark.
        touched: Gets, for each region that they touch, the last sequence that did, and `now`.

    Returns:
        (sequence, offset, length) of each operation that changes data; the sequences of flushes; and
        whether a region among those touched is not marked.
    """
    window = []
    flushes = []
    unmarked = False
    for sequence, (kind, offset, length, _) in enumerate(ops, first):
        if kind == _FLUSH:
            flushes.append(sequence)
        elif length:
            window.append((sequence, offset, length))
            region = offset >> _REGION_SHIFT
            last = (offset + length - 1) >> _REGION_SHIFT
            while region <= last:
                touched[region] = (sequence, now)
                if region not in marked:
                    unmarked = True
                region += 1
    return window, flushes, unmarked


@define
class DiskQueue:
    """Turns batches of operations into ordered disk effects; sequences may have gaps."""

    marked: set[int]
    """Regions with a durable mark."""
    pinned: set[int] = field(factory=set)
    """Marked regions that an unclean stop left behind; kept until the copies are equal again."""
    applied: Position = Position(0)
    """Everything submitted up to here is in the page cache."""
    durable: Position = Position(0)
    """Everything submitted up to here is on stable storage."""
    submitted: Position = Position(0)
    commit: Position = Position(0)
    """Every in-sync copy has applied up to here, as far as this copy has heard."""
    window: deque[list[tuple[int, int, int]]] = field(factory=deque)
    """(sequence, offset, length) of what was submitted above `commit`, a list for each batch; of a
    batch that is committed in part, all of it."""
    blocked: bool = False
    """Nothing is applied while this is set: the superblock must be durable first."""
    _waiting: deque[tuple[Sequence[Op], Position]] = field(factory=deque)
    _marking: frozenset[int] = frozenset()
    flush_at: deque[int] = field(factory=deque)
    """Sequences of the flushes that were asked for and are not done."""
    _flushing: bool = False
    _stale_flush: bool = False
    _touched: dict[int, tuple[int, float]] = field(factory=dict)
    _next_clear: float = 0.0

    def submit(self, first: Position, ops: Sequence[Op], now: float, out: list[Effect]) -> None:
        """Queue operations `first`, `first` + 1, …; starts whatever may start."""
        window, flushes, unmarked = note_ops(ops, first, now, self.marked, self._touched)
        if window:
            self.window.append(window)
        if flushes:
            self.flush_at.extend(flushes)
        through = self.submitted = Position(first + len(ops) - 1)
        if unmarked or self._waiting or self.blocked:
            self._waiting.append((ops, through))
            self._advance(out)
        else:
            out.append(_new(ApplyOps, (ops, through)))

    def on_marked(self, out: list[Effect]) -> None:
        """Take `RegionsMarked`."""
        self.marked |= self._marking
        self._marking = frozenset()
        self._advance(out)

    def flush_due(self, out: list[Effect]) -> None:
        """Flush if that was asked for behind something that is applied now."""
        if self.flush_at:
            self._flush(out)

    def on_flushed(self, token: int, out: list[Effect]) -> None:
        """Take `Flushed`."""
        self._flushing = False
        if self._stale_flush:
            self._stale_flush = False
        else:
            self.flushed_through(Position(token))
        self.flush_due(out)

    def flushed_through(self, sequence: Position) -> None:
        """Everything submitted up to `sequence` is on stable storage."""
        self.durable = max(self.durable, sequence)
        flush_at = self.flush_at
        while flush_at and flush_at[0] <= self.durable:
            flush_at.popleft()

    def restart_at(self, before: Position) -> None:
        """Count anew from `before` + 1: the copy is about to be synced under another numbering.

        The window lives on as pinned regions, because what may differ now still may when that sync
        is cut short under yet another primary; the regions carry intent already.
        """
        assert self.idle
        for _, offset, length in self.recent():
            self.pinned.update(
                range(offset >> _REGION_SHIFT, ((offset + length - 1) >> _REGION_SHIFT) + 1)
            )
        self.window.clear()
        self.flush_at.clear()
        # A flush under way ends with a token of the old numbering.
        self._stale_flush = self._flushing
        self.applied = self.submitted = self.durable = self.commit = before
        self.blocked = True

    def unblock(self, out: list[Effect]) -> None:
        """Let operations through again."""
        self.blocked = False
        self._advance(out)

    def advance_commit(self, commit: Position) -> None:
        """Forget the window up to `commit`."""
        if commit <= self.commit:
            return
        self.commit = commit
        window = self.window
        while window and window[0][-1][0] <= commit:
            window.popleft()

    def recent(self) -> Iterator[tuple[int, int, int]]:
        """Return (sequence, offset, length) of all that is in the window, in order."""
        return chain.from_iterable(self.window)

    @property
    def idle(self) -> bool:
        """Whether everything submitted has been applied."""
        return self.applied >= self.submitted

    def is_settled(self, extents: Sequence[tuple[int, int]]) -> bool:
        """Whether whatever was submitted for these extents (offset, length) has been applied."""
        applied = self.applied
        for batch in reversed(self.window):
            if batch[-1][0] <= applied:
                break
            for sequence, offset, length in batch:
                if sequence > applied and any(
                    o < offset + length and offset < o + count for o, count in extents
                ):
                    return False
        return True

    def suspects(self) -> list[tuple[int, int]]:
        """Return the extents in which this copy may differ from the others of its in-sync set."""
        extents = [(offset, length) for _, offset, length in self.recent()]
        start = end = -1
        for region in (*sorted(self.pinned), -1):
            if region != end:
                if start >= 0:  # Neighbours are told as one: of an outdated disk, all of it.
                    extents.append((start * REGION_BYTES, (end - start) * REGION_BYTES))
                start = region
            end = region + 1
        return extents

    def release_pins(self) -> None:
        """The copies are equal: what an unclean stop left behind may be unmarked in time."""
        for region in self.pinned:
            self.touch(region)
        self.pinned.clear()

    def unpin_at_commit(self) -> None:
        """This copy equals its primary; let what was pinned go once all of it is committed.

        Not before: a write that this copy had, and that therefore needed no sending, may still be
        missing in a third copy while it is not committed.
        """
        if self.pinned and self.commit < self.submitted:
            pinned = sorted(self.pinned)
            self.window.append([(self.submitted, r * REGION_BYTES, REGION_BYTES) for r in pinned])
        self.release_pins()

    def touch(self, region: int) -> None:
        """Let a region's mark go in time though this queue has not written to it."""
        self._touched.setdefault(region, (0, 0.0))

    def clear_due(self, now: float) -> list[int]:
        """Return the regions whose mark may go: written long ago, applied and committed.

        The caller asks for `ClearRegions` after whatever else must be durable first; from this call
        on the regions count as unmarked.
        """
        if now < self._next_clear:
            return []
        self._next_clear = now + CLEAR_AFTER_S
        limit = min(self.applied, self.commit)
        due = [
            region
            for region, (sequence, at) in self._touched.items()
            if sequence <= limit
            and at <= now - CLEAR_AFTER_S
            and region in self.marked
            and region not in self.pinned
        ]
        for region in due:
            del self._touched[region]
            self.marked.discard(region)
        return due

    def _flush(self, out: list[Effect]) -> None:
        if not self._flushing and self.flush_at[0] <= self.applied:
            self._flushing = True
            # One fdatasync covers every flush asked for so far, and whatever else is applied.
            out.append(FlushDisk(self.applied))

    def _advance(self, out: list[Effect]) -> None:
        if self.blocked or self._marking:
            return
        waiting = self._waiting
        while waiting:
            ops, through = waiting[0]
            if self._unmarked(ops):
                # One durable write marks what the whole queue needs.
                wanted: set[int] = set()
                for queued, _ in waiting:
                    wanted |= self._unmarked(queued)
                self._marking = frozenset(wanted)
                out.append(MarkRegions(sorted(wanted)))
                return
            waiting.popleft()
            out.append(ApplyOps(ops, through))

    def _unmarked(self, ops: Iterable[Op]) -> set[int]:
        regions: set[int] = set()
        for op in ops:
            if op.length:
                first = op.offset >> _REGION_SHIFT
                last = (op.offset + op.length - 1) >> _REGION_SHIFT
                regions.update(range(first, last + 1))
        return regions - self.marked
