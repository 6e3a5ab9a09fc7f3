"""Run seeds from the command line: `python -m holdfast.testing.simulation --seed 81 --until 37.2`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from holdfast.testing.simulation import faults as flt
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
    options = parser.parse_args(arguments)
    say = sys.stdout.write
    if options.seed is not None:
        keep = _numbers(options.faults)
        outcome = run_seed(options.seed, until=options.until, keep=keep)
        _tell(outcome, options.trace)
        if options.shrink and outcome.violation is not None:
            _tell(shrink(outcome), options.trace)
        return int(outcome.violation is not None)
    began = time.perf_counter()
    failed = events = 0
    for seed in range(options.start, options.start + options.seeds):
        outcome = run_seed(seed, until=options.until)
        events += outcome.events
        if outcome.violation is not None:
            failed += 1
            if options.shrink:
                outcome = shrink(outcome)
            say(outcome.sentence() + "\n")
            if options.stop:
                break
    took = time.perf_counter() - began
    say(
        f"{options.seeds} seeds, {failed} violations, {events} events in {took:.1f} s: "
        f"{events / took:,.0f} events/s\n"
    )
    return int(failed > 0)


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
