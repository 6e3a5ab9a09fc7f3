"""The explorer visits small worlds to their end, and finds the bugs that are planted in them."""

from __future__ import annotations

import pytest
from tests.simulation.planting import every_bug, planted

from holdfast.testing.explorer import __main__ as command
from holdfast.testing.explorer.canon import canonical
from holdfast.testing.explorer.search import Report, explore
from holdfast.testing.explorer.state import Size
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


def test_a_step_is_taken_the_same_way_twice() -> None:
    size = Size(writes=1, faults=1, kinds=frozenset({"break"}))

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
