"""What a cluster costs that nobody uses: `python -m benchmarks.idle`.

Four nodes with ten volumes by default; processor time over half a minute, and memory at its end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.harness.cluster import RunningCluster

from benchmarks.machine import cpu_s, family, rss_bytes

CPU_PERCENT_GOAL = 3.0
RSS_MIB_GOAL = 80.0
SETTLE_S = 5.0
"""Between the last volume and the measurement: what follows a creation is not idleness."""


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
        for number in range(chosen.volumes):
            cluster.create(f"v{number}", "64MiB", replicas=chosen.replicas)
        time.sleep(SETTLE_S)
        nodes = {name: family([cluster.pid(name)]) for name in cluster.names}
        before = {name: cpu_s(pids) for name, pids in nodes.items()}
        began = time.monotonic()
        time.sleep(chosen.seconds)
        wall_s = time.monotonic() - began
        percents = {
            name: 100 * (cpu_s(pids) - before[name]) / wall_s for name, pids in nodes.items()
        }
        sizes = {name: rss_bytes(pids) / (1 << 20) for name, pids in nodes.items()}
    for name in nodes:
        print(f"{name}: {percents[name]:.2f} % of one core, {sizes[name]:.1f} MiB resident")
    total, largest = sum(percents.values()), max(sizes.values())
    what = f"{chosen.nodes} nodes with {chosen.volumes} volumes, idle for {wall_s:.0f} s"
    print(
        f"{what}: {total:.2f} % of one core in all (goal: under {CPU_PERCENT_GOAL:g}, "
        f"{'reached' if total < CPU_PERCENT_GOAL else 'MISSED'}), at most {largest:.1f} MiB "
        f"for a node (goal: under {RSS_MIB_GOAL:g}, "
        f"{'reached' if largest < RSS_MIB_GOAL else 'MISSED'})"
    )


if __name__ == "__main__":
    main()
