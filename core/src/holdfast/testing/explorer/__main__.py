"""Search small worlds: `python -m holdfast.testing.explorer --copies 3 --writes 2 --faults 1`."""

from __future__ import annotations

import argparse
import sys

from holdfast.testing.explorer.search import Report, explore
from holdfast.testing.explorer.state import DEFAULT_FAULTS, FAULTS, SLOW, TIMERS, Size


def main(arguments: list[str] | None = None) -> int:
    """Search one world; return 1 when it violates an invariant, 3 when the limits came first."""
    parser = argparse.ArgumentParser(
        prog="python -m holdfast.testing.explorer",
        description="Visit every state of a small world of the real machines.",
    )
    parser.add_argument("--copies", type=int, default=3, choices=range(2, 6))
    parser.add_argument("--writes", type=int, default=2, choices=range(9))
    parser.add_argument("--faults", type=int, default=1, choices=range(5))
    parser.add_argument("--blocks", type=int, default=2, choices=range(1, 9))
    parser.add_argument(
        "--kinds", default=",".join(sorted(DEFAULT_FAULTS)), help=f"of faults: {', '.join(FAULTS)}"
    )
    parser.add_argument(
        "--slow", default="", help=f"disk work that takes its own steps: {', '.join(SLOW)}"
    )
    parser.add_argument(
        "--timers", default="any", choices=TIMERS, help="when they may run out (default: any)"
    )
    parser.add_argument("--deviations", type=int, help="from the usual order; without it any order")
    parser.add_argument("--states", type=int, help="stop after so many states")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    options = parser.parse_args(arguments)
    size = Size(
        options.copies,
        options.writes,
        options.faults,
        options.blocks,
        _words(parser, "--kinds", options.kinds, FAULTS),
        _words(parser, "--slow", options.slow, SLOW),
        options.timers,
    )
    report = explore(
        size,
        deviations=options.deviations,
        states_max=options.states,
        seconds_max=options.seconds,
        tell=_progress,
    )
    _tell(report)
    if report.violation is not None:
        return 1
    return 0 if report.complete else 3


def _words(
    parser: argparse.ArgumentParser, option: str, text: str, known: tuple[str, ...]
) -> frozenset[str]:
    words = frozenset(word for word in text.split(",") if word)
    if words - set(known):
        wrong = ", ".join(sorted(words - set(known)))
        parser.error(f"{option}: {wrong}: choose from {', '.join(known)}")
    return words


def _progress(line: str) -> None:
    sys.stderr.write(line + "\n")


def _tell(report: Report) -> None:
    if report.violation is not None:
        for number, step in enumerate(report.violation.steps, start=1):
            sys.stdout.write(f"{number:4} {step}\n")
    sys.stdout.write(report.sentence() + "\n")
    sys.stdout.write(
        f"{report.sites:,} states of single nodes; {report.worked_out:,} steps of the machines, "
        f"all others were known from before\n"
    )


if __name__ == "__main__":
    sys.exit(main())
