"""Plants deliberate bugs into the group machines and looks for the seed that shows each of them.

A simulator is worth what it catches. Each bug (`bugs_*.py`) breaks one rule by replacing one name of
the code; this module applies it, runs worlds until an invariant is violated, and takes it away again.
`python -m tests.simulation.planting` looks for all of them from the first seed on, prints what caught
which, and keeps the seeds in `caught.json`, where the test and the documentation begin.

It knows nothing of the rules that the bugs break, and refuses a bug that no longer fits the code: a
name that is gone, or a patch that raises instead of misbehaving, is an error and never a catch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from holdfast.testing.simulation.faults import Fault
from holdfast.testing.simulation.runner import Outcome, run_seed
from holdfast.testing.simulation.world import Config
from holdfast.units import NodeName, VolumeId

SEEDS_MAX = 400
"""A bug that hides longer than this counts as missed."""
CAUGHT = Path(__file__).parent / "caught.json"
Patch = Callable[[Any, str, Any], None]
Step = tuple[float, str, str, float, float]
"""Seconds, kind, node, duration, amount. A kind that ends in 2 is between the primary and the node."""


class Misfit(Exception):  # noqa: N818 (the bug does not fit; that is its name)
    """A deliberate bug no longer fits the code that it is planted into."""


@frozen
class Bug:
    """One deliberate bug, and the world in which it is looked for."""

    name: str
    sentence: str
    plant: Callable[[Patch], None]
    shape: Mapping[str, Any] = field(factory=dict)
    """What the world is, where the worlds of plain seeds would take too long to show the bug."""
    steps: tuple[Step, ...] = ()

    @property
    def directed(self) -> bool:
        """Whether it has a world of its own."""
        return bool(self.steps)

    def schedule(self) -> list[Fault]:
        """Return the faults of its own world."""
        faults = []
        for number, (time, kind, which, duration, amount) in enumerate(self.steps):
            nodes = ("@primary", which) if kind.endswith("2") else (which,)
            names = tuple(NodeName(n) for n in nodes if n)
            plain = kind.removesuffix("2")
            faults.append(Fault(number, time, plain, names, duration, amount, VolumeId("v1")))
        return faults

    def run(self, seed: int) -> Outcome:
        """Run one of the worlds in which the bug is looked for, as the code is now."""
        if not self.directed:
            return run_seed(seed)
        config = Config(seed=seed, **{"faults_s": 22.0, **self.shape})
        return run_seed(seed, config=config, schedule=self.schedule())


@frozen
class Catch:
    """What showed a bug."""

    seed: int
    by: str
    """The invariant that was violated."""


BUGS: dict[str, Bug] = {}
"""By name, in the order of their modules."""


def bug(*steps: Step, **shape: Any) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a bug under the sentence in its docstring; `steps` and `shape` are its own world."""

    def registered(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        assert plant.__doc__, plant
        name = plant.__name__
        assert name not in BUGS, name
        BUGS[name] = Bug(name, plant.__doc__.strip().rstrip("."), plant, shape, steps)
        return plant

    return registered


@contextmanager
def planted(mistake: Bug) -> Iterator[None]:
    """Plant one bug for as long as the block runs.

    Raises:
        Misfit: A name that the bug replaces is gone.
    """
    undo: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, attribute: str, value: Any) -> None:
        # Of the owner itself: what it inherits or merely could have is not the rule that is meant.
        if attribute not in vars(owner):
            raise Misfit(f"{mistake.name} replaces {owner.__name__}.{attribute}, which is gone.")
        undo.append((owner, attribute, vars(owner)[attribute]))
        setattr(owner, attribute, value)

    try:
        mistake.plant(patch)
        if not undo:
            raise Misfit(f"{mistake.name} replaces nothing.")
        yield
    finally:
        for owner, attribute, value in reversed(undo):
            setattr(owner, attribute, value)


def verdict_of(mistake: Bug, outcome: Outcome) -> str | None:
    """Return the invariant that an outcome violates, or None.

    Raises:
        Misfit: The world broke on something else than a rule: the patch does not fit the code.
    """
    violation = outcome.violation
    if violation is None:
        return None
    cause = violation.__cause__
    if violation.invariant == "crash" and not isinstance(cause, AssertionError):
        raise Misfit(f"{mistake.name} raises instead of misbehaving: {violation}") from cause
    return "assertion" if violation.invariant == "crash" else violation.invariant


def look(mistake: Bug, seeds: Sequence[int]) -> Catch | None:
    """Return what shows the bug first; None: none of the seeds does."""
    with planted(mistake):
        for seed in seeds:
            found = verdict_of(mistake, mistake.run(seed))
            if found is not None:
                return Catch(seed, found)
    return None


def kept() -> dict[str, Catch]:
    """Return what caught which bug when the whole list was last searched."""
    raw = json.loads(CAUGHT.read_text(encoding="utf-8"))
    return {name: Catch(**catch) for name, catch in raw.items()}


def every_bug() -> Mapping[str, Bug]:
    """Return all bugs; the modules that define them register them."""
    from tests.simulation import bugs_answers, bugs_group, bugs_reading, bugs_sync  # noqa: F401

    return BUGS


def main(arguments: Sequence[str] | None = None) -> int:
    """Search for bugs from the first seed on; return 1 when one got away."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.planting")
    parser.add_argument("names", nargs="*", help="the bugs to look for; all, unless named")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="how many seeds to try")
    options = parser.parse_args(arguments)
    bugs = every_bug()
    caught = kept() if CAUGHT.exists() else {}
    missed = 0
    for name in options.names or bugs:
        found = look(bugs[name], range(1, options.seeds + 1))
        caught.pop(name, None)
        if found is None:
            missed += 1
            told = "nothing"
        else:
            caught[name] = found
            told = f"{found.by} at seed {found.seed}"
        sys.stdout.write(f"{name}: {told}\n")
        sys.stdout.flush()
    rows = {n: {"seed": caught[n].seed, "by": caught[n].by} for n in bugs if n in caught}
    CAUGHT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(missed > 0)


if __name__ == "__main__":
    # Under its own name, or the bugs would register themselves with another module.
    from tests.simulation import planting

    sys.exit(planting.main())
