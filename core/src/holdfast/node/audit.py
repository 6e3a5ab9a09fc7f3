"""Replays what the nodes of a cluster have written down, and asks whether the rules were kept.

Input are the event logs (`eventlog.py`) of as many nodes as there are, with the facts of `witness.py`
in them. What follows from the order of the store's versions, or from the order of lines in one file,
needs no clock; where two nodes are compared, their wall clocks count, within a tolerance. An audit can
only show that a rule was broken, never that it was not: what was not written down was not looked at.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from holdfast.errors import NotFoundError
from holdfast.node.eventlog import DIRECTORY

SKEW_S = 1.0
"""How far the wall clocks of two nodes may be apart; half the lease by default."""
SUFFIX = ".jsonl"


@frozen
class Line:
    """One line of an event log, and where it stands."""

    file: Path
    number: int
    at: float
    node: str
    epoch: int
    kind: str
    facts: Mapping[str, Any]

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.file}:{self.number}"


@frozen
class Finding:
    """A rule that was not kept."""

    rule: str
    """As in the protocol: `I2`, `R3`, …"""
    volume: str
    sentence: str
    at: float
    file: str
    line: int


@define
class Audit:
    """What came of it."""

    events: int = 0
    damaged: int = 0
    """Lines that could not be read; a crash may cut the last one of a file short."""
    volumes: list[str] = field(factory=list)
    nodes: list[str] = field(factory=list)
    missing: list[str] = field(factory=list)
    """Nodes that the records name and whose logs are not here."""
    records: int = 0
    """Changes of group records that were looked at."""
    findings: list[Finding] = field(factory=list)
    """In the order of time."""


def audit(directory: Path, *more: Path, skew_s: float = SKEW_S) -> Audit:
    """Look at every event log below a folder.

    Args:
        directory: A cluster's folder, a node's, or any that holds their `events` folders.
        more: Further ones, such as data directories that lie elsewhere.
        skew_s: How far wall clocks of different nodes may be apart.

    Raises:
        NotFoundError: There is no such folder, or no event log in it.
    """
    if not directory.is_dir():
        raise NotFoundError(
            f"There is no folder {directory}.", hint="Name a cluster's or a node's data folder."
        )
    patterns = f"*{SUFFIX}", f"**/{DIRECTORY}/*{SUFFIX}"
    folders = (directory, *more)
    files = sorted(
        {file for each in folders for pattern in patterns for file in each.glob(pattern)}
    )
    if not files:
        raise NotFoundError(
            f"There is no event log in {directory}.",
            hint=f"A node keeps them in the folder {DIRECTORY!r} of its first data directory.",
        )
    done = Audit()
    by_volume: dict[str, list[Line]] = {}
    for file in files:
        by_volume.setdefault(file.stem, []).extend(_read(file, done))
    named: set[str] = set()
    for volume, lines in sorted(by_volume.items()):
        done.volumes.append(volume)
        done.nodes = sorted({*done.nodes, *(line.node for line in lines)})
        for line in lines:
            if line.kind == "record":
                named.update(line.facts["members"])
        for rule, line, sentence in _check(lines, skew_s):
            done.findings.append(
                Finding(rule, volume, sentence, line.at, str(line.file), line.number)
            )
        done.records += sum(line.kind == "record" for line in lines)
    done.missing = sorted(named - set(done.nodes))
    done.findings.sort(key=lambda finding: finding.at)
    return done


_FACTS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "record": {
        "before": int,
        "version": int,
        "primary": str,
        "in_sync": list,
        "members": list,
        "access": str,
        "generation": int,
    },
    "silent": {"until": (int, float)},
}


def _read(file: Path, done: Audit) -> Iterator[Line]:
    """Yield the lines of a file; what is no event is counted and left out."""
    text = file.read_text(encoding="utf-8", errors="replace")
    for number, raw in enumerate(text.splitlines(), start=1):
        if not raw.strip():
            continue
        line = _parse(file, number, raw)
        if line is None:
            done.damaged += 1
        else:
            done.events += 1
            yield line


def _parse(file: Path, number: int, raw: str) -> Line | None:
    try:
        event = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(event, dict):
        return None
    facts = event.get("facts", {})
    at, node, epoch, kind = (event.get(key) for key in ("at", "node", "epoch", "kind"))
    if not (isinstance(at, int | float) and isinstance(node, str) and isinstance(epoch, int)):
        return None
    if not (isinstance(kind, str) and isinstance(facts, dict)):
        return None
    wanted = _FACTS.get(kind, {})
    if any(not isinstance(facts.get(name), types) for name, types in wanted.items()):
        return None
    return Line(file, number, float(at), node, epoch, kind, facts)


Broken = tuple[str, Line, str]


def _check(lines: Sequence[Line], skew_s: float) -> Iterator[Broken]:
    records = sorted(
        (line for line in lines if line.kind == "record"), key=lambda line: line.facts["version"]
    )
    yield from _records(records)
    yield from _epochs(lines)
    yield from _roles(lines, records)
    yield from _answers(lines, skew_s)
    yield from _told(lines, records, skew_s)


# -- what the store's versions order ---------------------------------------------------------------


def _records(records: Sequence[Line]) -> Iterator[Broken]:
    """R2, R4, R11: how a group record may change."""
    for before, after in itertools.pairwise(records):
        old, new = before.facts, after.facts
        if old["version"] == new["version"]:
            if _state(before) != _state(after):
                yield "R2", after, f"two records have version {new['version']}; see {before.place}"
            continue
        if after.epoch < before.epoch:
            yield "I2", after, f"the epoch fell from {before.epoch} to {after.epoch}"
        changed = _set(before) != _set(after)
        if after.epoch == before.epoch and changed:
            yield (
                "I2",
                after,
                f"primary or in-sync set changed within epoch {after.epoch}; see {before.place}",
            )
        if new["generation"] < old["generation"]:
            yield (
                "R11",
                after,
                f"the attachment generation fell from {old['generation']} to {new['generation']}",
            )
        if new["before"] == old["version"] and new["primary"] not in old["in_sync"]:
            yield (
                "R4",
                after,
                (
                    f"{new['primary']} became primary of epoch {after.epoch} and was not in sync in "
                    f"epoch {before.epoch}"
                ),
            )
    for line in records:
        if line.facts["primary"] not in line.facts["in_sync"]:
            yield "R4", line, f"the primary {line.facts['primary']} is not in sync"


def _state(line: Line) -> tuple[object, ...]:
    return (line.epoch, *_set(line), line.facts["access"], line.facts["generation"])


def _set(line: Line) -> tuple[object, ...]:
    return line.facts["primary"], tuple(sorted(line.facts["in_sync"]))


# -- what the lines of one node order --------------------------------------------------------------


def _epochs(lines: Sequence[Line]) -> Iterator[Broken]:
    """R3: what a copy has seen, it has seen durably; its epoch never falls."""
    highest: dict[tuple[Path, str], Line] = {}
    incarnation: dict[Path, str] = {}
    for line in lines:
        if line.kind == "opened":
            incarnation[line.file] = str(line.facts.get("incarnation"))
        key = (line.file, incarnation.get(line.file, ""))
        before = highest.get(key)
        if line.kind == "silent":
            continue  # It tells of an epoch that is over.
        if before is not None and line.epoch < before.epoch:
            yield (
                "R3",
                line,
                f"{line.node} knew epoch {before.epoch} and then {line.epoch}; see {before.place}",
            )
        elif before is None or line.epoch > before.epoch:
            highest[key] = line


def _roles(lines: Sequence[Line], records: Sequence[Line]) -> Iterator[Broken]:
    """I2: one primary in an epoch, the one that the record of that epoch names."""
    named = {line.epoch: line for line in records}
    first: dict[int, Line] = {}
    for line in lines:
        if line.kind not in {"primary-serving", "answering"}:
            continue
        other = first.setdefault(line.epoch, line)
        if other.node != line.node:
            yield (
                "I2",
                line,
                (
                    f"{other.node} and {line.node} both answer in epoch {line.epoch}; see "
                    f"{other.place}"
                ),
            )
        record = named.get(line.epoch)
        if record is not None and record.facts["primary"] != line.node:
            yield (
                "I2",
                line,
                (
                    f"{line.node} answers in epoch {line.epoch}, whose record names "
                    f"{record.facts['primary']}; see {record.place}"
                ),
            )


# -- what clocks order -----------------------------------------------------------------------------


def _answers(lines: Sequence[Line], skew_s: float) -> Iterator[Broken]:
    """R5: a primary's lease is over before another one answers."""
    spans = sorted(_spans(lines), key=lambda span: span[0].at)
    for at, (begun, _) in enumerate(spans):
        for other, until in spans[:at]:
            if other.node != begun.node and begun.at + skew_s < until:
                yield (
                    "R5",
                    begun,
                    (
                        f"{begun.node} answers from epoch {begun.epoch} on while {other.node} still "
                        f"may, for {until - begun.at:.1f} s more; see {other.place}"
                    ),
                )


