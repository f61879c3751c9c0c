"""Figures on a page: tables and plots from one file, so that they cannot tell different things."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from benchmarks.full.svg import drawn
from benchmarks.report import ROOT, Measurement, aim, figure

PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "docs" / "performance"
FIGURES = FOLDER / "figures.json"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def write(figures: Mapping[str, Any], page: Path = PAGE, folder: Path = FOLDER) -> None:
    """Write the figures, the plots, and the part of the page between the two marks."""
    folder.mkdir(exist_ok=True)
    (folder / FIGURES.name).write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
    for name, picture in plots(figures).items():
        (folder / name).write_text(picture)
    page.write_text(with_figures(page.read_text(), figures))


def plots(figures: Mapping[str, Any]) -> dict[str, str]:
    """The pictures by the name of their file."""
    return {
        f"{plot['name']}.svg": drawn(plot["title"], plot["x"], plot["y"], plot["lines"])
        for plot in figures["plots"]
    }


def with_figures(text: str, figures: Mapping[str, Any]) -> str:
    """The page's text with these figures in it."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n" + "\n".join(_lines(figures)) + f"\n{END}{after}"


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"Commit {figures['commit']}, Python {figures['python']}, {figures['cpus']} CPUs, "
        f"load {figures['load']:.1f} at the start."
    )
    yield ""
    yield "| what | measured | aim | | how |"
    yield "|---|---|---|---|---|"
    for each in figures["measurements"]:
        measurement = _measurement(each)
        cells = (
            measurement.name,
            figure(measurement.value, measurement.unit),
            aim(measurement),
            measurement.verdict,
            measurement.detail,
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for plot in figures["plots"]:
        yield ""
        yield f"![{plot['title']}](performance/{plot['name']}.svg)"


def _measurement(told: Mapping[str, Any]) -> Measurement:
    fields = {key: told[key] for key in ("name", "unit", "aim", "detail")}
    value = math.nan if told["value"] is None else told["value"]
    return Measurement(**fields, value=value, failed=told.get("failed", False))
