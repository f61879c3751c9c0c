"""Numbers as people read them, and tables that all look alike."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from rich.table import Table
from rich.text import Text


def count(value: float | None) -> str:
    """12,345; 1.2M from a million on."""
    if value is None:
        return "–"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.2f}"


def many(value: int, noun: str) -> str:
    """1 turn, 2 turns."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def listed(amounts: Mapping[str, int], *, is_json: bool) -> str:
    """How much there is of each thing: a line for each, or one JSON object."""
    if is_json:
        return orjson.dumps(amounts).decode() + "\n"
    width = max(map(len, amounts)) + 1
    lines = (f"{name.replace('_', ' '):<{width}} {n:>15,}\n" for name, n in amounts.items())
    return "".join(lines)


def percent(part: float, whole: float) -> str:
    """A part of a whole; a dash where there is no whole."""
    return f"{100 * part / whole:.1f}%" if whole else "–"


def table(title: str, *heads: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table; columns of `numbers` stand to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in heads:
        made.add_column(
            head, justify="right" if head in numbers else "left", header_style="dim", no_wrap=True
        )
    return made


def plain(text: object) -> Text:
    """A text from elsewhere: neither markup nor an escape sequence of the terminal."""
    return Text("".join(c if c.isprintable() else _mark(c) for c in str(text)))


def _mark(char: str) -> str:
    if char == "\n":
        return "⏎"
    if char == "\t":
        return "⇥"
    return char.encode("unicode_escape").decode()
