"""How fast a copy is rebuilt, and what that leaves to applications: `python -m benchmarks.rebuild`.

A volume of two copies is filled, wholly or with islands of 4 KiB between holes of 4 KiB. Then one
copy is taken out for good, again and again, and the time is noted from then until a new copy on
another node is in sync; once with nobody else at work, and once under 4 KiB random writes at depth 4,
whose rate is compared with the same writes before. The copies are compared at the end, and the new
one must take no more room than the primary's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from tests.harness.cluster import RunningCluster
from tests.harness.waiting import wait_until

from benchmarks import machine
from benchmarks.peers import PeerError
from benchmarks.summary import finish, goal

VOLUME = "db"
MIB = 1 << 20
GOALS_MIB_S = {"islands": 150.0, "full": 400.0}
KEPT_PERCENT = 60.0
DEPTH = 4
LAYOUTS = {"full": ("--rw=write", "--bs=1m"), "islands": ("--rw=write:4k", "--bs=4k")}
"""How fio fills the volume; `write:4k` leaves a hole of 4 KiB behind each block."""
BASELINE_S = 5.0
"""How long foreground writes are measured before each rebuild."""


@attrs.define
class Foreground:
    """Random writes of 4 KiB that go on until stopped, and how many were answered when."""

    process: subprocess.Popen[bytes]
    log: Path

    def answered(self) -> list[tuple[float, int]]:
        """Return (Unix seconds, answers in the 100 ms before) so far; the last ones may be missing."""
        points = []
        for path in self.log.parent.glob(f"{self.log.name}_iops*.log"):
            for line in path.read_text().splitlines():
                at, rate, *_ = line.split(",")
                points.append((int(at) / 1000, int(rate)))
        return sorted(points)

    def rate(self, begin: float, end: float) -> float:
        """Return the mean writes a second between two moments in Unix seconds."""
        rates = [rate for at, rate in self.answered() if begin + 0.1 <= at <= end]
        return statistics.fmean(rates) if rates else 0.0


@contextmanager
def foreground(uri: str, size: int, folder: Path, *, depth: int = DEPTH) -> Iterator[Foreground]:
    """Run the foreground writes while the context lasts; its figures may be read afterwards."""
    log = Path(tempfile.mkdtemp(dir=folder)) / "fg"
    command = [
        *("fio", "--name=fg", "--ioengine=nbd", f"--uri={uri}", f"--size={size}", "--thread"),
        *("--rw=randwrite", "--bs=4k", f"--iodepth={depth}", "--time_based", "--runtime=3600"),
        *("--norandommap", "--random_generator=tausworthe64", "--output-format=json"),
        *(f"--write_iops_log={log}", "--log_avg_msec=100", "--log_unix_epoch=1"),
        f"--output={log}.json",
    ]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        yield Foreground(process, log)
    finally:
        process.send_signal(2)
        process.wait(30)


@attrs.frozen
class Rebuild:
    """One rebuild."""

    seconds: float
    """From the command until the new copy was in sync."""
    sync_seconds: float
    """Of these, from the beginning of the sync."""
    data_mib: float
    """What the volume holds."""
    cpu_s: float
    """Processor time of all nodes meanwhile."""
    began_at: float
    ended_at: float
    """Unix seconds."""

    @property
    def mib_per_s(self) -> float:
        """Data rebuilt a second, over the whole time."""
        return self.data_mib / self.seconds


def data_file(cluster: RunningCluster, node: str, volume_id: str) -> Path:
    """Return the file with a copy's bytes."""
    return next(cluster.node(node).config.parent.glob(f"data/**/{volume_id}/data"))


