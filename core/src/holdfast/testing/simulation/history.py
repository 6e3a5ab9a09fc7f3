"""What consumers asked and were told, and whether one copy of each block could have said the same.

Every write carries a value that is unique for its block, so a read names the write that it saw. The
check is Wing and Gong's search in the just-in-time form: walk the history in order, keep the set of
states that could be (value, which unanswered writes have taken effect), and prune at every answer.
Reads cost no branching: they take effect as soon as the value fits. A write that was never answered,
or answered with an error, may take effect at any time after it was asked for, or never; but not
behind what its session has asked for after the error, once that was answered well (R7).

A power loss of every in-sync copy at once is part of the history: acknowledged writes that no flush
covered may be undone by it, flushed ones may not (I4). A block that was ever read torn, a mixture of
512-byte sectors, is checked sector by sector.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from attrs import define, field

from holdfast.units import BLOCK_BYTES, SECTOR_BYTES, VolumeId

SECTORS = BLOCK_BYTES // SECTOR_BYTES
_REPEATS = BLOCK_BYTES // 8
STATES_MAX = 20_000
NEVER = 1 << 62

Value = int | tuple[int, ...]


def block_of(value: int) -> bytes:
    """Return the 4 KiB that stand for `value`; 0 stands for zeros."""
    return value.to_bytes(8, "big") * _REPEATS


def value_of(block: bytes) -> Value:
    """Return the value that a block stands for, or one value for each sector of a torn one."""
    head = block[:8]
    if block == head * _REPEATS:
        return int.from_bytes(head, "big")
    return tuple(
        int.from_bytes(block[at : at + 8], "big") for at in range(0, BLOCK_BYTES, SECTOR_BYTES)
    )


@define(eq=False)
class Access:
    """One request as far as it touches one block."""

    start: int
    """Place in the order of all that consumers did and were told."""
    is_write: bool
    value: Value
    """Written, or read."""
    end: int = NEVER
    """Place of the answer; NEVER: none, or an error."""
    time: float = 0.0
    durable: bool = False
    """A FUA write."""
    settled: int = NEVER
    """Of a write without a good answer: the place by which it has taken effect, or never will."""
    settles: frozenset[int] = frozenset()
    """Starts of writes that had failed when this one was asked for: none takes effect behind it."""


@define(eq=False)
class VolumeHistory:
    """Everything that consumers of one volume did."""

    blocks: dict[int, list[Access]] = field(factory=dict)
    flushes: list[tuple[int, int]] = field(factory=list)
    """(start, end) of answered flushes."""
    losses: list[int] = field(factory=list)
    """When every in-sync copy had lost power since anything was known to be in all of them."""
    writers: dict[int, Access] = field(factory=dict)
    """Value to its write; values are unique in a world, blocks of one request share one."""
    zeroed: set[int] = field(factory=set)
    """Blocks that were ever discarded or zeroed."""


@define(eq=False)
class History:
    """The consumers' view of a whole run."""

    volumes: dict[VolumeId, VolumeHistory] = field(factory=dict)
    order: int = 0

    def of(self, volume: VolumeId) -> VolumeHistory:
        """Return the history of a volume."""
        known = self.volumes.get(volume)
        if known is None:
            known = self.volumes[volume] = VolumeHistory()
        return known

    def tick(self) -> int:
        """Return the next place in the order."""
        self.order += 1
        return self.order

    def loss(self, volume: VolumeId) -> None:
        """Every in-sync copy of the volume has lost power."""
        self.of(volume).losses.append(self.tick())

    def check(self, volume: VolumeId) -> str | None:
        """Return what is wrong with the history of a volume, or None."""
        history = self.of(volume)
        for block, accesses in sorted(history.blocks.items()):
            error = check_block(accesses, history.losses, history.flushes)
            if error is not None:
                return f"block {block}: {error}"
        return None


def check_block(
    accesses: list[Access], losses: list[int], flushes: list[tuple[int, int]]
) -> str | None:
    """Return why no order of effects explains what one block's consumers saw, or None."""
    if all(isinstance(access.value, int) for access in accesses):
        return _check_register(accesses, losses, flushes)
    for sector in range(SECTORS):
        part = [
            Access(
                a.start,
                a.is_write,
                a.value if isinstance(a.value, int) else a.value[sector],
                a.end,
                a.time,
                a.durable,
                a.settled,
                a.settles,
            )
            for a in accesses
        ]
        error = _check_register(part, losses, flushes)
        if error is not None:
            return f"sector {sector}: {error}"
    return None


