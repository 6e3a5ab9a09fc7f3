"""The explorer visits small worlds to their end, and finds the bugs that are planted in them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tests.simulation.planting import every_bug, planted

from holdfast.testing.explorer import __main__ as command
from holdfast.testing.explorer.canon import canonical
from holdfast.testing.explorer.checks import check
from holdfast.testing.explorer.search import Report, explore
from holdfast.testing.explorer.state import Size, State
from holdfast.testing.explorer.symmetry import canonical as same_but_for_names
from holdfast.testing.explorer.world import World

BUGS = every_bug()
MUTE = frozenset({"mute"})
CRASH = frozenset({"crash"})


@pytest.mark.parametrize(
    ("size", "deviations"),
    [
        (Size(writes=2, faults=0), None),
        (Size(writes=2, faults=0, slow=frozenset({"data"})), None),
        (Size(writes=2, faults=0, blocks=1), None),
        (Size(writes=1, faults=1, kinds=frozenset({"break"})), None),
        (Size(writes=2, faults=1, kinds=frozenset({"unsure"})), None),
        (Size(copies=2, writes=2, faults=1, kinds=frozenset({"break"}), timers="last"), None),
        (Size(writes=2, faults=1), 0),
        (Size(copies=2, writes=1, faults=1, kinds=CRASH, slow=frozenset({"data"})), 0),
    ],
    ids=lambda value: "" if isinstance(value, Size) else f"deviations={value}",
)
def test_every_state_of_a_small_world_keeps_the_invariants(
    size: Size, deviations: int | None
) -> None:
    report = explore(size, deviations=deviations)
    assert report.violation is None, report.sentence() + "\n" + "\n".join(report.violation.steps)
    assert report.complete
    assert report.states > 10


@pytest.mark.parametrize(
    ("bug", "size", "deviations", "invariant"),
    [
        ("ack_before_record", Size(writes=1), 0, "I1"),
        ("local_ack_alone", Size(writes=1), 0, "I1"),
        ("forget_intent", Size(writes=1, kinds=CRASH), 0, "I3"),
        ("forget_window", Size(writes=1), 0, "I3"),
        ("no_dirty_bits", Size(writes=1), 0, "I3"),
        ("no_window_in_map", Size(writes=1), 0, "I3"),
        ("forget_lease", Size(writes=1, kinds=MUTE), 1, "I2 or I5"),
        ("skip_reconcile", Size(writes=1, kinds=CRASH), 1, "I3"),
    ],
)
def test_a_planted_bug_is_found(bug: str, size: Size, deviations: int, invariant: str) -> None:
    with planted(BUGS[bug]):
        report = explore(size, deviations=deviations)
    assert report.violation is not None, report.sentence()
    assert report.violation.invariant in invariant, report.sentence()
    assert report.violation.steps


def test_a_search_that_its_limits_end_says_that_it_is_not_complete() -> None:
    report = explore(Size(), states_max=50)
    assert not report.complete
    assert "not complete" in report.sentence()


BREAK = frozenset({"break"})
SOUND = (
    Size(copies=2, writes=1, faults=1, kinds=BREAK, timers="last"),
    Size(copies=3, writes=2, faults=0),
)


@pytest.mark.parametrize("size", SOUND)
def test_the_search_with_names_put_together_reaches_the_same_states_as_the_one_without(
    size: Size,
) -> None:
    world = World(size)

    def reached(same: Callable[[State], State]) -> set[State]:
        waiting = [same(world.first())]
        known = set(waiting)
        while waiting:
            state = waiting.pop()
            after = {same(check(world, world.take(state, step))) for step in world.steps(state)}
            waiting.extend(after - known)
            known |= after
        return known

    everything = reached(lambda state: state)
    together = reached(lambda state: same_but_for_names(world, state))
    assert {same_but_for_names(world, state) for state in everything} == together
    assert len(together) <= len(everything)


def test_after_any_step_a_state_and_the_one_that_stands_for_it_lead_to_the_same() -> None:
    world = World(Size(copies=2, faults=3, timers="last"))
    draw = random.Random(1)
    state = world.first()

    def successors(state: State) -> set[State]:
        after = [check(world, world.take(state, step)) for step in world.steps(state)]
        return {same_but_for_names(world, one) for one in after}

    for _ in range(40):
        assert successors(state) == successors(same_but_for_names(world, state))
        state = world.take(state, draw.choice(list(world.steps(state))))


def test_no_number_of_an_epoch_is_special(monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(copies=2, writes=1, faults=1, kinds=BREAK, timers="last")
    low = explore(size)
    monkeypatch.setattr("holdfast.testing.explorer.world.EPOCH_FIRST", 7_000)
    high = explore(size)
    assert low.complete
    assert (low.states, low.edges) == (high.states, high.edges)


def test_a_step_is_taken_the_same_way_twice() -> None:
    size = Size(writes=1, faults=1, kinds=BREAK, timers="last")

    def counted(report: Report) -> tuple[int, int, int]:
        return report.states, report.edges, report.depth

    assert counted(explore(size)) == counted(explore(size))


def test_a_small_world_begins_in_full_redundancy() -> None:
    world = World(Size(writes=0))
    assert world.is_at_rest(world.first())


def test_fingerprints_tell_states_apart_and_not_their_histories() -> None:
    assert canonical({1: bytearray(b"a")}) == canonical({1: b"a"})
    assert canonical([1, 2]) != canonical([2, 1])
    shared = Size()
    assert canonical((shared, shared)) != canonical((Size(), Size()))


def test_the_command_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--writes", "1", "--faults", "0"]) == 0
    assert "no violation" in capsys.readouterr().out
    assert command.main(["--states", "20"]) == 3


@pytest.mark.parametrize("words", [["--kinds", "flood"], ["--slow", "tape"], ["--copies", "9"]])
def test_the_command_refuses_what_makes_no_sense(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err