def fill(uri: str, size: int, layout: str) -> None:
    """Fill the volume."""
    command = [
        *("fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", f"--size={size}", "--thread"),
        *("--iodepth=16", "--end_fsync=1", "--output-format=json", *LAYOUTS[layout]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/tmp")  # noqa: S108
    if done.returncode:
        raise PeerError(f"fio failed: {done.stderr[-400:]}")


def rebuild(cluster: RunningCluster, data_mib: float) -> Rebuild:
    """Take the replica out and wait until another one is in sync."""
    victim = cluster.replicas(VOLUME)[0]
    pids = [cluster.pid(name) for name in cluster.names]
    client = cluster.node(cluster.primary(VOLUME)).client()
    cpu = machine.cpu_s(pids)
    began, began_at = time.monotonic(), time.time()
    client.evict(VOLUME, victim)

    def in_sync() -> dict[str, Any] | None:
        copies = client.volume(VOLUME)["copies"]
        new = [c for c in copies if c["role"] == "replica" and c["node"] != victim]
        return new[0] if new and new[0]["state"] == "in-sync" else None

    copy = wait_until(in_sync, 600, "the new copy", every_s=0.05)
    assert copy is not None
    seconds = time.monotonic() - began
    return Rebuild(
        seconds,
        copy["sync"]["seconds"] if copy["sync"] else seconds,
        data_mib,
        machine.cpu_s(pids) - cpu,
        began_at,
        time.time(),
    )


def measure(chosen: argparse.Namespace, layout: str) -> dict[str, Any]:
    """Fill a volume in one layout and rebuild it again and again."""
    size = chosen.size * MIB
    told: dict[str, Any] = {"quiet": [], "busy": []}
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-rebuild-", dir=chosen.folder) as folder,
        RunningCluster(Path(folder) / "cluster", nodes=3) as cluster,
    ):
        volume_id = cluster.create(VOLUME, f"{chosen.size}MiB", replicas=1)["id"]
        uri = cluster.url(VOLUME, cluster.primary(VOLUME))
        fill(uri, size, layout)
        source = data_file(cluster, cluster.primary(VOLUME), volume_id)
        for _ in range(chosen.rounds):
            data_mib = source.stat().st_blocks * 512 / MIB
            one = rebuild(cluster, data_mib)
            new = data_file(cluster, cluster.replicas(VOLUME)[0], volume_id)
            taken = new.stat().st_blocks * 512 / MIB
            told["quiet"].append(attrs.asdict(one) | {"mib_per_s": one.mib_per_s, "taken": taken})
            print(
                f"{layout}: {data_mib:.0f} MiB in {one.seconds:.2f} s, {one.mib_per_s:.0f} MiB/s,"
                f" {one.cpu_s:.2f} s of processor time; the new copy takes {taken:.0f} MiB",
                flush=True,
            )
        for _ in range(chosen.rounds if chosen.busy else 0):
            told["busy"].append(busy(cluster, uri, size, source, Path(folder), layout))
        cluster.verify(VOLUME)
    return told


def busy(
    cluster: RunningCluster, uri: str, size: int, source: Path, folder: Path, layout: str
) -> dict[str, Any]:
    """Rebuild under foreground writes and return the figures of both."""
    stop = threading.Event()
    with foreground(uri, size, folder) as load:
        stop.wait(BASELINE_S + 1)
        one = rebuild(cluster, source.stat().st_blocks * 512 / MIB)
        stop.wait(1)
    before = load.rate(one.began_at - BASELINE_S, one.began_at - 0.2)
    during = load.rate(one.began_at, one.ended_at)
    kept = 100 * during / before if before else 0.0
    print(
        f"{layout} under writes: {one.data_mib:.0f} MiB in {one.seconds:.2f} s,"
        f" {one.mib_per_s:.0f} MiB/s, {one.cpu_s:.2f} s of processor time;"
        f" {during:.0f} of {before:.0f} writes/s, {kept:.0f} %",
        flush=True,
    )
    return attrs.asdict(one) | {
        "mib_per_s": one.mib_per_s,
        "writes_before": before,
        "writes_during": during,
        "kept_percent": kept,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rebuild",
        description="Rebuild a copy, alone and under writes, and tell the rates.",
    )
    add = parser.add_argument
    add("--size", type=int, default=4096, help="of the volume, in MiB (%(default)s)")
    add("--layouts", default="islands,full", help="which, with commas (%(default)s)")
    add("--rounds", type=int, default=3, help="how often each (%(default)s)")
    add("--busy", action=argparse.BooleanOptionalAction, default=True, help="also under writes")
    shm = Path("/dev/shm")  # noqa: S108 - a memory file system is what is meant.
    where = shm if shm.is_dir() else None
    add("--folder", type=Path, default=where, help="where the copies are (%(default)s)")
    add("--json", type=Path, help="write the figures there")
    chosen = parser.parse_args()
    figures: dict[str, Any] = {"size_mib": chosen.size, "folder": str(chosen.folder)}
    for layout in chosen.layouts.split(","):
        if layout not in LAYOUTS:
            parser.error(f"{layout}: not one of {', '.join(LAYOUTS)}")
        told = figures[layout] = measure(chosen, layout)
        rate = statistics.median(each["mib_per_s"] for each in told["quiet"])
        print(goal(f"{layout}, median", rate, GOALS_MIB_S[layout], "MiB/s", at_least=True))
        if told["busy"]:
            kept = statistics.median(each["kept_percent"] for each in told["busy"])
            print(goal(f"{layout}, writes kept", kept, KEPT_PERCENT, "%", at_least=True))
    finish(json.loads(json.dumps(figures)), chosen.json)


if __name__ == "__main__":
    main()
