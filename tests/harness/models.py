"""The models of the specification in `docs/spec`: checks them, and tells what came of it.

    python -m tests.harness.models small live      checks the models of those names
    python -m tests.harness.models --list          names them all
    python -m tests.harness.models --write live    keeps what came of it in docs/spec

A model is a configuration beside the specification. What came of a model stands in `results.json`,
with a digest of all that it depends on, so that no number outlives what it was counted of; the table
in the README is made of both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import asdict, frozen
from tests.harness import tlc

SPEC = Path(__file__).parents[2] / "docs" / "spec"
MODULE = "Holdfast"
RESULTS = SPEC / "results.json"
README = SPEC / "README.md"
BEGIN, END = "<!-- generated: models -->", "<!-- end -->"
QUICK = ("small", "live")
"""Those that `make test` checks."""

FAULTS = {
    "crash": "Crash",
    "reboot": "Reboot",
    "wipe": "Wipe",
    "cut": "Cut",
    "isolate": "Isolate",
    "store": "StoreOut",
    "answer": "AnswerLost",
    "late": "LateApply",
    "slow": "Slow",
    "stall": "Relieve",
    "handover": "Handover",
}
"""The kinds of fault that a configuration names, and the actions that they allow."""

_GROUPS = ("Next", "Consumer", "Reading", "Faulty", "Solo", "Pair")
"""Definitions that only put actions together."""
_USUAL = {"0", "FALSE", "{TRUE}", "{c1, c2, c3}"}
_FAIR = {"Fairness", "First", "Last", "Alike", "Spares", "Prompt", "FairNext", "FairSpec", "I7"}
"""Definitions that only models with endless runs depend on."""
_LINE_COMMENT = re.compile(r"\\\*.*")
_COMMENT = re.compile(r"\(\*.*?\*\)", re.DOTALL)
_UNTOLD = {"c1", "c2", "c3", "None"}


@frozen
class Result:
    """What came of a model that was checked to its end."""

    digest: str
    distinct: int
    depth: int
    processor_s: int
    idle: Sequence[str]
    """Actions that were never taken."""


def specification() -> str:
    """Return the text of the specification."""
    return (SPEC / f"{MODULE}.tla").read_text(encoding="utf-8")


def configuration(name: str) -> str:
    """Return the text of the configuration `name`."""
    return (SPEC / f"{name}.cfg").read_text(encoding="utf-8")


def names() -> list[str]:
    """Return the names of all models."""
    return sorted(path.stem for path in SPEC.glob("*.cfg"))


def definitions(text: str) -> dict[str, str]:
    """Return what the specification defines: name to text."""
    starts = list(re.finditer(r"(?m)^(\w+)(?:\([\w, ]*\))? ==", text))
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return {s[1]: text[s.end() : end] for s, end in zip(starts, ends, strict=True)}


def actions() -> set[str]:
    """Return the names of the specification's actions."""
    known = definitions(specification())
    named = {word for group in _GROUPS for word in re.findall(r"\w+", known[group])}
    return (named & known.keys()) - set(_GROUPS)


def constants(config: str) -> dict[str, str]:
    """Return the constants of a configuration."""
    found = re.findall(r"(?m)^    (\w+) = (.*)$", config)
    return {name: value for name, value in found if name not in _UNTOLD}


def faults_of(name: str) -> set[str]:
    """Return the kinds of fault that a model names."""
    return set(re.findall(r'"(\w+)"', constants(configuration(name))["Faults"]))


def with_constants(config: str, changed: Mapping[str, str]) -> str:
    """Return the configuration with other values of some of its constants."""
    for name, value in changed.items():
        config, count = re.subn(rf"(?m)^    {name} = .*$", f"    {name} = {value}", config)
        assert count == 1, name
    return config


def digest(name: str) -> str:
    """Return what names everything that the result of a model depends on; comments are not part."""
    config = configuration(name)
    known = definitions(_COMMENT.sub("", _LINE_COMMENT.sub("", specification())))
    if "SPECIFICATION FairSpec" not in config:
        known = {key: body for key, body in known.items() if key not in _FAIR}
    text = _LINE_COMMENT.sub("", config) + " ".join(f"{key} {known[key]}" for key in known)
    words = " ".join(text.replace("-----", "").split())
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()


