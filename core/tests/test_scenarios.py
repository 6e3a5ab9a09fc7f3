"""The known traps of the design's section 4, each by its name, each over several seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast.testing.simulation.faults import Fault
from holdfast.testing.simulation.runner import run_seed
from holdfast.testing.simulation.world import Config
from holdfast.units import NodeName, VolumeId

V = VolumeId("v1")
Step = tuple[float, str, tuple[str, ...], float, float]
"""Seconds, kind, nodes, duration, amount."""

SCENARIOS: dict[str, Sequence[Step]] = {
    "a drop is lost between primary and record": [
        (4.0, "store-unsure", (), 6.0, 0.5),
        (4.1, "kill", ("@replica",), 5.0, 0.5),
        (6.0, "kill", ("@primary",), 2.0, 0.5),
    ],
    "primary and dropped replica return in the wrong order": [
        (4.0, "kill", ("@replica",), 9.0, 0.5),
        (7.0, "kill", ("@other",), 9.5, 0.5),
        (9.0, "kill", ("@primary",), 12.0, 0.5),
    ],
    "two losses in quick succession": [
        (4.0, "kill", ("@replica",), 6.0, 0.5),
        (4.01, "kill", ("@other",), 9.0, 0.5),
    ],
    "the primary is lost right after its replica": [
        (4.0, "power", ("@replica",), 6.0, 0.5),
        (4.2, "power", ("@primary",), 3.0, 0.5),
    ],
    "a third node resynced an absent one": [
        (4.0, "kill", ("@replica",), 4.0, 0.5),
        (6.0, "handover", ("@other",), 0.0, 0.1),
        (8.3, "kill", ("@primary",), 3.0, 0.5),
        (12.0, "handover", (), 0.0, 0.9),
    ],
    "a node is provisioned anew under its old name": [
        (4.0, "wipe", ("@replica",), 1.0, 0.5),
        (5.05, "kill", ("@replica",), 0.5, 0.5),
        (9.0, "wipe", ("@other",), 1.0, 0.5),
    ],
    "the primary hears nothing but is heard": [
        (4.0, "partition-one-way", ("@replica", "@primary"), 7.0, 0.5),
    ],
    "the primary is not heard but hears": [
        (4.0, "partition-one-way", ("@primary", "@replica"), 7.0, 0.5),
    ],
    "the primary is cut off and goes on alone": [
        (4.0, "isolate", ("@primary",), 8.0, 0.1),
        (16.0, "isolate", ("@primary",), 8.0, 0.9),
    ],
    "a wall clock jumps": [
        (4.0, "wall-jump", ("@primary",), 0.0, 0.95),
        (5.0, "wall-jump", ("@replica",), 0.0, 0.05),
        (6.0, "kill", ("@primary",), 4.0, 0.5),
    ],
    "the store is unreachable during a drop": [
        (4.0, "store-down", (), 8.0, 0.5),
        (5.0, "kill", ("@replica",), 3.0, 0.5),
        (6.0, "reset", ("@primary", "@other"), 0.0, 0.5),
    ],
    "the store is unreachable and the primary restarts": [
        (4.0, "store-down", (), 8.0, 0.5),
        (5.0, "kill", ("@primary",), 1.0, 0.5),
    ],
    "a stalled primary wakes up deposed": [
        (4.0, "pause", ("@primary",), 6.0, 0.5),
        (14.0, "pause", ("@primary",), 3.2, 0.5),
        (20.0, "pause", ("@primary",), 2.5, 0.5),
    ],
    "the primary cannot read what others have": [
        (4.0, "bad-sectors", ("@primary",), 0.0, 0.1),
        (7.0, "bad-sectors", ("@primary",), 0.0, 0.7),
        (7.0, "kill", ("@replica",), 4.0, 0.5),
        (11.5, "bad-sectors", ("@primary",), 0.0, 0.4),
        (16.0, "reset", ("@primary", "@other"), 0.0, 0.5),
        (16.0, "bad-sectors", ("@primary",), 0.0, 0.2),
        (18.0, "kill", ("@primary",), 4.0, 0.5),
    ],
    "sectors of a replica go bad before it becomes primary": [
        (4.0, "bad-sectors", ("@replica",), 0.0, 0.1),
        (4.2, "bad-sectors", ("@other",), 0.0, 0.6),
        (5.0, "kill", ("@primary",), 6.0, 0.5),
    ],
    "the disk of the primary stalls": [
        (4.0, "disk-stall", ("@primary",), 12.0, 0.5),
        (14.0, "disk-stall", ("@replica",), 5.0, 0.5),
    ],
    "an fsync of the primary fails": [(4.0, "fsync-error", ("@primary",), 0.0, 0.5)],
    "an fsync of the primary fails and nobody can take over in time": [
        (4.0, "store-down", (), 12.0, 0.5),
        (4.1, "fsync-error", ("@primary",), 0.0, 0.5),
        (10.0, "kill", ("@primary",), 0.5, 0.5),
    ],
    "an fsync of a replica fails": [(4.0, "fsync-error", ("@replica",), 0.0, 0.5)],
    "one disk is full": [
        (4.0, "disk-full", ("@replica",), 0.0, 0.5),
        (12.0, "disk-full", ("@primary",), 0.0, 0.5),
    ],
    "a disk stalls while another copy syncs": [
        (4.0, "kill", ("@replica",), 1.0, 0.5),
        (4.8, "disk-stall", ("@primary",), 1.5, 0.5),
    ],
    "writes and discards race a sync that is cut again and again": [
        (4.0, "kill", ("@replica",), 2.0, 0.5),
        (6.05, "reset", ("@primary", "@replica"), 0.0, 0.5),
        (6.3, "reset", ("@primary", "@replica"), 0.0, 0.5),
        (6.6, "kill", ("@primary",), 3.0, 0.5),
        (9.9, "reset", ("@primary", "@replica"), 0.0, 0.5),
    ],
    "a handover races the loss of its target": [
        (4.0, "handover", ("@replica",), 0.0, 0.1),
        (4.001, "kill", ("@replica",), 2.0, 0.5),
        (8.0, "handover", ("@replica",), 0.0, 0.1),
        (8.002, "kill", ("@primary",), 2.0, 0.5),
        (12.0, "handover", ("@replica",), 0.0, 0.1),
        (12.0, "store-unsure", (), 2.0, 0.5),
    ],
    "a fenced session comes back": [
        (4.0, "partition", ("@primary", "@replica"), 6.0, 0.5),
        (5.0, "takeover", (), 0.0, 0.5),
        (8.0, "pause", ("@primary",), 4.0, 0.5),
        (9.0, "takeover", (), 0.0, 0.5),
    ],
    "all nodes lose power during a sync": [
        (4.0, "kill", ("@replica",), 1.0, 0.5),
        (5.05, "power-all", (), 1.0, 0.3),
    ],
    "a resize races the drop of a copy that still hears": [
        (4.0, "store-slow", (), 8.0, 0.99),
        *((4.1 + 6 * at, "partition-one-way", ("@replica", "@primary"), 5.0, 0.5) for at in (0, 1)),
        *((6.3 + at * 0.1, "resize", (), 0.0, 0.9) for at in (0, 2, 4, 60, 62)),
    ],
    "a resize races a failover": [
        (4.0, "disk-stall", ("@replica",), 1.0, 0.5),
        (4.2, "resize", (), 0.0, 0.9),
        (5.0, "kill", ("@primary",), 3.0, 0.5),
        (11.0, "resize", (), 0.0, 0.4),
        (11.001, "power", ("@primary",), 3.0, 0.5),
    ],
    "a copy comes back with the epoch that it left with": [
        # DRBD: two nodes of one generation with dirty bits; the bits count, not the generation.
        (4.0, "store-slow", (), 3.0, 0.99),
        (4.05, "kill", ("@replica",), 0.4, 0.5),
        (8.0, "store-down", (), 3.0, 0.5),
        (8.05, "kill", ("@replica",), 0.4, 0.5),
        (14.0, "kill", ("@primary",), 0.05, 0.5),
    ],
    "a survivor is lost before it has reconciled": [
        # DRBD: a survivor that had not reconciled was good enough for a stale node to follow.
        (4.0, "clog", ("@primary", "@replica"), 6.0, 0.2),
        (4.6, "kill", ("@primary",), 6.0, 0.5),
        (7.55, "kill", ("@primary",), 4.0, 0.5),
        (7.7, "kill", ("@replica",), 4.0, 0.5),
        (14.0, "kill", ("@primary",), 6.0, 0.5),
        (17.1, "power", ("@primary",), 1.0, 0.5),
    ],
    "a disk is detached and attached again while the other copy is away": [
        # DRBD's quorate-data-divergence.
        (4.0, "kill", ("@replica",), 5.0, 0.5),
        (5.0, "disk-error", ("@primary",), 0.0, 0.1),
        (9.2, "disk-error", ("@replica",), 0.0, 0.8),
        (11.0, "kill", ("@primary",), 3.0, 0.5),
    ],
    "a third node syncs a copy that another had given up": [
        # DRBD: a primary suppressed its new generation because somebody else had resynced the peer.
        (4.0, "partition", ("@primary", "@replica"), 9.0, 0.5),
        (7.0, "kill", ("@primary",), 2.0, 0.5),
        (10.5, "handover", (), 0.0, 0.9),
        (12.0, "kill", ("@primary",), 5.0, 0.5),
    ],
    "an engine and its node die right after a drop": [
        # Longhorn: the drop was in memory alone for up to five seconds.
        (4.0, "partition", ("@primary", "@replica"), 5.0, 0.5),
        (6.9, "power", ("@primary",), 8.0, 0.5),
        (9.5, "reset", ("@primary", "@other"), 0.0, 0.5),
    ],
    "the store goes down together with every node": [
        # Mayastor: a power failure took etcd along.
        (4.0, "store-down", (), 7.0, 0.5),
        (4.5, "power-all", (), 1.0, 0.7),
    ],
    "a full disk cuts a sync short": [
        # Sheepdog: objects were lost when a full disk ended a recovery.
        (4.0, "wipe", ("@replica",), 0.5, 0.5),
        (4.62, "disk-full", ("@replica",), 0.0, 0.5),
        (10.0, "kill", ("@replica",), 0.5, 0.5),
        (10.7, "disk-full", ("@replica",), 0.0, 0.5),
        (11.0, "kill", ("@primary",), 4.0, 0.5),
    ],
    "every other copy stalls at once": [
        # Longhorn: all replicas time out together, and the volume is gone.
        (4.0, "disk-stall", ("@replica",), 2.0, 0.5),
        (4.0, "disk-stall", ("@other",), 2.0, 0.5),
        (14.0, "disk-stall", ("@replica",), 3.5, 0.5),
        (14.0, "disk-stall", ("@other",), 3.5, 0.5),
        (16.0, "kill", ("@primary",), 5.0, 0.5),
    ],
    "the primary restarts again and again during a sync": [
        # Mayastor: a partial rebuild needs the same target to live.
        (4.0, "kill", ("@replica",), 3.0, 0.5),
        *((7.0 + 0.9 * at, "kill", ("@primary",), 0.1, 0.5) for at in range(6)),
    ],
    "a lost copy returns while its replacement syncs and the primary dies": [
        # Longhorn: the corrupt replica was kept, the good one deleted.
        (4.0, "kill", ("@replica",), 4.0, 0.5),
        (7.2, "clog", ("@primary", "@spare"), 8.0, 0.1),
        (8.5, "kill", ("@primary",), 4.0, 0.5),
    ],
    "bytes rot on a copy that becomes primary after the scrub": [
        (4.0, "rot", ("@replica",), 0.5, 0.2),
        (4.3, "misdirected", ("@other",), 0.5, 0.7),
        (9.0, "kill", ("@primary",), 4.0, 0.5),
    ],
    "a policy changes while the volume is read-only": [
        (3.5, "policy", (), 0.0, 0.05),
        (4.0, "kill", ("@replica",), 9.0, 0.5),
        (8.0, "policy", (), 0.0, 0.9),
        (10.0, "policy", (), 0.0, 0.05),
        (11.0, "kill", ("@primary",), 3.0, 0.5),
    ],
    "a discard races a sync": [
        (4.0, "wipe", ("@replica",), 0.3, 0.5),
        (5.0, "kill", ("@replica",), 0.3, 0.5),
        (6.0, "kill", ("@other",), 0.6, 0.5),
        (6.7, "reset", ("@primary", "@other"), 0.0, 0.5),
    ],
    "an operator changes the number of replicas during a failover": [
        (4.0, "kill", ("@primary",), 3.0, 0.5),
        (4.5, "replicas", (), 0.0, 0.3),
        (9.0, "replicas", (), 0.0, 0.99),
    ],
}


def scheduled(steps: Sequence[Step]) -> list[Fault]:
    return [
        Fault(number, time, kind, tuple(NodeName(n) for n in nodes), duration, amount, V)
        for number, (time, kind, nodes, duration, amount) in enumerate(steps)
    ]


@pytest.mark.parametrize("name", SCENARIOS)
def test_known_trap(name: str) -> None:
    schedule = scheduled(SCENARIOS[name])
    for seed in range(1, 7):
        config = Config(
            seed=seed, nodes=4 if seed % 2 else 3, clients=1 + seed % 2, faults_s=24.0, think_s=0.05
        )
        outcome = run_seed(seed, config=config, schedule=schedule)
        assert outcome.violation is None, f"{outcome.sentence()}\n" + "\n".join(outcome.lines[-40:])


def test_every_known_trap_of_the_documentation_is_a_scenario() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    rows = page.partition("## Known traps")[2].partition("## ")[0].split("|---|---|\n")[1]
    named = {name for row in rows.strip().splitlines() for name in row.split("|")[2].split(";")}
    names = {name.strip() for name in named}
    assert names - SCENARIOS.keys() == {"the test of that name, over all six orders"}
    assert len(names) > 25


LOSSES: dict[str, tuple[int, Sequence[Step]]] = {
    "both copies lose power": (
        4,
        [(5.0, "power", ("@replica",), 1.0, 0.5), (5.0, "power", ("@primary",), 1.0, 0.5)],
    ),
    "an fsync of the last copy fails": (
        2,
        [(4.0, "kill", ("@replica",), 9.0, 0.5), (6.5, "fsync-error", ("@primary",), 0.0, 0.1)],
    ),
}
"""How many nodes, and what strikes them: writes are lost, and their consumer lives on elsewhere."""


@pytest.mark.parametrize("name", LOSSES)
def test_a_session_that_lives_through_the_loss_of_its_writes_flushes_no_more(name: str) -> None:
    nodes, steps = LOSSES[name]
    told = 0
    for seed in range(13, 22):
        config = Config(seed=seed, nodes=nodes, replicas=1, faults_s=12.0, think_s=0.05)
        outcome = run_seed(seed, config=config, schedule=scheduled(steps))
        assert outcome.violation is None, f"{outcome.sentence()}\n" + "\n".join(outcome.lines[-40:])
        told += any("flushes-fail" in line for line in outcome.lines)
    assert told > 2


def test_all_nodes_start_cold_in_every_order() -> None:
    names = [NodeName("n1"), NodeName("n2"), NodeName("n3")]
    for seed, order in enumerate(itertools.permutations(range(3)), start=1):
        schedule = [
            Fault(number, 8.0, "power", (name,), 1.0 + 2.7 * order[number], 0.5, V)
            for number, name in enumerate(names)
        ]
        outcome = run_seed(seed, config=Config(seed=seed, nodes=3, replicas=2), schedule=schedule)
        assert outcome.violation is None, outcome.sentence()
