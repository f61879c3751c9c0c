"""The environment of the frameworks: `python -m tests.frameworks.environment` makes it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.venv import Environment, make_missing

FRAMEWORKS = Environment(
    "frameworks",
    Path(__file__).resolve().parents[2] / ".cache" / "frameworks",
    Path(__file__).resolve().parent / "requirements.txt",
    "python -m tests.frameworks.environment",
    by_pip=("torch",),
)

if __name__ == "__main__":
    sys.exit(make_missing([FRAMEWORKS]))
