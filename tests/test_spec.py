"""The specification: it holds, it can fail, and its actions are those of the code."""

from __future__ import annotations

import importlib
import re

import pytest
from tests.conftest import lacking
from tests.harness import models, tlc, wrong_rules

from holdfast.testing.simulation.faults import KINDS

README = models.README.read_text(encoding="utf-8")
RESULTS = models.results()


@pytest.fixture(scope="module")
def checker() -> None:
    missing = tlc.what_is_missing()
    if missing:
        lacking(missing)


# --- it holds --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.QUICK)
@pytest.mark.usefixtures("checker")
def test_the_small_models_hold(name: str) -> None:
    outcome = models.check(name)
    assert outcome.is_complete, outcome.said
    assert (outcome.distinct, outcome.depth) == (RESULTS[name].distinct, RESULTS[name].depth)


def test_the_readme_tells_the_constants_and_results_of_every_model() -> None:
    assert models.with_table(README) == README, "python -m tests.harness.models --write small"


@pytest.mark.parametrize("name", models.names())
def test_a_result_is_of_the_specification_as_it_is(name: str) -> None:
    assert RESULTS[name].digest == models.digest(name), f"make model MODEL={name}"


def test_every_action_is_taken_in_some_model() -> None:
    never = models.actions().intersection(*(result.idle for result in RESULTS.values()))
    assert not never


@pytest.mark.parametrize("name", models.names())
def test_every_fault_of_a_model_happens_in_it(name: str) -> None:
    named = {models.FAULTS[kind] for kind in models.faults_of(name)}
    assert not named & set(RESULTS[name].idle)


# --- it can fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", wrong_rules.QUICK)
@pytest.mark.usefixtures("checker")
def test_a_wrong_rule_is_found(name: str) -> None:
    outcome = wrong_rules.outcome_of(name)
    assert outcome.violated == wrong_rules.RULES[name].violated, outcome.said


@pytest.mark.parametrize("name", wrong_rules.RULES)
def test_a_wrong_rule_is_one_rule_of_the_specification(name: str) -> None:
    assert models.specification().count(wrong_rules.RULES[name].old) == 1


# --- it is about this code -------------------------------------------------------------------


def table() -> dict[str, list[str]]:
    """Return the table of actions: action to the names in its second column."""
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*?) \|", README.partition("## Actions")[2])
    return {action: re.findall(r"`([^`]+)`", names) for action, names in rows}


def test_every_action_is_in_the_table_and_nothing_else() -> None:
    assert len(models.actions()) > 30
    assert table().keys() == models.actions()


@pytest.mark.parametrize(("action", "names"), table().items())
def test_what_an_action_stands_for_exists(action: str, names: list[str]) -> None:
    assert names, action
    for name in names:
        if name in KINDS:
            continue
        module, _, path = name.partition(".")
        thing = importlib.import_module(
            f"holdfast.{module}" if module == "interfaces" else f"holdfast.sync.{module}"
        )
        if module == "interfaces":
            module, _, path = path.partition(".")
            thing = importlib.import_module(f"holdfast.interfaces.{module}")
        for part in path.split("."):
            thing = getattr(thing, part)
        assert callable(thing) or isinstance(thing, property), name
