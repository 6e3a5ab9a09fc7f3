"""Compares Holdfast with its peers on this machine: `python -m benchmarks -h`.

Figures of two programs run one after the other differ by the machine's mood, so the peers take
turns: every round starts each of them afresh and runs all jobs, and medians over the rounds are told.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import machine
from benchmarks.chart import chart
from benchmarks.cluster import holdfast, holdfast_nvme
from benchmarks.gluster import gluster
from benchmarks.jobs import DATA, JOBS, TARGETS, prefill, run
from benchmarks.peers import PEERS, Peer, PeerError
from benchmarks.report import OURS, Report

ALL: dict[str, Peer] = {
    **PEERS,
    "gluster": gluster,
    OURS: holdfast,
    f"{OURS}-nvme": holdfast_nvme,
}
DEFAULT = ("nbdkit", "quorum", OURS)
MIB = 1 << 20


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run the same fio jobs against Holdfast and its peers, in turn.",
        epilog=f"Peers: {', '.join(ALL)}. Jobs: {', '.join(JOBS)}; 'targets' means "
        f"{', '.join(TARGETS)}.",
    )
    add = parser.add_argument
    add("--peers", default=",".join(DEFAULT), help="which, with commas (%(default)s)")
    add("--jobs", default=",".join(JOBS), help="which, with commas (all)")
    add("--rounds", type=int, default=3, help="how often each is measured (%(default)s)")
    add("--runtime", type=int, default=5, help="seconds for each job (%(default)s)")
    add("--size", type=int, default=1024, help="the volume, in MiB (%(default)s)")
    add("--data", choices=sorted(DATA), default="random", help="what is written (%(default)s)")
    shm = Path("/dev/shm")  # noqa: S108 - a memory file system is what is meant.
    where = shm if shm.is_dir() else None
    add("--folder", type=Path, default=where, help="where the copies are (%(default)s)")
    add("--json", type=Path, help="write all figures there")
    add("--chart", type=Path, help="draw the rates there, as SVG")
    add("--compare", type=Path, help="a file that an earlier run wrote with --json")
    chosen = parser.parse_args()
    chosen.peers = _listed(parser, chosen.peers, list(ALL))
    chosen.jobs = _listed(parser, chosen.jobs.replace("targets", ",".join(TARGETS)), list(JOBS))
    return chosen


def _listed(parser: argparse.ArgumentParser, text: str, known: list[str]) -> list[str]:
    words = text.split(",")
    strangers = [word for word in words if word not in known]
    if strangers:
        parser.error(f"{', '.join(strangers)}: not one of {', '.join(known)}")
    return words


def measure(peer: str, chosen: argparse.Namespace, report: Report) -> None:
    """Measure all jobs on one peer, once."""
    size = chosen.size * MIB
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=chosen.folder) as folder:
        try:
            with ALL[peer](Path(folder), size) as server:
                prefill(server, size, chosen.data)
                for name in chosen.jobs:
                    try:
                        figures = run(JOBS[name], server, size, chosen.runtime, chosen.data)
                    except PeerError as error:
                        report.failures[f"{name} on {peer}"] = str(error)
                        continue
                    report.add(peer, name, figures)
                    print(
                        f"  {peer:10} {name:17} {figures.iops:8.0f}/s {figures.mb_per_s:7.0f} MB/s"
                        f"  p50 {figures.p50_us:6.0f} us  servers {figures.server_cpu_us:5.0f} us"
                        f"  foreign load {figures.foreign_percent:2.0f} %",
                        file=sys.stderr,
                        flush=True,
                    )
        except PeerError as error:
            report.failures[peer] = str(error)


def main() -> None:
    """Measure and print."""
    chosen = arguments()
    about = machine.describe() | {
        "data": chosen.data,
        "folder": str(chosen.folder or tempfile.gettempdir()),
        "rounds": str(chosen.rounds),
        "runtime": f"{chosen.runtime} s",
    }
    report = Report(about)
    for number in range(1, chosen.rounds + 1):
        print(f"Round {number} of {chosen.rounds}", file=sys.stderr, flush=True)
        for peer in chosen.peers:
            measure(peer, chosen, report)
    if chosen.json is not None:
        report.save(chosen.json)
    if chosen.chart is not None:
        chosen.chart.write_text(chart(report), encoding="utf-8")
    print(report.text(None if chosen.compare is None else Report.load(chosen.compare)))


if __name__ == "__main__":
    main()
