"""Keeps runs that once failed, so that they are run again for ever.

What a seed stands for changes whenever the drawing of worlds or faults does. So a kept run is not its
seed alone but everything that was drawn: the shape of the world and every fault, one run on a line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from holdfast.testing.simulation.faults import Fault
from holdfast.testing.simulation.runner import Outcome, run_seed
from holdfast.testing.simulation.world import Config
from holdfast.units import NodeName, VolumeId


@frozen
class Kept:
    """One run that once failed."""

    found: str
    """What it found, for people."""
    config: Config
    faults: tuple[Fault, ...]

    def run(self) -> Outcome:
        """Run it again."""
        return run_seed(self.config.seed, config=self.config, schedule=self.faults)

    def line(self) -> str:
        """Return the line that stands for it in a file."""
        shape = {
            name: value
            for name, value in attrs.asdict(self.config, recurse=False).items()
            if isinstance(value, int | float | str)
        }
        faults = [
            [round(f.time, 6), f.kind, list(f.nodes), round(f.duration, 6), f.amount, f.volume]
            for f in self.faults
        ]
        return json.dumps({"found": self.found, "shape": shape, "faults": faults})

    @classmethod
    def from_line(cls, line: str) -> Kept:
        """Return the run that a line stands for."""
        raw: dict[str, Any] = json.loads(line)
        faults = tuple(
            Fault(number, time, kind, tuple(map(NodeName, nodes)), lasts, amount, VolumeId(volume))
            for number, (time, kind, nodes, lasts, amount, volume) in enumerate(raw["faults"])
        )
        return cls(raw["found"], Config(**raw["shape"]), faults)


def read_kept(path: Path) -> list[Kept]:
    """Return the runs of a file."""
    return [Kept.from_line(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kept_of(outcome: Outcome) -> Kept:
    """Return a run that has failed as what is kept of it."""
    assert outcome.violation is not None
    found = str(outcome.violation).splitlines()[0]
    return Kept(found, outcome.config, outcome.faults)
