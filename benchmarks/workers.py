"""What several workers are worth: `python -m benchmarks.workers`.

Four volumes of one node are written and read by fio at the same time, with one worker and with two,
in turn on the same machine. fio needs a part of the cores itself, and the volumes have no replicas
unless asked for, so that the node's own processes are what the cores are for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from tests.harness.cluster import RunningCluster

from benchmarks.machine import rss_bytes
from benchmarks.summary import finish

SIZE_MIB = 256
MODES = {"randwrite": "4 KiB random writes", "randread": "4 KiB random reads"}


def measure(
    cluster: RunningCluster, names: list[str], mode: str, depth: int, runtime_s: int
) -> float:
    """Return how many requests a second all volumes together answer."""
    words = [
        *("fio", "--ioengine=nbd", f"--rw={mode}", "--bs=4k", f"--iodepth={depth}"),
        *("--time_based", f"--runtime={runtime_s}", "--ramp_time=1", "--output-format=json"),
    ]
    for name in names:
        uri = cluster.url(name, cluster.primary(name))
        words += [f"--name={name}", f"--uri={uri}", f"--size={SIZE_MIB}m"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return sum(float(job[kind]["iops"]) for job in report["jobs"] for kind in ("read", "write"))


def run(
    folder: Path, workers: int, *, replicas: int, depth: int, runtime_s: int
) -> dict[str, float]:
    """Return the figures of one cluster whose nodes have so many workers."""
    config = f"[node]\nworkers = {workers}\n"
    with RunningCluster(folder / f"w{workers}", nodes=replicas + 1, config=config) as cluster:
        names = [f"v{number}" for number in range(4)]
        for name in names:
            cluster.create(name, f"{SIZE_MIB}MiB", "--node", "n1", replicas=replicas)
        described = cluster.node("n1").client().node()
        pids = [described["pid"], *(worker["pid"] for worker in described.get("workers", ()))]
        figures = {"idle_mib": sum(rss_bytes([pid]) for pid in pids) / 2**20}
        for mode in MODES:
            figures[mode] = measure(cluster, names, mode, depth, runtime_s)
        return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers",
        description="Four volumes of one node, with one worker and with more, in turn.",
    )
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[1, 2], help="numbers to compare (%(default)s)")
    add("--rounds", type=int, default=3, help="how often each (%(default)s)")
    add("--replicas", type=int, default=0, help="copies beside the primary (%(default)s)")
    add("--depth", type=int, default=16, help="requests under way, each volume (%(default)s)")
    add("--runtime", type=int, default=5, help="seconds of each load (%(default)s)")
    add("--json", type=Path, help="write the figures there")
    chosen = parser.parse_args()
    found: dict[int, list[dict[str, float]]] = {count: [] for count in chosen.workers}
    with tempfile.TemporaryDirectory(prefix="holdfast-workers-") as folder:
        for _ in range(chosen.rounds):
            for count, rounds in found.items():
                rounds.append(
                    run(
                        Path(folder),
                        count,
                        replicas=chosen.replicas,
                        depth=chosen.depth,
                        runtime_s=chosen.runtime,
                    )
                )
    medians = {
        count: {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
        for count, rounds in found.items()
    }
    base = medians[chosen.workers[0]]
    for count, figures in medians.items():
        print(f"workers = {count}: {figures['idle_mib']:.0f} MiB resident before any load")
        for mode, sentence in MODES.items():
            print(f"  {sentence}: {figures[mode]:,.0f}/s, {figures[mode] / base[mode]:.2f} x")
    finish({"medians": medians, "rounds": found}, chosen.json)


if __name__ == "__main__":
    main()
