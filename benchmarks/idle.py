"""What a cluster costs that nobody uses: `python -m benchmarks.idle`.

Four nodes with ten volumes by default; processor time over half a minute, and memory at its end. With
`--nodes 3 --volumes 1000` each node holds a copy of each of a thousand volumes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import attrs
from tests.harness.cluster import RunningCluster

from benchmarks.machine import cpu_s, family, rss_bytes
from holdfast.units import MIB

MANY = 1000
"""From so many volumes on, the goals are those of a node that is full of them."""
SETTLE_S = 20.0
"""Between the last volume and the measurement: what follows a creation is not idleness."""


@attrs.frozen
class Goals:
    """What must not be passed."""

    cpu_percent: float
    """Of one core; `over` says whose."""
    over: str
    rss_mib: float
    """Of each node."""


FEW_GOALS = Goals(cpu_percent=3.0, over="all nodes together", rss_mib=80.0)
MANY_GOALS = Goals(cpu_percent=5.0, over="the busiest node", rss_mib=400.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.idle", description="Measure what an idle cluster costs."
    )
    add = parser.add_argument
    add("--nodes", type=int, default=4, help="how many (%(default)s)")
    add("--volumes", type=int, default=10, help="how many (%(default)s)")
    add("--replicas", type=int, default=2, help="of each volume (%(default)s)")
    add("--seconds", type=float, default=30.0, help="how long (%(default)s)")
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-idle-") as folder,
        RunningCluster(Path(folder) / "cluster", nodes=chosen.nodes) as cluster,
    ):
        clients = [cluster.node(name).client() for name in cluster.names]
        for number in range(chosen.volumes):
            volume = {"name": f"v{number}", "size_bytes": 64 * MIB, "replicas": chosen.replicas}
            clients[number % len(clients)].request("POST", "/v1/volumes", volume)
        while any(
            v["health"] != "healthy" for v in clients[0].request("GET", "/v1/volumes")["volumes"]
        ):
            time.sleep(1.0)
        time.sleep(SETTLE_S)
        nodes = {name: family([cluster.pid(name)]) for name in cluster.names}
        before = {name: cpu_s(pids) for name, pids in nodes.items()}
        began = time.monotonic()
        time.sleep(chosen.seconds)
        wall_s = time.monotonic() - began
        percents = {
            name: 100 * (cpu_s(pids) - before[name]) / wall_s for name, pids in nodes.items()
        }
        sizes = {name: rss_bytes(pids) / MIB for name, pids in nodes.items()}
    for name in nodes:
        print(f"{name}: {percents[name]:.2f} % of one core, {sizes[name]:.1f} MiB resident")
    goals = MANY_GOALS if chosen.volumes >= MANY else FEW_GOALS
    cpu = max(percents.values()) if goals is MANY_GOALS else sum(percents.values())
    largest = max(sizes.values())
    print(
        f"{chosen.nodes} nodes with {chosen.volumes} volumes, idle for {wall_s:.0f} s: {cpu:.2f} % of "
        f"one core for {goals.over} (goal: under {goals.cpu_percent:g}, "
        f"{_said(cpu < goals.cpu_percent)}), at most {largest:.1f} MiB for a node (goal: under "
        f"{goals.rss_mib:g}, {_said(largest < goals.rss_mib)})"
    )


def _said(reached: bool) -> str:
    return "reached" if reached else "MISSED"


if __name__ == "__main__":
    main()