def _spans(lines: Sequence[Line]) -> Iterator[tuple[Line, float]]:
    """Yield each time in which a copy could answer: the line of its begin, and its end.

    A process that ends without a word is taken to have ended at its last line.
    """
    open_spans: dict[Path, tuple[Line, float]] = {}
    for line in lines:
        span = open_spans.get(line.file)
        if span is not None and line.kind in {"silent", "opened", "answering", "stepped-down"}:
            ended = {"silent": line.facts.get("until"), "opened": span[1]}.get(line.kind, line.at)
            yield span[0], float(ended or line.at)
            del open_spans[line.file]
        elif span is not None:
            open_spans[line.file] = (span[0], line.at)
        if line.kind == "answering":
            open_spans[line.file] = (line, line.at)
    yield from open_spans.values()


def _told(lines: Iterable[Line], records: Sequence[Line], skew_s: float) -> Iterator[Broken]:
    """R2: nobody acts on an epoch that was not recorded before."""
    if not records:
        return
    first, last = records[0].epoch, records[-1].epoch
    recorded: dict[int, float] = {}
    for record in records:
        recorded[record.epoch] = min(record.at, recorded.get(record.epoch, record.at))
    for line in lines:
        if line.kind in {"record", "opened", "silent"} or not first < line.epoch <= last:
            continue  # The logs do not reach that far back, or the writer's is not here.
        at = recorded.get(line.epoch)
        if at is not None and line.at + skew_s < at:
            yield (
                "R2",
                line,
                f"{line.node} acts in epoch {line.epoch} {at - line.at:.1f} s before it is recorded",
            )
