"""How long an application pauses when nodes fail, with default settings: `python -m benchmarks.faults`.

Each fault is done under a writer at depth 16 that checks everything it reads, on a fresh cluster of four
nodes, through the node that has no copy. Prints the pauses and whether all was right; a seed with it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.harness.cluster import RunningCluster
from tests.harness.faults import Fault, frozen, through

from benchmarks.cluster import TRANSPORTS

VOLUME = "db"
FROZEN_S = 20.0
GOALS_S = {"primary-killed": 6.0, "replica-killed": 2.0, "primary-frozen": 6.0}
"""The longest pause that is promised."""


def _primary(cluster: RunningCluster) -> str:
    return cluster.primary(VOLUME)


def _replica(cluster: RunningCluster) -> str:
    return cluster.replicas(VOLUME)[0]


def _killed(node: str) -> Fault:
    return lambda cluster, _: cluster.kill(node)


def _frozen(node: str) -> Fault:
    def fault(cluster: RunningCluster, _: str) -> None:
        with frozen(cluster, node):
            time.sleep(FROZEN_S)

    return fault


def _stopped(node: str) -> Fault:
    return lambda cluster, _: cluster.stop(node)


FAULTS: dict[str, tuple[Callable[[RunningCluster], str], Callable[[str], Fault]]] = {
    "primary-killed": (_primary, _killed),
    "replica-killed": (_replica, _killed),
    "primary-frozen": (_primary, _frozen),
    "replica-frozen": (_replica, _frozen),
    "primary-stopped": (_primary, _stopped),
}
"""Who, and what is done to it."""


def measure(
    name: str, *, lead_s: float, after_s: float, size_mib: int, seed: int | None, transport: str
) -> str:
    """Do one fault on a fresh cluster and return what to tell of it."""
    who, what = FAULTS[name]

    def repair(cluster: RunningCluster, _: str) -> None:
        if cluster.node(victim).pid is None:
            cluster.start(victim)

    with (
        tempfile.TemporaryDirectory(prefix="holdfast-faults-") as folder,
        RunningCluster(Path(folder) / "cluster", nodes=4, config=TRANSPORTS[transport]) as cluster,
    ):
        cluster.create(VOLUME, f"{size_mib}MiB")
        victim = who(cluster)
        try:
            story = through(
                cluster,
                VOLUME,
                what(victim),
                writing_at=cluster.bystanders(VOLUME)[0],
                blocks=size_mib * 256,
                lead_s=lead_s,
                after_s=after_s,
                seed=seed,
                repair=repair,
            )
        except Exception as error:  # noqa: BLE001 - the other faults are measured all the same.
            cluster.show_logs()
            return f"FAILED: {type(error).__name__}: {error}"
    goal = GOALS_S.get(name)
    pause_s = story.outcome.longest_pause_s
    verdict = "all right" if story.is_good else "WRONG"
    if goal is not None:
        verdict += f"; goal {goal:g} s {'reached' if pause_s <= goal else 'MISSED'}"
    return f"{verdict}: {story}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description="Measure an application's pauses when nodes fail.",
    )
    add = parser.add_argument
    add("faults", nargs="*", metavar="FAULT", help=f"which of {', '.join(FAULTS)} (all)")
    add("--lead", type=float, default=10.0, help="seconds of writing before (%(default)s)")
    add("--after", type=float, default=20.0, help="seconds of writing after (%(default)s)")
    add("--size", type=int, default=256, help="of the volume, in MiB (%(default)s)")
    add("--seed", type=int, help="of the writer (a new one)")
    add("--rounds", type=int, default=1, help="how often each (%(default)s)")
    add("--transport", choices=TRANSPORTS, default="tcp", help="between nodes (%(default)s)")
    chosen = parser.parse_args()
    strangers = [name for name in chosen.faults if name not in FAULTS]
    if strangers:
        parser.error(f"{', '.join(strangers)}: not one of {', '.join(FAULTS)}")
    for name in (chosen.faults or list(FAULTS)) * chosen.rounds:
        told = measure(
            name,
            lead_s=chosen.lead,
            after_s=chosen.after,
            size_mib=chosen.size,
            seed=chosen.seed,
            transport=chosen.transport,
        )
        print(f"{name}: {told}", flush=True)


if __name__ == "__main__":
    main()
