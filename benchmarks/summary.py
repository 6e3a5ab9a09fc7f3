"""What the programs that time one thing share: percentiles, a histogram for people, JSON for programs.

A figure without the machine's load is worth little, so both go together.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

BAR_WIDTH = 50


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least value that `percent` of all values do not pass (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return count, least, median, 90th and 99th percentile and greatest of some values."""
    return {
        "count": len(values),
        "min": round(min(values), 6),
        "p50": round(percentile(values, 50), 6),
        "p90": round(percentile(values, 90), 6),
        "p99": round(percentile(values, 99), 6),
        "max": round(max(values), 6),
    }


def histogram(values: Sequence[float], step: float, unit: str) -> str:
    """Return one line for each `step`, from the least value to the greatest, with bars."""
    counts: dict[int, int] = {}
    for value in values:
        slot = math.floor(value / step)
        counts[slot] = counts.get(slot, 0) + 1
    most = max(counts.values())
    lines = []
    for slot in range(min(counts), max(counts) + 1):
        count = counts.get(slot, 0)
        bar = "#" * math.ceil(BAR_WIDTH * count / most)
        lines.append(f"  {slot * step:8.6g} - {(slot + 1) * step:<8.6g} {unit} {count:4} {bar}")
    return "\n".join(lines)


def goal(name: str, value: float, limit: float, unit: str, *, at_least: bool = False) -> str:
    """Return a line that says whether `value` is within its promise."""
    reached = value >= limit if at_least else value <= limit
    sign = ">=" if at_least else "<="
    verdict = "reached" if reached else "MISSED"
    return f"{name}: {value:.4g} {unit} (goal {sign} {limit:g} {unit}: {verdict})"


def finish(figures: dict[str, Any], path: Path | None) -> None:
    """Print how loaded the machine was, and write everything to `path` if there is one."""
    figures["machine"] = machine.describe()
    figures["load_average"] = os.getloadavg()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    cores = os.cpu_count()
    print(f"Load average of 1, 5 and 15 minutes: {load}, on {cores} cores.", file=sys.stderr)
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
