"""`holdfast simulate` tells a run, and refuses what makes no sense."""

import json

import pytest

from holdfast.cli.app import run
from holdfast.testing.simulation.invariants import Invariants, Violation


def test_a_run_is_told_and_replays_to_the_letter(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--seed", "7", "--until", "9"]) == 0
    told = capsys.readouterr().out
    assert "Seed 7: 3 nodes" in told
    # Which faults a seed draws is the simulator's business, and changes with it.
    assert "  FAULT #0 " in told
    assert " serves as primary, epoch 2." in told
    assert "no invariant was violated" in told
    assert run(["simulate", "--seed", "7", "--until", "9", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert run(["simulate", "--seed", "7", "--until", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == one
    assert one["violation"] is None
    assert one["story"][0]["text"] == "n1 starts."


def test_only_the_last_lines_are_told_when_that_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["simulate", "--seed", "7", "--until", "5", "--lines", "3", "--faults", "none"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "0 faults" in told[0]
    assert "lines before" in told[1]
    assert len(told) == 6


def test_a_violation_is_an_error_that_says_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: Invariants) -> None:
        raise Violation("I3", "copies differ")

    monkeypatch.setattr(Invariants, "checkpoint", broken)
    assert run(["simulate", "--seed", "7"]) == 13
    said = capsys.readouterr().err
    assert "I3 was violated: copies differ" in said
    assert "--seed 7 --until" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seed", "x"], "--seed"),
        ([], "--seed"),
        (["--seed", "1", "--until", "-3"], "no moment"),
        (["--seed", "1", "--faults", "a,b"], "no list of numbers"),
        (["--seed", "1", "--lines", "-1"], "negative"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", *words]) == 2
    assert says in capsys.readouterr().err
