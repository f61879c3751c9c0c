"""The environments of the Python clients: `python -m tests.clients.environment` makes them.

`python/NAME.txt` says exactly what is in one. Each lies in `.cache/clients/python-NAME/`, and its
stamp is written last: without it, an environment is rebuilt.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.sglang.child import ChildFailed
from tests.venv import UV, interpreter, make_venv

REQUIREMENTS = Path(__file__).resolve().parent / "python"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "clients"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
STAMP = "made-from"  # holds the hash of what was installed


class NotMade(Exception):
    """An environment is not there, or could not be made."""


def python(name: str) -> Path:
    """The interpreter of an environment."""
    if not is_made(name):
        raise NotMade(
            f"{_directory(name)} is not there: run `python -m tests.clients.environment` first"
        )
    return interpreter(_directory(name))


def is_made(name: str) -> bool:
    """Whether all that is asked for now is there."""
    stamp = _directory(name) / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _key(name)


def make(name: str) -> None:
    """Rebuild one environment."""
    directory = _directory(name)
    try:
        make_venv(name, directory, _requirements(name), log=CACHE / f"{directory.name}.log")
    except ChildFailed as exc:
        raise NotMade(str(exc)) from exc
    (directory / STAMP).write_text(_key(name), encoding="utf-8")


def _directory(name: str) -> Path:
    return CACHE / f"python-{name}"


def _requirements(name: str) -> Path:
    return REQUIREMENTS / f"{name}.txt"


def _key(name: str) -> str:
    made_from = (sys.version, UV, str(_directory(name)), _requirements(name).read_text("utf-8"))
    return hashlib.sha256(repr(made_from).encode()).hexdigest()


def main() -> int:
    """Make what is missing."""
    try:
        for name in NAMES:
            if not is_made(name):
                make(name)
    except NotMade as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
