"""What simulated groups go through is what the specification allows, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from attrs import evolve
from tests.conftest import lacking
from tests.harness import tlc, traces

from holdfast.testing.simulation.abstraction import Observation, observed

Step = tuple[float, str, tuple[str, ...], float, float]
LONG = 60.0
"""Seconds after which all of this is over: what is cut or down stays so."""

RUNS: Mapping[str, tuple[Sequence[Step], Sequence[str], float]] = {
    "nothing fails": ([], ["crash"], 3.0),
    "a replica is lost": ([(1.0, "kill", ("@replica",), LONG, 0.5)], ["crash"], 2.6),
    "the primary is lost": ([(1.0, "kill", ("@primary",), LONG, 0.5)], ["crash"], 6.5),
    "the primary is handed over": (
        [(1.0, "handover", ("@replica",), 0.0, 0.1)],
        ["handover"],
        3.0,
    ),
}
"""Name to faults, the kinds of fault in the words of the specification, and seconds to look for."""


@pytest.fixture(scope="module", autouse=True)
def checker() -> None:
    missing = tlc.what_is_missing()
    if missing:
        lacking(missing)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_allowed_by_the_specification(name: str, seed: int, tmp_path: Path) -> None:
    steps, faults, for_s = RUNS[name]
    states = observed(seed, steps, for_s=for_s, think_s=0.7)
    assert len(states) > 5
    explained, outcome = traces.explain(states, faults, tmp_path)
    told = f"explained {explained} of {len(states)}; then {states[min(explained, len(states) - 1)]}"
    assert explained == len(states), f"{told}\n{outcome.said}"


def without_fault() -> list[Observation]:
    return observed(1, [], for_s=2.5, think_s=0.4, reads=0.0)


def test_an_answer_before_a_replica_has_the_write_is_not_allowed(tmp_path: Path) -> None:
    states = without_fault()
    at = next(i for i, state in enumerate(states) if state.acked == 1)
    # The answer is put before everything that the copies did with the write.
    forged = [states[0], *(evolve(state, acked=1) for state in states[1:at]), *states[at:]]
    explained, outcome = traces.explain(forged, ["crash"], tmp_path)
    assert explained < at, outcome.said


def test_an_epoch_that_rises_by_itself_is_not_allowed(tmp_path: Path) -> None:
    states = without_fault()[:3]
    record = evolve(states[-1].record, epoch=2)
    states.append(evolve(states[-1], record=record, time=states[-1].time + 0.1))
    explained, outcome = traces.explain(states, ["crash"], tmp_path)
    assert explained == 3, outcome.said
