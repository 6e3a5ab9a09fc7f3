"""The NBD frontend alone, over volumes in memory, beside nbdkit's memory plugin on the same machine.

    python -m benchmarks.nbd_frontend [--seconds 3] [--rounds 3] [--only holdfast]

fio's nbd engine drives both in turns over TCP; each figure is the median of the rounds, so that a
disturbance hits both. Prints requests per second, median and 99th percentile latency, and the ratio.
Needs fio and nbdkit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.peers import free_port, is_open, wait_for

ROOT = Path(__file__).parent.parent
SIZE = "256M"


@attrs.frozen
class Load:
    """One fio run."""

    kind: str
    block: str
    depth: int

    def __str__(self) -> str:
        """Return it as the table's first column."""
        return f"{self.block} {self.kind} depth {self.depth}"


LOADS = [
    *(Load(kind, "4k", depth) for kind in ("randwrite", "randread") for depth in (1, 16, 32)),
    *(Load(kind, "64k", 8) for kind in ("randwrite", "randread")),
    *(Load(kind, "1m", 4) for kind in ("randwrite", "randread")),
]


@attrs.frozen
class Figures:
    """What fio measured."""

    per_second: float
    median_us: float
    p99_us: float


@contextmanager
def holdfast() -> Iterator[str]:
    """Serve a memory volume with the frontend and yield its URI."""
    paths = [str(ROOT / "core" / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "nbd_server.py"), "--answers-at-once", f"db={SIZE}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"nbd://{process.stdout.readline().strip()}/db"
        finally:
            process.stdin.close()


@contextmanager
def nbdkit() -> Iterator[str]:
    """Serve nbdkit's memory plugin and yield its URI."""
    port = free_port()
    command = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "memory", SIZE]
    with subprocess.Popen(command) as process:
        try:
            wait_for(lambda: is_open(port), 5, "nbdkit to listen")
            yield f"nbd://127.0.0.1:{port}"
        finally:
            process.terminate()


SERVERS = {"holdfast": holdfast, "nbdkit": nbdkit}


def fill(uri: str) -> None:
    """Write everything once, so that no run measures the first touch of memory."""
    subprocess.run(
        [
            *("fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", f"--size={SIZE}"),
            *("--rw=write", "--bs=1m", "--iodepth=4"),
        ],
        capture_output=True,
        check=True,
    )


def fio(uri: str, load: Load, seconds: float) -> Figures:
    """Run one load and return what fio says of it."""
    done = subprocess.run(
        [
            *("fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", f"--size={SIZE}"),
            *(f"--rw={load.kind}", f"--bs={load.block}", f"--iodepth={load.depth}"),
            *("--time_based", f"--runtime={seconds}", "--output-format=json", "--randrepeat=1"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    side = job["write" if "write" in load.kind else "read"]
    percentiles = side["clat_ns"]["percentile"]
    return Figures(side["iops"], percentiles["50.000000"] / 1000, percentiles["99.000000"] / 1000)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="per run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=[*SERVERS], help="run just one of the servers")
    chosen = parser.parse_args()
    names = [chosen.only] if chosen.only else list(SERVERS)
    print(f"{'':24}" + "".join(f"{name:>12}/s    p50 us    p99 us" for name in names))
    for load in LOADS:
        measured: dict[str, list[Figures]] = {name: [] for name in names}
        for _ in range(chosen.rounds):
            for name in names:
                with SERVERS[name]() as uri:
                    fill(uri)
                    measured[name].append(fio(uri, load, chosen.seconds))
        line = f"{load!s:24}"
        for name in names:
            runs = measured[name]
            line += f"{statistics.median(r.per_second for r in runs):14,.0f}"
            line += f"{statistics.median(r.median_us for r in runs):10,.0f}"
            line += f"{statistics.median(r.p99_us for r in runs):10,.0f}"
        if len(names) == len(SERVERS):
            ours, theirs = (
                statistics.median(r.per_second for r in measured[name]) for name in names
            )
            line += f"   {ours / theirs:.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
