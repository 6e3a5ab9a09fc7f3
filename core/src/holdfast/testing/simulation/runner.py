"""Runs one seed to its end and says what came of it, in one line that replays it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection, Mapping, Sequence

from attrs import frozen

from holdfast.testing.simulation import faults as flt
from holdfast.testing.simulation.invariants import Violation
from holdfast.testing.simulation.world import Config, World, drawn_config


@frozen
class Outcome:
    """What came of one run."""

    config: Config
    faults: tuple[flt.Fault, ...]
    """Those that were planted."""
    violation: Violation | None
    time: float
    """Virtual seconds at the end, or at the violation."""
    events: int
    steps: int
    answered: int
    digest: str
    lines: tuple[str, ...]
    """The end of the trace."""
    read_here: int
    """Of the answered requests: reads that a replica answered on the consumer's own node."""
    took_s: float
    """Real seconds."""
    struck: Mapping[str, int]
    """How many faults of each kind have struck, and under `KIND!` how many had an effect."""

    def replay(self) -> str:
        """Return the command that replays this run."""
        line = f"python -m holdfast.testing.simulation --seed {self.config.seed}"
        if self.violation is not None:
            line += f" --until {self.time + 0.05:.1f}"
        every = flt.draw(self.config)
        if len(every) != len(self.faults):
            line += " --faults " + (",".join(str(f.number) for f in self.faults) or "none")
        return line

    def sentence(self) -> str:
        """Return one line for people."""
        if self.violation is None:
            return f"seed {self.config.seed}: no violation in {self.time:.0f} s"
        return (
            f"{str(self.violation).splitlines()[0]} at {self.time:.3f} s; replay: {self.replay()}"
        )


def run_seed(
    seed: int,
    *,
    until: float | None = None,
    keep: Collection[int] | None = None,
    config: Config | None = None,
    schedule: Sequence[flt.Fault] | None = None,
) -> Outcome:
    """Run one world until it has come to rest, or until a violation.

    Args:
        seed: Names the world.
        until: Virtual seconds to end at; None: until the world has come to rest.
        keep: Numbers of the faults to plant; None: all that the seed draws.
        config: The world's shape; None: drawn from the seed.
        schedule: Faults to plant instead of the drawn ones.
    """
    config = drawn_config(seed) if config is None else config
    faults = list(flt.draw(config) if schedule is None else schedule)
    if keep is not None:
        faults = [fault for fault in faults if fault.number in keep]
    world = World(config)
    flt.plant(world, faults)
    began = time.perf_counter()
    violation: Violation | None = None
    try:
        _run(world, until)
    except Violation as error:
        violation = error
    except Exception as error:  # noqa: BLE001 (whatever a machine raises is a finding)
        where = traceback.extract_tb(error.__traceback__)[-1]
        violation = Violation(
            "crash", f"{type(error).__name__} {error} in {where.name}, line {where.lineno}"
        )
        violation.__cause__ = error
    return Outcome(
        config,
        tuple(faults),
        violation,
        world.now,
        world.events,
        world.steps,
        world.answered,
        world.digest(),
        tuple(world.lines),
        world.read_here,
        time.perf_counter() - began,
        world.struck,
    )


def _run(world: World, until: float | None) -> None:
    config = world.config
    stages = config.calm_s + config.faults_s
    limit = float("inf") if until is None else until
    world.run(min(stages, limit))
    if world.now >= limit:
        return
    flt.heal(world)
    world.run(min(stages + config.load_after_s, limit))
    if world.now >= limit:
        return
    world.come_to_rest()
