"""A chart of a few lines as SVG, upwards by powers of ten: enough for a page of figures, and no library to draw."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 110, 20, 50
COLORS = ("#1b6ca8", "#c4501b", "#2e7d32", "#7b3fa0")
LEAST = 0.1
"""Smaller values are drawn as this one: a logarithm has no zero."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points across and up, in order, under one name."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(lines: Sequence[Line], *, across: str, up: str) -> str:
    """Draw lines with their names at their ends; `across` and `up` say what the axes are."""
    xs = sorted({x for line in lines for x, _ in line.points})
    ys = [max(y, LEAST) for line in lines for _, y in line.points]
    low, high = floor(log10(min(ys))), max(ceil(log10(max(ys))), floor(log10(min(ys))) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        along = (x - xs[0]) / (xs[-1] - xs[0])
        above = (log10(max(y, LEAST)) - low) / (high - low)
        return LEFT + along * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - above * (HEIGHT - TOP - BOTTOM)

    parts = [_words(WIDTH / 2, HEIGHT - 12, across, "middle"), _words(LEFT, 14, up)]
    for power in range(low, high + 1):
        _, y = at(xs[0], 10.0**power)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ccc"/>')
        parts.append(_words(LEFT - 8, y + 4, f"{10.0**power:g}", "end"))
    parts += [_words(at(x, 1)[0], HEIGHT - BOTTOM + 18, f"{x:g}", "middle") for x in xs]
    for line, color in zip(lines, COLORS, strict=False):
        places = [at(x, y) for x, y in line.points]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(_words(places[-1][0] + 8, places[-1][1] + 4, line.name, color=color))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="13">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _words(x: float, y: float, text: str, anchor: str = "start", color: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