def telling(text: str) -> str:
    """Return a specification of which TLC prints each action when it is first taken.

    TLC's own count of that, `-coverage`, takes several times as long.
    """
    added = [
        'Took(k, name) == IF TLCGet(k) THEN TRUE ELSE TLCSet(k, TRUE) /\\ PrintT(<<"taken", name>>)'
    ]
    for number, name in enumerate(sorted(actions()), start=1):
        text, count = re.subn(rf"(?m)^{name}(\([\w, ]*\))? ==", rf"{name}Step\1 ==", text)
        assert count == 1, name
        found = re.search(rf"(?m)^{name}Step(\([\w, ]*\))? ==", text)
        arguments = (found and found[1]) or ""
        added.append(f'{name}{arguments} == {name}Step{arguments} /\\ Took({number}, "{name}")')
    added.append(f"ASSUME \\A k \\in 1..{len(added)} : TLCSet(k, FALSE)")
    first = re.search(r"(?m)^Consumer ==", text)
    assert first is not None
    return text[: first.start()] + "\n".join(added) + "\n\n" + text[first.start() :]


def check(name: str, *, memory: str = "1g", timeout_s: float = 600.0) -> tlc.Outcome:
    """Check the model `name` of `docs/spec`; the outcome tells which actions were taken."""
    with tempfile.TemporaryDirectory(prefix="holdfast-tlc-") as folder:
        return tlc.run(
            {MODULE: telling(specification())},
            configuration(name),
            Path(folder),
            module=MODULE,
            memory=memory,
            timeout_s=timeout_s,
            is_long=name not in QUICK,
        )


# --- what is told of them --------------------------------------------------------------------


def results() -> dict[str, Result]:
    """Return what is known of the models."""
    raw = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {name: Result(**fields) for name, fields in raw.items()}


def keep(name: str, outcome: tlc.Outcome) -> None:
    """Keep what came of a model, and tell it in the README."""
    taken = set(re.findall(r'<<"taken", "(\w+)">>', outcome.said))
    known = results() if RESULTS.exists() else {}
    known[name] = Result(
        digest(name),
        outcome.distinct,
        outcome.depth,
        round(outcome.processor_s),
        sorted(actions() - taken),
    )
    raw = json.dumps({key: asdict(known[key]) for key in sorted(known)}, indent=1)
    RESULTS.write_text(raw + "\n", encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(with_table(readme), encoding="utf-8")


def with_table(readme: str) -> str:
    """Return the README with the table of the models as it should be."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def table() -> str:
    """Return the table of all models: constants, what is asked, and what came of it."""
    known = results()
    rows = [
        "| model | constants | asked | distinct states | depth | processor time | never taken |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for name in names():
        config = configuration(name)
        values = ", ".join(f"`{k} = {v}`" for k, v in constants(config).items() if v not in _USUAL)
        asked = ", ".join(re.findall(r"\b(?:TypeOK|I\d)\b", _LINE_COMMENT.sub("", config)))
        result = known.get(name)
        absent = {action for kind, action in FAULTS.items() if kind not in faults_of(name)}
        told = (
            "not checked yet | | | "
            if result is None
            else f"{result.distinct:,} | {result.depth} | {result.processor_s} s | "
            + ", ".join(f"`{action}`" for action in result.idle if action not in absent)
        )
        rows.append(f"| `{name}` | {values} | {asked} | {told} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Check the models named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Checks the specification with TLC.")
    parser.add_argument("models", nargs="*", choices=[[], *names()], help="names of configurations")
    parser.add_argument("--list", action="store_true", help="name all models")
    parser.add_argument("--write", action="store_true", help="keep what came of it in docs/spec")
    parser.add_argument("--memory", default="4g", help="heap of Java (default: 4g)")
    parser.add_argument("--hours", type=float, default=6.0, help="give up after so long")
    options = parser.parse_args()
    if options.list:
        sys.stdout.write("\n".join(names()) + "\n")
        return 0
    missing = tlc.what_is_missing()
    if missing:
        sys.stderr.write(f"{missing}\n")
        return 2
    wrong = 0
    for name in options.models or names():
        outcome = check(name, memory=options.memory, timeout_s=options.hours * 3600)
        verdict = "holds" if outcome.is_complete else outcome.violated or "was not checked"
        sys.stdout.write(
            f"{name}: {verdict}; {outcome.distinct:,} distinct states, depth {outcome.depth}, "
            f"{outcome.processor_s:.0f} s of processor time\n"
        )
        sys.stdout.flush()
        if not outcome.is_complete:
            wrong = 1
            sys.stdout.write(outcome.said)
        elif options.write:
            keep(name, outcome)
        elif outcome.distinct != results()[name].distinct:
            wrong = 1
            sys.stdout.write(f"The README tells {results()[name].distinct:,} states.\n")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
