"""Breadth-first search over a small world: every state once, each violation with a shortest path."""

from __future__ import annotations

import gc
import itertools
import time
from array import array
from collections import deque
from collections.abc import Callable

from attrs import frozen

from holdfast.testing.explorer.checks import check
from holdfast.testing.explorer.state import FAULTS, Size, State, Step, Violated
from holdfast.testing.explorer.words import describe
from holdfast.testing.explorer.world import World

TELL_EVERY = 20_000


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
    complete: bool
    """Whether every state was visited."""
    violation: Found | None

    def sentence(self) -> str:
        """Return one line for people."""
        size = self.size
        bound = "any order" if self.deviations is None else f"{self.deviations} deviations"
        what = (
            f"{size.copies} copies, {size.writes} writes, {size.faults} faults, {bound}: "
            f"{self.states:,} states, {self.edges:,} steps, depth {self.depth}, {self.seconds:.1f} s"
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
) -> Report:
    """Visit every state of a world of this size, or as many as the limits allow.

    Args:
        size: Copies, writes, faults.
        deviations: How often the usual order of what happens may be left; None: any order.
        states_max: Stop after this many states.
        seconds_max: Stop after this long.
        tell: Takes a line about the progress every now and then.
    """
    began = time.perf_counter()
    world = World(size)
    search = _Search(world, deviations)
    violation = None
    collects = gc.isenabled()
    gc.disable()
    try:
        search.run(states_max, None if seconds_max is None else began + seconds_max, tell)
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
        len(world.sites.facts),
        world.sites.worked_out,
        time.perf_counter() - began,
        complete=violation is None and not any(search.waiting),
        violation=violation,
    )


class _Stopped(Exception):  # noqa: N818
    def __init__(self, found: Found) -> None:
        super().__init__(found.sentence)
        self.found = found


class _Search:
    """The states that wait, by how many deviations they took, and what is behind them."""

    def __init__(self, world: World, deviations: int | None) -> None:
        self.world = world
        self.visited: dict[State, int] = {}
        self.parents = array("q")
        self._costs = array("B")
        self.waiting: list[deque[State]] = [deque() for _ in range((deviations or 0) + 1)]
        self.edges = 0
        self.depth = 0
        self._free = deviations is None
        self._depths = array("H")

    def run(
        self, states_max: int | None, until: float | None, tell: Callable[[str], None] | None
    ) -> None:
        world, visited = self.world, self.visited
        self._visit(world.first(), -1, 0)
        began = time.perf_counter()
        for cost, waiting in enumerate(self.waiting):
            while waiting:
                if states_max is not None and len(visited) >= states_max:
                    return
                state = waiting.popleft()
                number = visited[state]
                if self._costs[number] != cost:
                    continue  # Reached with fewer deviations since, and looked at then.
                if number % 256 == 0 and until is not None and time.perf_counter() > until:
                    waiting.appendleft(state)
                    return
                if tell is not None and number % TELL_EVERY == 0 and number:
                    speed = number / (time.perf_counter() - began)
                    tell(
                        f"{len(visited):,} states, {sum(map(len, self.waiting)):,} waiting, depth "
                        f"{self.depth}, {cost} deviations, {speed:,.0f} states/s"
                    )
                self._expand(state, number, cost)

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
            if after == state:
                continue
            leads_on = True
            apart = followed and not (self._free or is_fault)
            if self._visit(after, number, cost + apart):
                followed = followed or not is_fault
        if not leads_on and not world.is_at_rest(state):
            stuck = Violated("I7", "nothing more can happen, and redundancy is not back")
            raise _Stopped(self._found(stuck, number, ("nothing",)))

    def _visit(self, state: State, parent: int, cost: int) -> bool:
        """Let a state wait, unless it was reached with as few deviations before."""
        number = self.visited.get(state)
        if number is None:
            self.visited[state] = len(self.parents)
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
        self.waiting[cost].append(state)
        return True

    def _found(self, error: Exception, number: int, last: Step) -> Found:
        by_number = {number: state for state, number in self.visited.items()}
        path = [number]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        path.reverse()
        steps = []
        for here, there in itertools.pairwise(path):
            target = by_number[there]
            for step in self.world.steps(by_number[here]):
                if check(self.world, self.world.take(by_number[here], step)) == target:
                    steps.append(describe(self.world, by_number[here], step))
                    break
        steps.append(describe(self.world, by_number[number], last))
        if isinstance(error, Violated):
            return Found(error.invariant, str(error).partition(": ")[2], tuple(steps))
        return Found("crash", f"{type(error).__name__} {error}", tuple(steps))
