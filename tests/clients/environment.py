"""The environments of the Python clients: `python -m tests.clients.environment` makes them.

`python/NAME.txt` says exactly what is in one. Each lies in `.cache/clients/python-NAME/`, and its
stamp is written last: without it, an environment is made anew.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "python"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "clients"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
STAMP = "made-from"  # holds the hash of what was installed
UV = "uv==0.13.8"  # pip takes minutes for what it installs in seconds
PIP = ("-m", "pip", "install", "-qq", "--disable-pip-version-check")
UV_PIP = ("-m", "uv", "pip", "install", "--quiet")
ALL = ("--no-deps", "-r")  # the requirements name everything
INSTALL_TIMEOUT_S = 600.0


class NotMade(Exception):
    """An environment is not there, or could not be made; one line."""


def python(name: str) -> Path:
    """The interpreter of an environment."""
    if not is_made(name):
        raise NotMade(
            f"{_directory(name)} is not there: run `python -m tests.clients.environment` first"
        )
    return _python(name)


def is_made(name: str) -> bool:
    """Whether all that is asked for now is there."""
    stamp = _directory(name) / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _key(name)


def make(name: str) -> None:
    """Make one environment anew."""
    directory = _directory(name)
    shutil.rmtree(directory, ignore_errors=True)
    _run(name, [sys.executable, "-m", "venv", str(directory)])
    interpreter = str(_python(name))
    requirements = str(_requirements(name))
    try:
        _run(name, [interpreter, *PIP, UV])
        _run(name, [interpreter, *UV_PIP, "--python", interpreter, *ALL, requirements])
    except NotMade:  # uv asks the index itself, whatever pip was told of others
        _run(name, [interpreter, *PIP, *ALL, requirements])
    (directory / STAMP).write_text(_key(name), encoding="utf-8")


def _directory(name: str) -> Path:
    return CACHE / f"python-{name}"


def _python(name: str) -> Path:
    return _directory(name) / "bin" / "python"


def _requirements(name: str) -> Path:
    return REQUIREMENTS / f"{name}.txt"


def _key(name: str) -> str:
    made_from = (sys.version, UV, str(_directory(name)), _requirements(name).read_text("utf-8"))
    return hashlib.sha256(repr(made_from).encode()).hexdigest()


def _run(name: str, command: Sequence[str]) -> None:
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as exc:
        raise NotMade(f"{name}: more than {INSTALL_TIMEOUT_S:.0f} s") from exc
    except subprocess.CalledProcessError as exc:
        said = " ".join((exc.stderr or exc.stdout).split())
        raise NotMade(f"{name}: `{' '.join(command[1:4])}` failed: {said[-500:]}") from exc


def main() -> int:
    """Make what is missing."""
    try:
        for name in NAMES:
            if not is_made(name):
                sys.stdout.write(f"making the clients' environment {name!r}\n")
                sys.stdout.flush()
                make(name)
    except NotMade as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
