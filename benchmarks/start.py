"""How long a person waits: for `--help`, and until the router serves, with and without parsers.

Bytecode is kept from one start to the next, as it is where pip has installed the router, whatever
`PYTHONDONTWRITEBYTECODE` says here: without it, half of a start is compiling.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import ROOT, Measurement
from benchmarks.rounds import interleave
from benchmarks.server import serving

WAYS: dict[str, tuple[float, tuple[str, ...]]] = {  # what is aimed at, in seconds; and the flags
    "without parsers": (2.0, ("--tool-call-parser", "none", "--reasoning-parser", "none")),
    "with parsers": (3.0, ("--tool-call-parser", "qwen25", "--reasoning-parser", "qwen3")),
    "with parsers that it detects": (
        3.0,
        ("--tool-call-parser", "auto", "--reasoning-parser", "auto"),
    ),
}
HELP_AIM_S = 0.3
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """Seconds on the clock: they depend on the machine, and on what else it does."""
    with tempfile.TemporaryDirectory() as bytecode:  # written by the rounds that warm up
        return _measured(checkpoint, size, _environment(bytecode))


def _measured(checkpoint: Path, size: Size, environment: Mapping[str, str]) -> list[Measurement]:
    given = ("--hf-checkpoint", str(checkpoint))
    sides: dict[str, Callable[[], float]] = {"help": lambda: _help_s(environment)}
    for way, (_, flags) in WAYS.items():
        sides[way] = lambda flags=flags: _ready_s(environment, *given, *flags)  # type: ignore[misc]
    rounds = interleave(sides, size.rounds)
    detail = f"median of {size.rounds} rounds"
    return [
        Measurement("start: --help", rounds.cost("help"), "s", HELP_AIM_S, detail),
        *(
            Measurement(f"start: until it serves, {way}", rounds.cost(way), "s", aim, detail)
            for way, (aim, _) in WAYS.items()
        ),
    ]


def _environment(bytecode: str) -> dict[str, str]:
    """Ours, with bytecode in its own folder."""
    return {**os.environ, _NO_BYTECODE: "", "PYTHONPYCACHEPREFIX": bytecode}  # "" is like unset


def _help_s(environment: Mapping[str, str]) -> float:
    command = [sys.executable, "-m", "slime_router", "--help"]
    start_s = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start_s


def _ready_s(environment: Mapping[str, str], *flags: str) -> float:
    start_s = time.perf_counter()
    with serving("slime_router", *flags, environment=environment):  # it listens when it can answer
        return time.perf_counter() - start_s
