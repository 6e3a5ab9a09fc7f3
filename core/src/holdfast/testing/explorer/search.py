"""Breadth-first search over a small world: every state once, each violation with a shortest path."""

from __future__ import annotations

import gc
import hashlib
import time
from array import array
from collections import deque
from collections.abc import Callable

from attrs import frozen

from holdfast.testing.explorer.checks import check
from holdfast.testing.explorer.state import FAULTS, Size, State, Step, Violated
from holdfast.testing.explorer.symmetry import canonical, key_of
from holdfast.testing.explorer.words import describe
from holdfast.testing.explorer.world import World

TELL_EVERY = 20_000
KEY_BYTES = 12
"""Of a fingerprint: two of 100 million states have the same one with a chance of 1 in 10^13."""


@frozen
class Found:
    """A violation, with the steps that lead there from the beginning."""

    invariant: str
    sentence: str
    steps: tuple[str, ...]


@frozen
class Report:
    """What came of a search."""

    size: Size
    deviations: int | None
    states: int
    edges: int
    depth: int
    sites: int
    """Different states of single nodes."""
    worked_out: int
    """Steps of the machines that were carried out; all others were known from before."""
    seconds: float
    """Of processor time."""
    complete: bool
    """Whether every state was visited."""
    violation: Found | None

    def sentence(self) -> str:
        """Return one line for people."""
        size = self.size
        bound = "any order" if self.deviations is None else f"{self.deviations} deviations"
        bound += ", timers last" if size.timers == "last" else ""
        what = (
            f"{size.copies} copies, {size.writes} writes, {size.faults} faults, {bound}: "
            f"{self.states:,} states, {self.edges:,} steps, depth {self.depth}, {self.seconds:.1f} s, "
            f"{self.states / max(self.seconds, 0.001):,.0f} states/s"
        )
        if self.violation is not None:
            return f"{what}; {self.violation.invariant}: {self.violation.sentence}"
        return f"{what}; " + (
            "no violation" if self.complete else "not complete, no violation so far"
        )


def explore(
    size: Size,
    *,
    deviations: int | None = None,
    states_max: int | None = None,
    seconds_max: float | None = None,
    tell: Callable[[str], None] | None = None,
    reduced: bool = True,
) -> Report:
    """Visit every state of a world of this size, or as many as the limits allow.

    Args:
        size: Copies, writes, faults.
        deviations: How often the usual order of what happens may be left; None: any order.
        states_max: Stop after this many states.
        seconds_max: Stop after so much processor time, in seconds.
        tell: Takes a line about the progress every now and then.
        reduced: Let one state stand for all that differ from it in names alone, or in fewer faults
            left. Searches bounded by deviations do without: what is usual depends on names.
    """
    processor = time.process_time()
    world = World(size)
    search = _Search(world, deviations, reduced=reduced and deviations is None)
    violation = None
    collects = gc.isenabled()
    gc.disable()
    try:
        search.run(states_max, None if seconds_max is None else processor + seconds_max, tell)
    except _Stopped as stopped:
        violation = stopped.found
    finally:
        if collects:
            gc.enable()
    return Report(
        size,
        deviations,
        len(search.visited),
        search.edges,
        search.depth,
        len(world.sites),
        world.sites.worked_out,
        time.process_time() - processor,
        complete=violation is None and not any(search.waiting),
        violation=violation,
    )


class _Stopped(Exception):  # noqa: N818
    def __init__(self, found: Found) -> None:
        super().__init__(found.sentence)
        self.found = found


