"""What a measurement costs this machine, read from /proc: processor time, memory, foreign load."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import attrs

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def describe() -> dict[str, str]:
    """Return what must be known of the machine to compare figures with others."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "commit": commit.stdout.strip() or "unknown",
    }


def _stat(pid: int) -> list[str]:
    """Return the fields of `/proc/PID/stat` behind the name, or none when it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def family(pids: Iterable[int]) -> set[int]:
    """Return these processes and all their descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields:
            parents[int(entry.name)] = int(fields[1])
    found = set(pids)
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def cpu_s(pids: Iterable[int]) -> float:
    """Return the processor time, user and system, that these processes have used, in seconds."""
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        # utime, stime, and those of children that have ended.
        ticks += sum(map(int, fields[11:15])) if fields else 0
    return ticks / TICKS_PER_S


def rss_bytes(pids: Iterable[int]) -> int:
    """Return the resident memory of these processes; pages that they share count for each."""
    return sum(int(fields[21]) * PAGE_BYTES for pid in pids if (fields := _stat(pid)))


@attrs.frozen
class Load:
    """The whole machine's processor time since it started, in seconds."""

    busy_s: float
    idle_s: float

    @classmethod
    def now(cls) -> Load:
        """Return the present counters."""
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, idle, iowait, irq, softirq, *_ = (int(w) / TICKS_PER_S for w in words)
        return cls(busy_s=user + nice + system + irq + softirq, idle_s=idle + iowait)

    def since(self, before: Load) -> Load:
        """Return what was used between `before` and this."""
        return Load(self.busy_s - before.busy_s, self.idle_s - before.idle_s)
