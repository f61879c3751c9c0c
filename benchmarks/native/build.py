"""The two programs in C, compiled once for each state of their source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Literal

from benchmarks.report import ROOT

SOURCES = Path(__file__).parent
BUILT = ROOT / ".cache" / "benchmarks"
FLAGS = ("-O2", "-Wall", "-Wextra")
LIBRARIES = ("-lm",)
Program = Literal["load", "worker"]


@cache
def program(name: Program) -> Path | None:
    """Where the compiled program lies; None, after a line that says why, if gcc cannot make it."""
    gcc = shutil.which("gcc")
    if gcc is None:
        _tell(name, "gcc is not installed")
        return None
    source = SOURCES / f"{name}.c"
    text = source.read_bytes()
    built = BUILT / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}"
    if built.exists():
        return built
    BUILT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as directory:
        made = Path(directory) / name
        command = [gcc, *FLAGS, "-o", str(made), str(source), *LIBRARIES]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        if done.returncode:
            _tell(name, f"gcc cannot compile {source.name}: {_first_line(done.stderr)}")
            return None
        os.replace(made, built)
    return built


def _tell(name: Program, reason: str) -> None:
    sys.stderr.write(f"{reason}: the {name} in Python is used, which limits what is measured\n")


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "no reason given")
