"""What reading from the copy on the consumer's node saves: `python -m benchmarks.local_reads`.

The same random reads go through the primary's node, through a replica's node to the primary, and
through a replica's node with `read_from = local`, in turn, so that the machine's mood is the same for
all three. All nodes share one machine: a network between them would add its own time to the second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
from tests.harness.cluster import RunningCluster

from benchmarks.jobs import JOBS, Figures, prefill, run
from benchmarks.peers import Server
from benchmarks.summary import finish

VOLUME = "db"
WAYS = {"at the primary": "primary", "to the primary": "primary", "from the own copy": "local"}
"""How reads go, to the setting for it."""
SIZE = 256 << 20


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local_reads")
    parser.add_argument("--rounds", type=int, default=3, help="how often each (%(default)s)")
    parser.add_argument("--runtime", type=int, default=3, help="seconds for each job (%(default)s)")
    parser.add_argument("--jobs", default="randread-d1,randread-d32", help="which (%(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    chosen = parser.parse_args()
    found: dict[str, dict[str, list[Figures]]] = {}
    shm = Path("/dev/shm")  # noqa: S108 - a memory file system is what is meant.
    with (
        tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder,
        RunningCluster(Path(folder) / "cluster", nodes=2) as cluster,
    ):
        cluster.create(VOLUME, str(SIZE), replicas=1)
        cluster.wait_healthy(VOLUME)
        pids = tuple(cluster.pid(name) for name in cluster.names)
        near, far = cluster.primary(VOLUME), cluster.replicas(VOLUME)[0]
        prefill(Server(cluster.url(VOLUME, near), pids, copies=2), SIZE, "random")
        for _ in range(chosen.rounds):
            for way, setting in WAYS.items():
                cluster.do("volume", "set", VOLUME, "--read-from", setting)
                node = near if way == "at the primary" else far
                server = Server(cluster.url(VOLUME, node), pids, copies=2)
                for name in chosen.jobs.split(","):
                    figures = run(JOBS[name], server, SIZE, chosen.runtime, "random")
                    found.setdefault(name, {}).setdefault(way, []).append(figures)
    told: dict[str, Any] = {}
    for name, ways in found.items():
        for way, runs in ways.items():
            middle = {
                field: statistics.median(getattr(each, field) for each in runs)
                for field in ("iops", "p50_us", "p99_us", "server_cpu_us", "foreign_percent")
            }
            told[f"{name}, {way}"] = middle | {"runs": [attrs.asdict(each) for each in runs]}
            sys.stdout.write(
                f"{name:14} {way:18} {middle['iops']:8.0f} IOPS, p50 {middle['p50_us']:6.0f} us, "
                f"p99 {middle['p99_us']:7.0f} us, nodes {middle['server_cpu_us']:5.1f} us for each, "
                f"foreign {middle['foreign_percent']:.0f} %\n"
            )
    finish(told, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
