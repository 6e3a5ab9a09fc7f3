"""What work in the background costs those who write: `python -m benchmarks.background`.

Writes of 4 KiB at depth 16 to random places are counted on one cluster that keeps the hashes of cold
chunks fresh, as nodes do by default, and on one that does not, in turn. On the former, a verification
and a scrub are run under the same writes, and the rates during and around them are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.harness.cluster import RunningCluster

from benchmarks import machine
from benchmarks.rebuild import MIB, fill, foreground
from benchmarks.summary import finish, goal

VOLUME = "db"
DEPTH = 16
REFRESH_COST_PERCENT = 5.0
"""What is promised."""
SETTINGS = {"refreshed": "", "not refreshed": "[scrub]\nhash_mib_s = 0\n"}


def one_cluster(chosen: argparse.Namespace, config: str, *, checks: bool) -> dict[str, Any]:
    """Write on a cluster with these settings, and return rate, cost, and what checks cost."""
    told: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-background-", dir=chosen.folder) as folder,
        RunningCluster(Path(folder) / "cluster", nodes=3, config=config) as cluster,
    ):
        cluster.create(VOLUME, f"{chosen.size}MiB", replicas=1)
        uri, size = cluster.url(VOLUME, cluster.primary(VOLUME)), chosen.size * MIB
        fill(uri, size, "full")
        pids = [cluster.pid(name) for name in cluster.names]
        with foreground(uri, size, Path(folder), depth=DEPTH) as load:
            time.sleep(2)
            cpu, began, began_at = machine.cpu_s(pids), time.monotonic(), time.time()
            time.sleep(chosen.seconds)
            cpu_s, wall_s = machine.cpu_s(pids) - cpu, time.monotonic() - began
            ended_at = time.time()
            moments = {}
            for command in ("verify", "scrub") if checks else ():
                start = time.time()
                cluster.do("volume", command, VOLUME, timeout_s=600)
                moments[command] = (start, time.time())
                time.sleep(3)
        told["writes_per_s"] = load.rate(began_at, ended_at)
        told["cpu_us_per_write"] = 1e6 * cpu_s / max(1.0, told["writes_per_s"] * wall_s)
        for command, (start, end) in moments.items():
            around = statistics.fmean((load.rate(start - 3, start), load.rate(end, end + 3)))
            kept = 100 * load.rate(start, end) / around if around else 0.0
            told[command] = {"seconds": end - start, "kept_percent": kept}
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.background",
        description="Tell what hash refresh, verification and scrub cost those who write.",
    )
    add = parser.add_argument
    add("--size", type=int, default=512, help="of the volume, in MiB (%(default)s)")
    add("--seconds", type=int, default=15, help="of writing for each figure (%(default)s)")
    add("--rounds", type=int, default=3, help="how often each (%(default)s)")
    shm = Path("/dev/shm")  # noqa: S108 - a memory file system is what is meant.
    where = shm if shm.is_dir() else None
    add("--folder", type=Path, default=where, help="where the copies are (%(default)s)")
    add("--json", type=Path, help="write the figures there")
    chosen = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for _ in range(chosen.rounds):
        for name, config in SETTINGS.items():
            one = one_cluster(chosen, config, checks=not config)
            runs[name].append(one)
            print(
                f"{name:13} {one['writes_per_s']:6.0f} writes/s,"
                f" {one['cpu_us_per_write']:4.0f} us of the nodes' processor time for each"
                + "".join(
                    f"; {command} {one[command]['seconds']:.1f} s,"
                    f" {one[command]['kept_percent']:.0f} % of the writes"
                    for command in ("verify", "scrub")
                    if command in one
                ),
                flush=True,
            )
    rates = {n: statistics.median(r["writes_per_s"] for r in each) for n, each in runs.items()}
    costs = {n: statistics.median(r["cpu_us_per_write"] for r in each) for n, each in runs.items()}
    slower = 100 * (1 - rates["refreshed"] / rates["not refreshed"])
    dearer = 100 * (costs["refreshed"] / costs["not refreshed"] - 1)
    print(goal("hash refresh, throughput lost", slower, REFRESH_COST_PERCENT, "%"))
    print(f"hash refresh, processor time for a write: {dearer:+.1f} %")
    finish({"runs": runs, "lost_percent": slower, "dearer_percent": dearer}, chosen.json)


if __name__ == "__main__":
    main()
