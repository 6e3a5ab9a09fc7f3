"""Draws a report's rates as bars beside each other, in SVG: for pages, and for eyes."""

from __future__ import annotations

from html import escape

from benchmarks.jobs import JOBS
from benchmarks.report import OURS, Report

SVG = "http://www.w3.org/2000/svg"
WIDTH = 860
LEFT = 150
BAR = 14
GAP = 12
COLOURS = ("#9aa5b1", "#c3a6d8", "#e3b879", "#8fbf9f", "#b8b8b8")
OUR_COLOUR = "#1f6feb"


def chart(report: Report) -> str:
    """Return the chart: one group for each job, its bars relative to the fastest of the group."""
    peers = list(report.figures)
    jobs = [job for job in JOBS if any(job in each for each in report.figures.values())]
    parts: list[str] = []
    top = 34
    for job in jobs:
        rates = {peer: rate for peer in peers if (rate := report.main(peer, job))}
        most = max(rates.values(), default=1.0)
        middle = top + len(rates) * BAR / 2 + 4
        parts.append(
            f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end">{escape(job)}</text>'
        )
        for peer, rate in rates.items():
            width = max(1.0, (WIDTH - LEFT - 190) * rate / most)
            unit = "MB/s" if JOBS[job].is_bandwidth else "/s"
            parts.append(
                f'<rect x="{LEFT}" y="{top}" width="{width:.0f}" height="{BAR - 2}"'
                f' fill="{_colour(peer, peers)}"/>'
                f'<text x="{LEFT + width + 6:.0f}" y="{top + BAR - 4}">'
                f"{escape(peer)} {rate:,.0f} {unit}</text>"
            )
            top += BAR
        top += GAP
    title = "Requests a second, or MB/s for large blocks; longer is better"
    return "\n".join(
        [
            f'<svg xmlns="{SVG}" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="11">',
            f'<rect width="{WIDTH}" height="{top}" fill="white"/>',
            f'<text x="{LEFT}" y="20" font-size="13">{title}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _colour(peer: str, peers: list[str]) -> str:
    if peer == OURS:
        return OUR_COLOUR
    return COLOURS[[each for each in peers if each != OURS].index(peer) % len(COLOURS)]
