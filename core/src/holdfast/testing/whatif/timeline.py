"""The picture of what losses did: for each loss one bar for each volume that it met, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from holdfast.testing.whatif.rehearsal import Span, Told

_WHOLE, _LESS, _DARK = "#3a8f63", "#a9d6bd", "#222222"
_COLOURS = {"read-only": "#e0a030", "suspended": "#8a6fb0", "unavailable": "#c0392b"}
_KEY = (
    ("all copies", _WHOLE),
    ("fewer copies", _LESS),
    ("read-only", _COLOURS["read-only"]),
    ("suspended", _COLOURS["suspended"]),
    ("writes wait", _COLOURS["unavailable"]),
)
WIDTH, LEFT, RIGHT, TOP = 960, 190, 40, 84
ROW, GAP, BAR = 26, 34, 15
_NAME_LETTERS = 24
_LEAST = 2.0
"""How wide a wait is drawn at the least, so that seconds are seen beside an hour."""


def draw(title: str, losses: Sequence[Told], *, back_s: float | None) -> str:
    """Return an SVG document.

    The bar's colour is what a consumer may do; the dark line below it is drawn while at most one copy
    is up, so that one more loss would lose writes. Losses that met no copy of a volume are left out.

    Args:
        title: Stands above it.
        losses: In the order in which they are drawn.
        back_s: When lost nodes are back; None: never.
    """
    hurt = [told for told in losses if told.copies_lost]
    until = max([told.spans[-1].end for told in hurt if told.spans] or [1.0])
    scale = (WIDTH - LEFT - RIGHT) / until
    groups = [list(group) for _, group in groupby(hurt, key=lambda told: told.lost)]
    height = TOP + sum(GAP + ROW * len(group) for group in groups) + 40
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="26" font-size="17">{escape(title)}</text>',
        *_key(),
        *_axis(until, scale, height, back_s),
    ]
    y = TOP
    for group in groups:
        called = escape(f"without {group[0].without}")
        parts.append(f'<text x="12" y="{y + 18}" font-weight="bold">{called}</text>')
        y += GAP - 6
        for told in group:
            parts += _row(told, y, until, scale)
            y += ROW
        y += 6
    return "\n".join([*parts, "</svg>", ""])


def _key() -> Iterator[str]:
    for at, (word, colour) in enumerate(_KEY):
        left = 12 + at * 112
        yield _bar(left, 42, 12, 12, colour)
        yield f'<text x="{left + 17}" y="53">{word}</text>'
    left = 12 + len(_KEY) * 112
    yield _bar(left, 48, 12, 4, _DARK)
    yield f'<text x="{left + 17}" y="53">at most one copy up</text>'


def _axis(until: float, scale: float, height: int, back_s: float | None) -> Iterator[str]:
    foot = height - 30
    step = _step(until)
    for tick in range(int(until / step) + 1):
        x = LEFT + tick * step * scale
        yield f'<path d="M{x:.1f} {TOP - 8}V{foot}" stroke="#e4e4e4"/>'
        yield f'<text x="{x:.0f}" y="{height - 12}" text-anchor="middle">{tick * step:g} s</text>'
    if back_s is not None and back_s < until:
        x = LEFT + back_s * scale
        yield f'<path d="M{x:.1f} {TOP - 4}V{foot}" stroke="#888888" stroke-dasharray="4 3"/>'
        yield f'<text x="{x:.0f}" y="{TOP - 8}" text-anchor="middle" fill="#666666">back</text>'


def _step(until: float) -> float:
    """Return a round number of seconds, of which four to ten make the axis."""
    step = 1.0
    for factor in (2.0, 2.5, 2.0) * 6:
        if until / step <= 10:
            break
        step *= factor
    return step


def _row(told: Told, y: int, until: float, scale: float) -> Iterator[str]:
    name = told.volume
    if len(name) > _NAME_LETTERS:
        name = f"{name[: _NAME_LETTERS - 1]}…"
    yield f'<text x="24" y="{y + 12}">{escape(name)}</text>'
    spans = list(told.spans)
    for at, span in enumerate(spans):
        # Nothing changes any more behind the last moment that was watched.
        end = until if at == len(spans) - 1 else span.end
        x, width = LEFT + span.start * scale, max(0.5, (end - span.start) * scale)
        if span.access == "unavailable":
            width = max(_LEAST, width)
        hint = f"{span.access}, {span.copies} copies, {span.start:.1f} to {span.end:.1f} s"
        yield _bar(x, y, width, BAR, _colour(told, span), f"<title>{escape(hint)}</title>")
        if span.copies <= 1 < told.copies:
            yield _bar(x, y + BAR + 1, width, 4, _DARK)


def _colour(told: Told, span: Span) -> str:
    return _COLOURS.get(span.access, _WHOLE if span.copies >= told.copies else _LESS)


def _bar(x: float, y: int, width: float, height: int, colour: str, inside: str = "") -> str:
    box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{colour}"'
    return f"<rect {box}>{inside}</rect>" if inside else f"<rect {box}/>"
