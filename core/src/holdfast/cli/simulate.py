"""`holdfast simulate`: one run of the simulator, told as a story."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.context import here, put, put_json
from holdfast.errors import RuleBrokenError, UsageError

if TYPE_CHECKING:
    from holdfast.testing.simulation.runner import Outcome

_MEMBER = re.compile(r"(\S+):(in-sync|syncing|offline)(\?)?")


def add_to(app: typer.Typer) -> None:
    """Add this module's command to `holdfast`."""
    app.command()(simulate)


def simulate(
    ctx: typer.Context,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Names the run.")],
    until: Annotated[
        float | None,
        typer.Option(
            "--until",
            metavar="SECONDS",
            help="Stop at this moment of the run.",
            show_default="when all is at rest",
        ),
    ] = None,
    faults: Annotated[
        str | None,
        typer.Option(
            "--faults", metavar="N,…", help="Only these faults, or `none`.", show_default="all"
        ),
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", metavar="N", help="How many lines to tell, from the end.")
    ] = 200,
) -> None:
    """Run a cluster that is made up: nodes, disks, network, faults and time from one seed.

    It is the code that runs on real nodes. The same seed gives the same run everywhere; the line that
    a failed test prints can be given here. The exit code is 0 when no invariant was violated.
    """
    from holdfast.testing.simulation.runner import run_seed

    if until is not None and until <= 0:
        raise UsageError(f"--until {until} is no moment of a run.", hint="Write --until 30.")
    if lines < 0:
        raise UsageError(f"--lines {lines} is negative.", hint="Write --lines 50.")
    outcome = run_seed(seed, until=until, keep=_numbers(faults))
    if here(ctx).json:
        put_json(_as_json(outcome, lines))
    else:
        _tell(outcome, lines)
    if outcome.violation is not None:
        raise RuleBrokenError(
            f"At {outcome.time:.3f} s the invariant {outcome.violation.invariant} was violated: "
            f"{outcome.violation.sentence}.",
            hint=f"Again, with its trace: `{outcome.replay()} --trace 100`",
        )


def _numbers(text: str | None) -> set[int] | None:
    if text is None:
        return None
    if text == "none":
        return set()
    try:
        return {int(word) for word in text.split(",")}
    except ValueError as error:
        raise UsageError(
            f"--faults {text!r} is no list of numbers.", hint="Write --faults 0,3 or --faults none."
        ) from error


def _as_json(outcome: Outcome, lines: int) -> dict[str, Any]:
    config, violation = outcome.config, outcome.violation
    return {
        "seed": config.seed,
        "nodes": config.nodes,
        "volumes": config.volumes,
        "replicas": config.replicas,
        "faults": [
            {"number": f.number, "at": f.time, "kind": f.kind, "nodes": f.nodes}
            for f in outcome.faults
        ],
        "ended_at": outcome.time,
        "events": outcome.events,
        "answered": outcome.answered,
        "fingerprint": outcome.digest,
        "violation": violation and {"rule": violation.invariant, "sentence": violation.sentence},
        "replay": outcome.replay(),
        "story": [{"at": at, "text": text} for at, text in _story(outcome)[-lines or None :]],
    }


def _tell(outcome: Outcome, lines: int) -> None:
    config = outcome.config
    put(
        f"Seed {config.seed}: {config.nodes} nodes, {config.volumes} volume(s) with "
        f"{config.replicas} replica(s), {len(outcome.faults)} faults."
    )
    story = _story(outcome)
    told = story[len(story) - lines :] if lines < len(story) else story
    if len(told) < len(story):
        put(f"… {len(story) - len(told)} lines before (--lines {len(story)} tells all).")
    for at, text in told:
        put(f"{at:9.3f} s  {text}")
    if outcome.violation is None:
        put(
            f"{outcome.answered} requests were answered and {outcome.events} things happened in "
            f"{outcome.time:.1f} s of the run, {outcome.took_s:.1f} s of ours; no invariant was "
            "violated."
        )


def _story(outcome: Outcome) -> list[tuple[float, str]]:
    """Return what happened, line by line; what the trace alone needs is left out."""
    story: list[tuple[float, str]] = []
    records: dict[str, str] = {}
    for line in outcome.lines:
        at, _, rest = line.partition(" ")
        kind, _, rest = rest.partition(" ")
        text = _sentence(kind, rest, records)
        if text:
            story.append((float(at), text))
    return story


def _sentence(kind: str, rest: str, records: dict[str, str]) -> str:
    words = rest.split(" ")
    if kind == "fault":
        return "FAULT " + re.sub(r"^(#\d+) [\d.]+ s ", r"\1 ", rest)
    if kind == "start":
        return f"{words[0]} starts."
    if kind == "stop":
        return f"{words[0]} stops in order."
    if kind == "note":
        return f"{words[1]}: " + " ".join(words[3:])
    if kind == "loss":
        return f"{words[0]}: " + " ".join(words[1:]) + "."
    if kind == "forced":
        return f"{words[0]}: an operator lets the copy on {words[1]} go on."
    if kind == "record":
        return _record(words, records)
    return ""


def _record(words: list[str], records: dict[str, str]) -> str:
    """Return what a group record says, if that is news for people."""
    volume, epoch, primary = words[0], words[2], words[4]
    members = ", ".join(
        f"{node} {state}{' (lost power)' if suspect else ''}"
        for node, state, suspect in _MEMBER.findall(" ".join(words[5:]))
    )
    access = next((word for word in words[5:] if word.startswith(("read", "susp", "err"))), "")
    told = f"primary {primary}; {members}; {access}"
    if records.get(volume) == told:
        return ""
    records[volume] = told
    return f"{volume}: epoch {epoch}: {told}."
