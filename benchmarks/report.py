"""Figures as tables that can be pasted into a page, as JSON, and beside those of an earlier run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.jobs import JOBS, Figures

OURS = "holdfast"
FOREIGN_PERCENT_MAX = 15.0
QEMU = ("quorum", "mirror")
"""Taken together: the better of them counts."""
GOALS: dict[str, dict[tuple[str, ...], float]] = {
    "randwrite-d16": {("nbdkit",): 0.60, QEMU: 5.0, ("gluster",): 8.0},
    "randwrite-d1": {QEMU: 1.4, ("gluster",): 2.5},
    "randread-d32": {("nbdkit",): 1.0, QEMU: 2.0, ("gluster",): 3.0},
    "randwrite-64k-d8": {("nbdkit",): 0.35, QEMU: 2.2, ("gluster",): 4.0},
    "write-1m-d4": {("nbdkit",): 0.30, QEMU: 1.8, ("gluster",): 1.3},
    "read-1m-d4": {("nbdkit",): 0.60, QEMU: 1.3, ("gluster",): 1.3},
    "write-flush-d1": {("nbdkit",): 0.40, QEMU: 1.6, ("gluster",): 3.0},
}
"""Job to peers, and how many times the rate of the better one is aimed at."""

P50_GOALS = {"randwrite-d1": ("nbdkit", 2.4)}
"""Job to a peer, and how many times its median latency ours may be."""
CPU_GOALS_US = {"randwrite-d16": 75.0}
"""Job to the processor time that client and servers together may take for one request."""


@attrs.define
class Report:
    """All figures of one program run: by peer, by job, one for each round."""

    about: dict[str, str]
    figures: dict[str, dict[str, list[Figures]]] = attrs.field(factory=dict)
    failures: dict[str, str] = attrs.field(factory=dict)
    """Why a peer, or a job on it, could not be measured."""

    def add(self, peer: str, job: str, figures: Figures) -> None:
        """Keep one round's figures."""
        self.figures.setdefault(peer, {}).setdefault(job, []).append(figures)

    def median(self, peer: str, job: str, of: Callable[[Figures], float]) -> float | None:
        """Return the median over the rounds, or None when nothing was measured."""
        rounds = self.figures.get(peer, {}).get(job)
        return statistics.median(map(of, rounds)) if rounds else None

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(attrs.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote."""
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        figures = {
            peer: {job: [Figures(**each) for each in rounds] for job, rounds in jobs.items()}
            for peer, jobs in raw["figures"].items()
        }
        return cls(raw["about"], figures, raw["failures"])

    def text(self, earlier: Report | None = None) -> str:
        """Return the tables, in Markdown."""
        parts = [", ".join(f"{key} {value}" for key, value in self.about.items())]
        parts += [
            self._table("Requests a second, or MB/s for 64k and 1m", self._rate),
            self._table("Latency, us: p50 / p99 / p99.9", self._latency),
            self._table("Processor time for one request, us: servers + client", self._cpu),
            self._table("Resident memory of all server processes, MiB", self._memory),
        ]
        if OURS in self.figures:
            parts.append(self._table(f"{OURS}, times the peer's rate", self._ratio, skip=OURS))
        if earlier is not None:
            parts.append(self._table("Change of rate since the earlier run", self._change(earlier)))
        parts += [f"Not measured: {what}: {why}" for what, why in self.failures.items()]
        parts += self._goals()
        return "\n\n".join(part for part in parts if part)

    def _table(
        self, title: str, cell: Callable[[str, str], str], *, skip: str | None = None
    ) -> str:
        jobs = [job for job in JOBS if any(job in each for each in self.figures.values())]
        peers = [peer for peer in self.figures if peer != skip]
        if not jobs or not peers:
            return ""
        head = ["peer", *jobs]
        rows = [[peer, *(cell(peer, job) for job in jobs)] for peer in peers]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

        def line(row: Sequence[str]) -> str:
            first = row[0].ljust(widths[0])
            rest = (word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))
            return f"| {first} | {' | '.join(rest)} |"

        rule = f"|{'-' * (widths[0] + 2)}|{''.join('-' * (w + 1) + ':|' for w in widths[1:])}"
        return "\n".join([f"**{title}**", "", line(head), rule, *map(line, rows)])

    def main(self, peer: str, job: str) -> float | None:
        """Return the rate that counts: MB/s for large blocks, requests a second for small ones."""
        if JOBS[job].is_bandwidth:
            return self.median(peer, job, lambda f: f.mb_per_s)
        return self.median(peer, job, lambda f: f.iops)

    def _rate(self, peer: str, job: str) -> str:
        value = self.main(peer, job)
        if value is None:
            return "-"
        foreign = self.median(peer, job, lambda f: f.foreign_percent) or 0.0
        unit = " MB/s" if JOBS[job].is_bandwidth else ""
        return f"{value:.0f}{unit}{'~' if foreign > FOREIGN_PERCENT_MAX else ''}"

    def _latency(self, peer: str, job: str) -> str:
        p50 = self.median(peer, job, lambda f: f.p50_us)
        p99 = self.median(peer, job, lambda f: f.p99_us)
        p999 = self.median(peer, job, lambda f: f.p999_us)
        if p50 is None or p99 is None or p999 is None:
            return "-"
        return f"{p50:.0f} / {p99:.0f} / {p999:.0f}"

    def _cpu(self, peer: str, job: str) -> str:
        server = self.median(peer, job, lambda f: f.server_cpu_us)
        client = self.median(peer, job, lambda f: f.client_cpu_us)
        return "-" if server is None or client is None else f"{server:.0f} + {client:.0f}"

    def _memory(self, peer: str, job: str) -> str:
        value = self.median(peer, job, lambda f: f.rss_mib)
        return "-" if value is None else f"{value:.0f}"

    def _ratio(self, peer: str, job: str) -> str:
        ours, theirs = self.main(OURS, job), self.main(peer, job)
        return "-" if ours is None or not theirs else f"{ours / theirs:.2f}"

    def _change(self, earlier: Report) -> Callable[[str, str], str]:
        def cell(peer: str, job: str) -> str:
            now, before = self.main(peer, job), earlier.main(peer, job)
            return "-" if now is None or not before else f"{100 * (now / before - 1):+.0f} %"

        return cell

    def _goals(self) -> list[str]:
        rows = []
        for job, goals in GOALS.items():
            ours = self.main(OURS, job)
            for peers, goal in goals.items():
                theirs = [rate for peer in peers if (rate := self.main(peer, job))]
                if ours is not None and theirs:
                    times = ours / max(theirs)
                    verdict = "reached" if times >= goal else "MISSED"
                    rows.append(
                        f"| {job} | {' or '.join(peers)} | {goal:g} | {times:.2f} | {verdict} |"
                    )
        for job, (peer, goal) in P50_GOALS.items():
            ours, theirs_us = (self.median(each, job, lambda f: f.p50_us) for each in (OURS, peer))
            if ours is not None and theirs_us:
                rows.append(_at_most(job, f"p50 of {peer}, at most", goal, ours / theirs_us))
        for job, goal in CPU_GOALS_US.items():
            spent = self.median(OURS, job, lambda f: f.server_cpu_us + f.client_cpu_us)
            if spent is not None:
                rows.append(_at_most(job, "us of processor time, at most", goal, spent))
        head = [
            "**Goals**",
            "",
            "| job | times the rate of | goal | here | |",
            "|---|---|--:|--:|---|",
        ]
        return ["\n".join([*head, *rows])] if rows else []


def _at_most(job: str, what: str, goal: float, value: float) -> str:
    verdict = "reached" if value <= goal else "MISSED"
    return f"| {job} | {what} | {goal:g} | {value:.2f} | {verdict} |"
