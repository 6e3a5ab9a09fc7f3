"""The specification: it holds, it can fail, and its actions are those of the code."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from attrs import frozen
from tests.conftest import lacking
from tests.harness import tlc

from holdfast.testing.simulation.faults import KINDS

README = (tlc.SPEC / "README.md").read_text(encoding="utf-8")
GROUPS = ("Next", "Consumer", "Faulty", "Solo", "Pair")
"""Definitions that only put actions together."""


@pytest.fixture(scope="module")
def checker() -> None:
    missing = tlc.what_is_missing()
    if missing:
        lacking(missing)


# --- it holds --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "live"])
@pytest.mark.usefixtures("checker")
def test_the_small_models_hold(name: str) -> None:
    outcome = tlc.check(name)
    assert outcome.is_complete, outcome.said
    assert f"| `{name}` | {outcome.distinct:,} |" in README, f"{outcome.distinct:,} states"


# --- it can fail -----------------------------------------------------------------------------


@frozen
class Mutation:
    """A wrong rule: what stands for it in the specification, and in which model it shows."""

    old: str
    new: str
    violated: str
    constants: Mapping[str, str]


WRONG: Mapping[str, Mutation] = {
    "a replica answers reads from its window": Mutation(
        'view[c].st[c] = "in" /\\ ~disk[c].win', 'view[c].st[c] = "in"', "I5", {}
    ),
    "a write is answered before every copy has it": Mutation(
        "/\\ MayAnswer(p) /\\ pri[p].pend # <<>> /\\ Committed(p, Head(pri[p].pend))",
        "/\\ MayAnswer(p) /\\ pri[p].pend # <<>>",
        "I1",
        {},
    ),
    "what waits for a lost copy is answered before the record drops it": Mutation(
        "Required(p) == Others(p)",
        "Required(p) == {c \\in Others(p) : ~leg[p][c].fault}",
        "I1",
        {},
    ),
    "a copy that the record may count in already is not waited for": Mutation(
        "\\cup {c \\in Copies : leg[p][c].join} \\cup Asked(p)",
        "",
        "I1",
        {"Away": "1", "Faults": "{}", "MaxEpoch": "3"},
    ),
    "a syncing copy is promoted": Mutation(
        'MayPromote(r, c) == /\\ r.st[c] = "in" /\\ ~disk[c].other',
        'MayPromote(r, c) == /\\ r.st[c] # "off" /\\ ~disk[c].other',
        "TypeOK",
        {"Away": "1", "Faults": '{"crash"}'},
    ),
    "reads are served after the lease": Mutation(
        "/\\ ~pri[p].stopped /\\ LeaseHeld(p)",
        "/\\ ~pri[p].stopped",
        "I2",
        {"Faults": '{"isolate"}'},
    ),
    "a copy that the record names does not wait for the end of its promise": Mutation(
        "epoch[c] < view[c].epoch =>",
        "FALSE =>",
        "I2",
        {
            "Copies": "{c1, c2}",
            "MaxWrites": "0",
            "Faults": '{"cut", "crash", "late"}',
            "MaxFaults": "2",
            "MaxEpoch": "3",
        },
    ),
    "a new primary serves before it has reconciled": Mutation(
        "LET sus == Suspect(disk[p]) \\/ \\E c \\in Others(p) : leg[p][c].sus",
        "LET sus == FALSE",
        "I3",
        {"Faults": '{"crash"}'},
    ),
    "a read does not wait for the write that it overlaps": Mutation(
        'pri[p].pend[i].k = "f" \\/ Committed(p, pri[p].pend[i])',
        "TRUE",
        "I5",
        {"Faults": '{"crash"}'},
    ),
    "what an absent copy misses is not noted": Mutation(
        'Dirtied(d) == [x \\in Copies |-> IF d.map[x] = "clean" THEN "dirty" ELSE d.map[x]]',
        "Dirtied(d) == d.map",
        "I1",
        {"Away": "1", "Faults": "{}"},
    ),
    "a copy that lost power takes over as if nothing had happened": Mutation(
        'MustPublish(c) == disk[c].lost /\\ view[c].st[c] = "in" /\\ c \\notin view[c].sus',
        "MustPublish(c) == FALSE",
        "I5",
        {"Faults": '{"reboot"}'},
    ),
    "a copy acknowledges a flush that its disk has not carried out": Mutation(
        '[] op.k \\in {"f", "F"} -> [x EXCEPT !.disk = Stable(d)]',
        '[] op.k \\in {"f", "F"} -> x',
        "I4",
        {"Faults": "{}", "MaxFlushes": "1", "Clears": "{FALSE}"},
    ),
}


def with_constants(config: str, constants: Mapping[str, str]) -> str:
    for name, value in constants.items():
        config, count = re.subn(rf"(?m)^    {name} = .*$", f"    {name} = {value}", config)
        assert count == 1, name
    return config


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("checker")
def test_a_wrong_rule_is_found(name: str, tmp_path: Path) -> None:
    wrong = WRONG[name]
    text = tlc.specification()
    assert text.count(wrong.old) == 1, wrong.old
    config = with_constants(tlc.configuration("small"), wrong.constants)
    outcome = tlc.run({tlc.MODULE: text.replace(wrong.old, wrong.new)}, config, tmp_path)
    assert outcome.violated == wrong.violated, outcome.said


# --- it is about this code -------------------------------------------------------------------


def definitions(text: str) -> dict[str, str]:
    """Return what the specification defines: name to text."""
    starts = list(re.finditer(r"(?m)^(\w+)(?:\([\w, ]*\))? ==", text))
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return {s[1]: text[s.end() : end] for s, end in zip(starts, ends, strict=True)}


def actions() -> set[str]:
    known = definitions(tlc.specification())
    named = {word for group in GROUPS for word in re.findall(r"\w+", known[group])}
    return (named & known.keys()) - set(GROUPS)


def table() -> dict[str, list[str]]:
    """Return the table of actions: action to the names in its second column."""
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*?) \|", README.partition("## Actions")[2])
    return {action: re.findall(r"`([^`]+)`", names) for action, names in rows}


def test_every_action_is_in_the_table_and_nothing_else() -> None:
    assert len(actions()) > 30
    assert table().keys() == actions()


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
