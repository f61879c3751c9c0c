"""A report: what was measured, what is aimed at, and on what machine; as a table or as JSON."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure. `aim` is the most it should be; None where it only informs."""

    name: str
    value: float  # NaN where it could not be measured; the detail says why
    unit: str  # "x" is a ratio of two things measured in the same run
    aim: float | None
    detail: str  # what the figure is based on, and how often it was repeated
    failed: bool = False  # the benchmark broke off; the detail says why

    @property
    def verdict(self) -> str:
        """`ok`, `over`, `failed`, or `-` where nothing is aimed at or measured."""
        if self.failed:
            return "failed"
        if self.aim is None or math.isnan(self.value):
            return "-"
        return "ok" if self.value <= self.aim else "over"


def failure(name: str, error: Exception) -> Measurement:
    """A line in place of what a benchmark would have found, and the same on standard error."""
    sys.stderr.write(f"{name}: {error}\n")
    return Measurement(name, math.nan, "", None, str(error), failed=True)


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def headline() -> str:
    """The first line of the table."""
    return "commit {commit}, Python {python}, {cpus} CPUs".format(**machine())


def table(measurements: Sequence[Measurement]) -> str:
    """One line for each figure, its detail indented below."""
    head = ("name", "measured", "aim", "")
    rows = [(m.name, figure(m.value, m.unit), aim(m), m.verdict) for m in measurements]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(4)]
    lines = [_line(head, widths)]
    for row, measurement in zip(rows, measurements, strict=True):
        lines += [_line(row, widths), f"    {measurement.detail}"]
    return "\n".join(lines)


def to_json(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """The whole report as a JSON object."""
    figures = [{**asdict(m), "verdict": m.verdict} for m in measurements]
    return {**machine(), "measurements": figures}


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, measured, aim, verdict = row
    cells = (name.ljust(widths[0]), measured.rjust(widths[1]), aim.rjust(widths[2]), verdict)
    return "  ".join(cells).rstrip()


def figure(value: float, unit: str) -> str:
    """A value as the table shows it."""
    if math.isnan(value):
        return "none"
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number}{unit}" if unit == "x" else f"{number} {unit}"


def aim(measurement: Measurement) -> str:
    """What is aimed at, as the table shows it."""
    return "-" if measurement.aim is None else f"<= {figure(measurement.aim, measurement.unit)}"


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return f"{commit} with changes" if _git("status", "--porcelain") else commit
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()