def _check_register(
    accesses: list[Access], losses: list[int], flushes: list[tuple[int, int]]
) -> str | None:
    seen = {a.value for a in accesses if not a.is_write and a.end != NEVER}
    events: list[tuple[int, int, Access | None]] = [(at, 2, None) for at in losses]
    for access in accesses:
        if access.is_write:
            if access.end == NEVER and access.value not in seen:
                continue  # It need never have happened, and nobody saw it.
        elif access.end == NEVER:
            continue
        events.append((access.start, 0, access))
        if access.end != NEVER:
            events.append((access.end, 1, access))
        elif access.settled != NEVER:
            events.append((access.settled, 3, access))
    events.sort(key=lambda event: event[0])
    states: set[tuple[Value, frozenset[int]]] = {(0, frozenset())}
    pending: dict[int, Access] = {}
    rolled: list[tuple[int, set[Value]]] = []
    for at, what, accessed in events:
        if what == 0:
            assert accessed is not None
            pending[accessed.start] = accessed
            if not accessed.is_write:
                states = {_with_reads(state, pending) for state in states}
        elif what == 2:
            values = {*_survivors(accesses, at, flushes, rolled), *(value for value, _ in states)}
            rolled.append((at, values))
            # A write under way may have been carried out before, its answer still travelling; or it
            # was and is undone, and is carried out once more when its consumer sends it again.
            gone = [a.start for a in pending.values() if a.is_write and not a.durable]
            # A read may have seen it before that, and its answer travel as well.
            states = _reached(states, {k: a for k, a in pending.items() if not a.durable})
            subsets = [
                frozenset(subset)
                for size in range(len(gone) + 1)
                for subset in itertools.combinations(gone, size)
            ]
            states = {
                _with_reads((value, done.difference(gone) | subset), pending)
                for _, done in states
                for value in values
                for subset in subsets
            }
        elif what == 3:
            assert accessed is not None
            never = {state for state in states if accessed.start not in state[1]}
            states = never | _answered(states, accessed, pending)
            del pending[accessed.start]
        else:
            assert accessed is not None
            states = _answered(states, accessed, pending)
            if not states:
                return _explain(accessed, accesses)
            del pending[accessed.start]
        if len(states) > STATES_MAX:
            return None  # Undecided; never seen with the loads in use.
    return None


def _answered(
    states: set[tuple[Value, frozenset[int]]], access: Access, pending: dict[int, Access]
) -> set[tuple[Value, frozenset[int]]]:
    """Return the states in which `access` has taken effect, without it."""
    kept: set[tuple[Value, frozenset[int]]] = set()
    key = access.start
    todo = list(states)
    visited = set(todo)
    while todo:
        state = todo.pop()
        value, done = state
        if key in done:
            kept.add((value, done - {key}))
            continue
        for after in _next(state, pending):
            if after not in visited:
                visited.add(after)
                todo.append(after)
    return kept


def _reached(
    states: set[tuple[Value, frozenset[int]]], pending: dict[int, Access]
) -> set[tuple[Value, frozenset[int]]]:
    """Return the states, and all that they may become as what is asked for takes effect."""
    todo = list(states)
    visited = set(todo)
    while todo:
        for after in _next(todo.pop(), pending):
            if after not in visited:
                visited.add(after)
                todo.append(after)
    return visited


def _next(
    state: tuple[Value, frozenset[int]], pending: dict[int, Access]
) -> Iterator[tuple[Value, frozenset[int]]]:
    """Tell the states behind the next write that takes effect."""
    _, done = state
    for start, other in pending.items():
        if other.is_write and start not in done:
            over = {start, *(other.settles & pending.keys())}
            yield _with_reads((other.value, done | over), pending)


def _with_reads(
    state: tuple[Value, frozenset[int]], pending: dict[int, Access]
) -> tuple[Value, frozenset[int]]:
    """Let every pending read that fits the value take effect; that never costs anything."""
    value, done = state
    fits = [
        start
        for start, other in pending.items()
        if not other.is_write and other.value == value and start not in done
    ]
    return (value, done.union(fits)) if fits else state


def _survivors(
    accesses: Iterable[Access],
    at: int,
    flushes: list[tuple[int, int]],
    rolled: list[tuple[int, set[Value]]],
) -> set[Value]:
    """Return the values that a block may have after all copies lost power at `at` (I4).

    Args:
        accesses: Everything that concerned the block.
        at: When the power was lost.
        flushes: The answered flushes, as (start, end).
        rolled: What earlier losses may have left behind; as good as a write of that moment.
    """
    flushed = max((start for start, end in flushes if end < at), default=-1)
    writes = [a for a in accesses if a.is_write and a.start < at]
    floor = max(
        (a.start for a in writes if a.end < flushed or (a.durable and a.end < at)), default=-1
    )
    values = {a.value for a in writes if a.end >= floor}
    if floor < 0:
        values.add(0)
    for when, left in rolled:
        if when >= floor:
            values |= left
    return values


def _explain(access: Access, accesses: list[Access]) -> str:
    near = [a for a in accesses if a.start <= access.end and a.end >= access.start - 400][-12:]
    lines = [
        f"  {a.time:.4f} {'write' if a.is_write else 'read '} {a.value} "
        f"[{a.start}, {'never' if a.end == NEVER else a.end}]"
        for a in near
    ]
    what = "write" if access.is_write else "read"
    return (
        f"the {what} of {access.value} asked at {access.time:.4f} s "
        f"[{access.start}, {access.end}] fits no order of effects:\n" + "\n".join(lines)
    )
