"""Run seeds from the command line: `python -m holdfast.testing.simulation --seed 81 --until 37.2`."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

from holdfast.testing.simulation import faults as flt
from holdfast.testing.simulation.many import Options, run_many
from holdfast.testing.simulation.runner import Outcome, run_seed
from holdfast.testing.simulation.shrink import shrink


def main(arguments: list[str] | None = None) -> int:
    """Run seeds; return 1 when one of them violated an invariant."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.testing.simulation")
    parser.add_argument("--seed", type=int, help="the one seed to run")
    parser.add_argument("--seeds", type=int, default=50, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=1, help="the first of them")
    parser.add_argument("--until", type=float, help="virtual seconds to end at")
    parser.add_argument("--faults", help="numbers of the faults to plant, or none")
    parser.add_argument("--trace", type=int, default=0, help="lines of the trace to print")
    parser.add_argument("--shrink", action="store_true", help="shorten the fault lists of failures")
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    parser.add_argument("--keep", type=Path, help="file to which failing runs are added, shortened")
    parser.add_argument("--kept", type=Path, help="run what a file has kept, instead of seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes to run seeds in")
    parser.add_argument("--resume", type=Path, help="file that remembers how far it has come")
    parser.add_argument(
        "--coverage", action="store_true", help="count how often each kind of fault had an effect"
    )
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs: at least one process is needed")
    if options.seed is not None:
        numbers = _numbers(options.faults)
        outcome = run_seed(options.seed, until=options.until, keep=numbers)
        _tell(outcome, options.trace)
        if options.shrink and outcome.violation is not None:
            _tell(shrink(outcome), options.trace)
        return int(outcome.violation is not None)
    total = run_many(
        Options(
            options.start,
            options.seeds,
            until=options.until,
            kept=options.kept,
            keep=options.keep,
            shrinks=options.shrink,
            stops=options.stop,
            jobs=options.jobs,
            resume=options.resume,
        ),
        _say,
    )
    if options.coverage:
        sys.stdout.write(total.faults() + "\n")
    sys.stdout.write(total.sentence() + "\n")
    return int(total.failed > 0)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _numbers(text: str | None) -> set[int] | None:
    if text is None:
        return None
    return set() if text == "none" else {int(number) for number in text.split(",")}


def _tell(outcome: Outcome, lines: int) -> None:
    say = sys.stdout.write
    for fault in outcome.faults if lines else ():
        say(f"{fault}\n")
    for line in outcome.lines[-lines:] if lines else ():
        say(line + "\n")
    if outcome.violation is not None and outcome.violation.__cause__ is not None:
        traceback.print_exception(outcome.violation.__cause__)
    if outcome.violation is not None:
        say(str(outcome.violation) + "\n")
    say(
        f"{outcome.sentence()}\n{outcome.events} events, {outcome.steps} steps, "
        f"{outcome.answered} requests in {outcome.took_s:.2f} s, fingerprint {outcome.digest}\n"
    )


if __name__ == "__main__":
    assert flt.KINDS
    sys.exit(main())
