"""Tries what power losses may leave of a copy, for a range of seeds; see the package."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tests.crash.lives import LEAN, PLAIN, THOROUGH, Life, memory
from tests.crash.mutants import LATE, MUTANTS
from tests.crash.promises import BrokenPromiseError


def kill_at_every_call() -> tuple[int, bool]:
    """Kill a fixed piece of work at each of its calls; return how many states followed, and failure."""
    states = 0
    for calls in itertools.count():
        with tempfile.TemporaryDirectory(dir=memory()) as place:
            life = Life(0, Path(place), LEAN)
            try:
                goes_on = life.run_interrupted(calls)
            except BrokenPromiseError as error:
                print(f"Killed after {calls} calls: {error}")
                return states, True
            states += life.states
        if not goes_on:
            print(f"killed at each of {calls} calls")
            return states, False
    raise AssertionError


def find_mistakes(seeds: range) -> int:
    """Tell which life shows each planted mistake; return 1 when one stays hidden."""
    hidden = 0
    for name, mutant in MUTANTS.items():
        states, found = 0, ""
        with pytest.MonkeyPatch.context() as patch:
            mutant(patch.setattr)
            for seed in seeds:
                with tempfile.TemporaryDirectory(dir=memory()) as place:
                    life = Life(seed, Path(place), PLAIN if name in LATE else LEAN)
                    try:
                        if name in LATE:
                            life.run_interrupted(seed)
                        else:
                            life.run()
                    except BrokenPromiseError:
                        found = f"call {seed}" if name in LATE else f"seed {seed}"
                states += life.states
                if found:
                    break
        hidden += not found
        print(f"{name}: {found or 'NOT FOUND'}, {states:,} states", flush=True)
    return bool(hidden)


def main(arguments: list[str] | None = None) -> int:
    """Return 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many lives")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this life")
    parser.add_argument("--state", type=int, help="only this state of it")
    parser.add_argument("--lean", action="store_true", help="as thorough as the test is")
    parser.add_argument(
        "--mistakes", action="store_true", help="find every planted mistake instead"
    )
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    if options.mistakes:
        return find_mistakes(seeds)
    states = calls = broken = 0
    began = time.monotonic()
    for seed in seeds:
        with tempfile.TemporaryDirectory(dir=memory()) as place:
            life = Life(seed, Path(place), LEAN if options.lean else THOROUGH, options.state)
            try:
                life.run()
            except BrokenPromiseError as error:
                broken += 1
                print(f"Seed {seed}: {error}")
            states += life.states if options.state is None else 1
            calls += life.calls
    if options.seed is None:
        more, is_broken = kill_at_every_call()
        states += more
        broken += is_broken
    took = time.monotonic() - began
    print(
        f"{len(seeds)} lives, {calls:,} calls, {states:,} states after a power loss"
        f" in {took:.1f} s: {broken} broken."
    )
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