class _Search:
    """The states that wait, by what they cost, and what is behind them.

    Without deviations the cost of a state is the faults on the way there, so that each is met first
    with as many faults left as can be: whatever may follow with fewer may follow then, too.
    """

    def __init__(self, world: World, deviations: int | None, *, reduced: bool) -> None:
        self.world = world
        self.visited: dict[bytes, int] = {}
        self.parents = array("q")
        self._costs = array("B")
        self._free = deviations is None
        self._reduced = reduced
        costs = world.size.faults if deviations is None else deviations
        self.waiting: list[deque[tuple[int, State]]] = [deque() for _ in range(costs + 1)]
        self.edges = 0
        self.depth = 0
        self._depths = array("H")

    def run(
        self, states_max: int | None, until: float | None, tell: Callable[[str], None] | None
    ) -> None:
        self._visit(self._same(self.world.first()), -1, 0)
        began = time.process_time()
        done = 0
        for cost, waiting in enumerate(self.waiting):
            while waiting:
                if states_max is not None and len(self.visited) >= states_max:
                    return
                number, state = waiting.popleft()
                if self._costs[number] != cost:
                    continue  # Reached at a lower cost since, and looked at then.
                done += 1
                if done % 256 == 0 and until is not None and time.process_time() > until:
                    waiting.appendleft((number, state))
                    return
                if tell is not None and done % TELL_EVERY == 0:
                    speed = done / (time.process_time() - began)
                    tell(
                        f"{len(self.visited):,} states, {sum(map(len, self.waiting)):,} waiting, depth "
                        f"{self.depth}, cost {cost}, {speed:,.0f} states/s of processor time"
                    )
                self._expand(state, number, cost)

    def _same(self, state: State) -> State:
        """Return the state that stands for this one."""
        return canonical(self.world, state) if self._reduced else state

    def _key(self, state: State) -> bytes:
        left = 0 if self._reduced and self._free else state.left
        return hashlib.blake2b(key_of(state, left), digest_size=KEY_BYTES).digest()

    def _expand(self, state: State, number: int, cost: int) -> None:
        world = self.world
        leads_on = False
        followed = self._free
        last = len(self.waiting) - 1
        for step in world.steps(state):
            is_fault = step[0] in FAULTS
            if followed and not (self._free or is_fault) and cost == last:
                continue
            self.edges += 1
            try:
                after = check(world, world.take(state, step))
            except (Violated, AssertionError) as error:
                raise _Stopped(self._found(error, number, step)) from error
            after = self._same(after)
            if after == state:
                continue
            leads_on = leads_on or not is_fault
            if self._free:
                self._visit(after, number, cost + is_fault)
                continue
            apart = followed and not is_fault
            if self._visit(after, number, cost + apart):
                followed = followed or not is_fault
        if not leads_on and not world.is_at_rest(state):
            stuck = Violated("I7", "nothing more can happen, and redundancy is not back")
            raise _Stopped(self._found(stuck, number, ("nothing",)))

    def _visit(self, state: State, parent: int, cost: int) -> bool:
        """Let a state wait, unless it was reached at as low a cost before."""
        key = self._key(state)
        number = self.visited.get(key)
        if number is None:
            number = self.visited[key] = len(self.parents)
            self.parents.append(parent)
            self._costs.append(cost)
            depth = self._depths[parent] + 1 if parent >= 0 else 0
            self._depths.append(depth)
            self.depth = max(self.depth, depth)
        elif self._costs[number] > cost:
            self.parents[number] = parent
            self._costs[number] = cost
        else:
            return False
        self.waiting[cost].append((number, state))
        return True

    def _found(self, error: Exception, number: int, last: Step) -> Found:
        """Walk the way to a state once more, without changing names on it."""
        path = [number]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        path.reverse()
        keys = {number: key for key, number in self.visited.items()}
        state = self.world.first()
        steps = []
        for target in path[1:]:
            for step in self.world.steps(state):
                try:
                    after = check(self.world, self.world.take(state, step))
                except (Violated, AssertionError):
                    continue  # One of the steps that were not to be followed.
                if self._key(self._same(after)) == keys[target]:
                    steps.append(describe(self.world, state, step))
                    state = after
                    break
        if last != ("nothing",):
            last = self._failing(state, error) or last
        steps.append(describe(self.world, state, last))
        if isinstance(error, Violated):
            return Found(error.invariant, str(error).partition(": ")[2], tuple(steps))
        return Found("crash", f"{type(error).__name__} {error}", tuple(steps))

    def _failing(self, state: State, error: Exception) -> Step | None:
        """Return the step from here that fails as the one from the state that stands for it."""
        for step in self.world.steps(state):
            try:
                check(self.world, self.world.take(state, step))
            except type(error):
                return step
        return None
