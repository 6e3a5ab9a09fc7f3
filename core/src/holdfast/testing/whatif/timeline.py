"""The picture of what losses did: one bar for each loss and volume, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from holdfast.testing.whatif.rehearsal import Told

_COLOURS = {
    "read-write": "#4c9f70",
    "read-only": "#e0a030",
    "suspended": "#8a6fb0",
    "unavailable": "#c0392b",
}
WIDTH, LEFT, ROW = 960, 260, 26
_TICKS = 6


def draw(title: str, losses: Sequence[Told]) -> str:
    """Return an SVG document.

    The bar's colour is what a consumer may do; the dark line below it is drawn while at most one copy
    is up, so that one more loss would lose writes.
    """
    until = max([span.end for told in losses for span in told.spans] or [1.0])
    scale = (WIDTH - LEFT - 20) / until
    height = 90 + ROW * len(losses)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
    ]
    for at, (word, colour) in enumerate(_COLOURS.items()):
        left = 12 + at * 120
        parts.append(f'<rect x="{left}" y="34" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + 17}" y="45">{word}</text>')
    parts.append('<rect x="492" y="42" width="12" height="4" fill="#222222"/>')
    parts.append('<text x="509" y="45">at most one copy up</text>')
    for row, told in enumerate(losses):
        y = 62 + row * ROW
        label = f"{told.volume}: without {' + '.join(told.lost)}"
        parts.append(f'<text x="12" y="{y + 13}">{escape(label[:40])}</text>')
        for span in told.spans:
            x, width = LEFT + span.start * scale, max(0.5, (span.end - span.start) * scale)
            colour = _COLOURS[span.access]
            hint = f"{span.access}, {span.copies} copies, {span.start:.1f} to {span.end:.1f} s"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="15" fill="{colour}">'
                f"<title>{hint}</title></rect>"
            )
            if span.copies <= 1:
                parts.append(
                    f'<rect x="{x:.1f}" y="{y + 16}" width="{width:.1f}" height="4" fill="#222222"/>'
                )
    foot = height - 12
    for tick in range(_TICKS + 1):
        second = until * tick / _TICKS
        x = LEFT + second * scale
        parts.append(f'<text x="{x:.0f}" y="{foot}" text-anchor="middle">{second:.0f} s</text>')
    return "\n".join([*parts, "</svg>", ""])
