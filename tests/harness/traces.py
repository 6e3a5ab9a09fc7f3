"""Turns what a simulated group went through into a module that TLC holds against the specification."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.harness import models, tlc

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
    Local = FALSE
    Least = 0
    IsTold <- NeverTold
INVARIANT Unexplained
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
        views = ", ".join(self._record(view) for view in c.views)
        doubts = ", ".join(str(doubt).upper() for doubt in c.suspects)
        return (
            f"[role |-> <<{roles}>>, view |-> <<{views}>>, epoch |-> <<{_row(c.epochs)}>>,"
            f" data |-> <<{_row(c.values)}>>, doubt |-> <<{doubts}>>, serving |-> {str(c.serving).upper()}]"
        )


def _row(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def explain(
    states: Sequence[Observation], faults: Iterable[str], folder: Path
) -> tuple[int, tlc.Outcome]:
    """Return how many of the states the specification explains, and what TLC said.

    Args:
        states: What a group went through.
        faults: The kinds of fault, in the words of the specification, that there were.
        folder: An empty folder for everything that is written.
    """
    files = {
        models.MODULE: models.specification(),
        "Trace": (models.SPEC / "Trace.tla").read_text(encoding="utf-8"),
        "Runs": "---- MODULE Runs ----\nEXTENDS TLC\nCONSTANTS c1, c2, c3\n"
        f"Seen == <<{Writer(states).run()}>>\n====\n",
    }
    config = CONFIG.replace("FAULTS", ", ".join(f'"{kind}"' for kind in faults))
    outcome = tlc.run(files, config, folder, module="Trace", memory="2g")
    explained = re.findall(r'<<"explained", 1, (\d+)>>', outcome.said)
    return max(map(int, explained), default=1 if outcome.distinct else 0), outcome
