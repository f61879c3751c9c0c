"""The environments of the Python clients: `python -m tests.clients.environment` makes them.

`python/NAME.txt` says exactly what is in one. Each lies in `.cache/clients/python-NAME/`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.venv import Environment, make_missing

REQUIREMENTS = Path(__file__).resolve().parent / "python"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "clients"
ENVIRONMENTS = {
    path.stem: Environment(
        path.stem, CACHE / f"python-{path.stem}", path, "python -m tests.clients.environment"
    )
    for path in sorted(REQUIREMENTS.glob("*.txt"))
}


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return ENVIRONMENTS[name].python


if __name__ == "__main__":
    sys.exit(make_missing([*ENVIRONMENTS.values()]))
