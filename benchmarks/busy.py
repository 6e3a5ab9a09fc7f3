"""What memory a node takes for one large volume in use: `python -m benchmarks.busy`.

Random writes of 4 KiB over all of a thin volume touch as much of its hashes, intent and maps as there
are writes; the resident memory of each node is told before, after each part, and at rest.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from tests.harness.cluster import RunningCluster

from benchmarks.machine import rss_bytes
from benchmarks.summary import finish, goal
from holdfast.units import MIB

GOAL_MIB = 300.0
PARTS = 3
SETTLE_S = 20.0
"""How long the hashes of what was written are refreshed before the last look."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.busy", description="Measure a node's memory for a large volume."
    )
    add = parser.add_argument
    add("--size", default="1TiB", help="of the volume (%(default)s)")
    add("--writes", type=int, default=60_000, help="of 4 KiB each (%(default)s)")
    add("--folder", type=Path, help="where the copies are; takes three times what is written")
    add("--json", type=Path, help="write the figures there")
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-busy-", dir=chosen.folder) as folder,
        RunningCluster(Path(folder) / "cluster", nodes=3) as cluster,
    ):
        cluster.create("db", chosen.size, replicas=2)
        uri = cluster.url("db", cluster.primary("db"))
        seen = [_sizes(cluster)]
        for part in range(PARTS):
            words = ("--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k", "--iodepth=16")
            count = (f"--number_ios={chosen.writes // PARTS}", f"--randseed={part}")
            size = (f"--size={cluster.show('db')['size']}", "--norandommap")
            subprocess.run(
                ["fio", "--name=busy", *words, *count, *size],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            seen.append(_sizes(cluster))
        time.sleep(SETTLE_S)
        seen.append(_sizes(cluster))
    moments = ("before", *(f"part {part + 1}" for part in range(PARTS)), "at rest")
    for moment, sizes in zip(moments, seen, strict=True):
        print(f"{moment}: " + ", ".join(f"{name} {mib:.0f} MiB" for name, mib in sizes.items()))
    largest = max(max(sizes.values()) for sizes in seen)
    print(goal("the largest node", largest, GOAL_MIB, "MiB"))
    finish({"moments": moments, "mib": seen}, chosen.json)


def _sizes(cluster: RunningCluster) -> dict[str, float]:
    return {name: rss_bytes([cluster.pid(name)]) / MIB for name in cluster.names}


if __name__ == "__main__":
    main()
