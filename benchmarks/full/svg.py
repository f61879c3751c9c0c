"""Plots as SVG: lines over a linear axis, on a logarithmic one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

Lines = Mapping[str, Sequence[tuple[float, float]]]

WIDTH, HEIGHT = 760, 400
LEFT, TOP, RIGHT, BOTTOM = 64, 40, 200, 48  # margins; the names of the lines stand on the right
COLOURS = ("#c0392b", "#7f8c8d", "#2471a3", "#117a65", "#b9770e", "#6c3483", "#1b2631")
_STYLE = "font-family='sans-serif' font-size='12' fill='#222'"


class _Scale:
    """From values to places in the picture."""

    def __init__(self, lines: Lines) -> None:
        points = [point for line in lines.values() for point in line]
        self.x_most = max(x for x, _ in points)
        heights = [y for _, y in points if y > 0]
        self.low = math.floor(math.log10(min(heights)))
        self.high = max(math.ceil(math.log10(max(heights))), self.low + 1)

    def x(self, value: float) -> float:
        return LEFT + value / self.x_most * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (math.log10(max(value, 10.0**self.low)) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def drawn(title: str, x_name: str, y_name: str, lines: Lines) -> str:
    """The whole picture. `lines` has at least one point above zero."""
    scale = _Scale(lines)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}'>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>",
        _text(LEFT, 22, title, "start", "font-weight='bold'"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_name),
        _text(LEFT - 8, 22, y_name, "end"),
        *_grid(scale),
        *_curves(lines, scale),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _grid(scale: _Scale) -> Iterator[str]:
    right = WIDTH - RIGHT
    for power in range(scale.low, scale.high + 1):
        y = scale.y(10.0**power)
        yield f"<path d='M{LEFT} {y:.1f}H{right}' stroke='#ddd'/>"
        yield _text(LEFT - 8, y + 4, f"{10.0**power:,g}", "end")
    for part in range(6):
        value = scale.x_most * part / 5
        yield _text(scale.x(value), HEIGHT - BOTTOM + 18, f"{value:,.0f}")


def _curves(lines: Lines, scale: _Scale) -> Iterator[str]:
    by_height = sorted(lines, key=lambda name: -lines[name][-1][1])
    for row, name in enumerate(by_height):
        colour = COLOURS[list(lines).index(name) % len(COLOURS)]
        places = _places((scale.x(x), scale.y(y)) for x, y in lines[name])
        yield f"<polyline points='{places}' fill='none' stroke='{colour}' stroke-width='2'/>"
        y = TOP + 14 + 20 * row
        x = WIDTH - RIGHT + 14
        yield f"<path d='M{x} {y}h20' stroke='{colour}' stroke-width='3'/>"
        yield _text(x + 28, y + 4, name, "start")


def _places(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'"
    return f"<text {place} {_STYLE} {more}>{escape(words)}</text>"
