"""Runs many seeds: over several processes, with a word about how far it has come, and resumable.

What a run finds is told where it was found, so that no world has to travel between processes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from attrs import asdict, define, field, frozen

from holdfast.testing.simulation.faults import KINDS
from holdfast.testing.simulation.kept import Kept, kept_of, read_kept
from holdfast.testing.simulation.runner import Outcome, run_seed
from holdfast.testing.simulation.shrink import shrink

TELL_EVERY_S = 60.0


@frozen
class Options:
    """What to run, and what to do with what fails."""

    start: int
    seeds: int
    until: float | None = None
    kept: Path | None = None
    """Runs of a file instead of seeds."""
    keep: Path | None = None
    """File to which failing runs are added."""
    shrinks: bool = False
    stops: bool = False
    """At the first failure."""
    jobs: int = 1
    resume: Path | None = None
    """File that remembers how far it has come."""


@frozen
class _Result:
    """What came of one run."""

    sentence: str
    """Empty: no violation."""
    kept: str
    events: int
    busy_s: float
    """Seconds of processor time."""
    struck: dict[str, int]


@define
class Total:
    """What came of all runs so far."""

    runs: int = 0
    failed: int = 0
    events: int = 0
    busy_s: float = 0.0
    took_s: float = 0.0
    struck: Counter[str] = field(factory=Counter, converter=Counter)

    def add(self, result: _Result) -> None:
        """Count a run."""
        self.runs += 1
        self.failed += bool(result.sentence)
        self.events += result.events
        self.busy_s += result.busy_s
        self.struck.update(result.struck)

    def sentence(self) -> str:
        """Return one line for people."""
        return (
            f"{self.runs} runs, {self.failed} violations, {self.events} events in "
            f"{self.took_s:.1f} s: {self.events / max(self.took_s, 1e-9):,.0f} events/s, "
            f"{self.events / max(self.busy_s, 1e-9):,.0f} for each second of processor time"
        )

    def faults(self) -> str:
        """Return how often each kind of fault has struck, and how often that had an effect."""
        rows = [("fault", "struck", "with effect")]
        rows += [(k, f"{self.struck[k]:,}", f"{self.struck[f'{k}!']:,}") for k in KINDS]
        return "\n".join(f"{kind:<18} {struck:>8} {effect:>12}" for kind, struck, effect in rows)


def run_many(options: Options, say: Callable[[str], object]) -> Total:
    """Run what `options` names and tell of it, line by line."""
    total = Total()
    if options.resume is not None and options.resume.exists():
        total = Total(**json.loads(options.resume.read_text(encoding="utf-8")))
        say(f"{total.runs} runs were done before\n")
    began, told_at = time.perf_counter() - total.took_s, time.perf_counter()
    for result in _results(options, total.runs):
        total.add(result)
        total.took_s = time.perf_counter() - began
        if result.sentence:
            say(result.sentence + "\n")
            if options.keep is not None:
                with options.keep.open("a", encoding="utf-8") as file:
                    file.write(result.kept + "\n")
        if options.resume is not None:
            options.resume.write_text(json.dumps(asdict(total)), encoding="utf-8")
        if time.perf_counter() - told_at > TELL_EVERY_S:
            told_at = time.perf_counter()
            say(f"{total.sentence()}; the last was number {options.start + total.runs - 1}\n")
        if result.sentence and options.stops:
            break
    return total


def _results(options: Options, done: int) -> Iterator[_Result]:
    work: Iterable[int | Kept]
    if options.kept is not None:
        work = read_kept(options.kept)[done:]
    else:
        work = range(options.start + done, options.start + options.seeds)
    run = partial(_run, options)
    if options.jobs == 1:
        yield from map(run, work)
    else:
        with get_context("fork").Pool(options.jobs) as pool:
            yield from pool.imap(run, work)


def _run(options: Options, what: int | Kept) -> _Result:
    busy = time.process_time()
    outcome = what.run() if isinstance(what, Kept) else run_seed(what, until=options.until)
    busy = time.process_time() - busy
    told: Outcome = outcome
    if outcome.violation is not None and (options.shrinks or options.keep is not None):
        told = shrink(outcome)
    return _Result(
        "" if told.violation is None else told.sentence(),
        "" if told.violation is None else kept_of(told).line(),
        outcome.events,
        busy,
        dict(outcome.struck),
    )
