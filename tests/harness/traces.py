"""Turns what a simulated group went through into a module that TLC holds against the specification."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.harness import tlc

from holdfast.testing.simulation.abstraction import CopyView, Membership, Observation
from holdfast.units import NodeName

CONFIG = """SPECIFICATION TraceSpec
CONSTANTS
    c1 = c1
    c2 = c2
    c3 = c3
    None = None
    Copies = {c1, c2, c3}
    Away = 0
    MaxWrites = 1000
    MaxFlushes = 0
    Faults = {FAULTS}
    MaxFaults = 1000
    MaxEpoch = 1000
    Clears = {TRUE, FALSE}
    MaxSessions = 0
    Least = 0
"""


class Writer:
    """Writes one run in TLA+; its nodes become `c1`, `c2` and `c3`."""

    def __init__(self, states: Sequence[Observation]) -> None:
        nodes = sorted(states[0].copies)
        self.names: Mapping[NodeName, str] = {n: f"c{i + 1}" for i, n in enumerate(nodes)}
        self.states = states

    def run(self) -> str:
        return "<<\n" + ",\n".join(self._state(state) for state in self.states) + ">>"

    def _state(self, o: Observation) -> str:
        names = self.names
        copies = " @@ ".join(f"{names[n]} :> {self._copy(c)}" for n, c in o.copies.items())
        cut = ", ".join(f"{{{names[one]}, {names[other]}}}" for one, other in o.cut)
        store = ", ".join(names[node] for node in o.store)
        read = "" if o.read is None else f"{names[o.read[0]]}, {o.read[1]}"
        return (
            f"[rec |-> {self._record(o.record)}, acked |-> {o.acked}, cut |-> {{{cut}}},"
            f" store |-> {{{store}}}, read |-> <<{read}>>, copy |-> {copies}]"
        )

    def _record(self, r: Membership) -> str:
        states = " @@ ".join(f'{self.names[n]} :> "{s}"' for n, s in r.states.items())
        suspect = ", ".join(self.names[n] for n in r.suspect)
        return (
            f"[epoch |-> {r.epoch}, primary |-> {self.names[r.primary]}, st |-> {states},"
            f' sus |-> {{{suspect}}}, access |-> "{r.access}", gen |-> {r.generation}]'
        )

    def _copy(self, c: CopyView) -> str:
        roles = ", ".join(f'"{role}"' for role in c.roles)
        view = "" if c.view is None else self._record(c.view)
        epoch = "" if c.epoch is None else str(c.epoch)
        data = "" if c.value is None else str(c.value)
        doubt = "" if c.suspects is None else str(c.suspects).upper()
        return (
            f"[role |-> <<{roles}>>, view |-> <<{view}>>, epoch |-> <<{epoch}>>,"
            f" data |-> <<{data}>>, doubt |-> <<{doubt}>>, serving |-> {str(c.serving).upper()}]"
        )


def explain(
    runs: Sequence[Sequence[Observation]], faults: Iterable[str], folder: Path
) -> tuple[list[int], tlc.Outcome]:
    """Return how many states of each run the specification explains, and what TLC said."""
    text = ",\n".join(Writer(states).run() for states in runs)
    module = f"---- MODULE Runs ----\nEXTENDS TLC\nCONSTANTS c1, c2, c3\nSeen == <<{text}>>\n====\n"
    files = {
        tlc.MODULE: tlc.specification(),
        "Trace": (tlc.SPEC / "Trace.tla").read_text(encoding="utf-8"),
        "Runs": module,
    }
    config = CONFIG.replace("FAULTS", ", ".join(f'"{kind}"' for kind in faults))
    outcome = tlc.run(files, config, folder, module="Trace", memory="2g")
    reached = [0] * len(runs)
    for number, at in re.findall(r'<<"explained", (\d+), (\d+)>>', outcome.said):
        reached[int(number) - 1] = max(reached[int(number) - 1], int(at))
    return reached, outcome
