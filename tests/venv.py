"""A virtual environment that holds exactly what a requirements file names."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.sglang.child import Child, ChildFailed

UV = "uv==0.13.8"  # installs in seconds what takes pip minutes
INSTALL_TIMEOUT_S = 900.0
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
UV_PIP = ("-m", "uv", "pip", "install", "--quiet")


def interpreter(directory: Path) -> Path:
    """The interpreter of the environment in `directory`."""
    return directory / "bin" / "python"


def make_venv(
    name: str, directory: Path, requirements: Path, *, log: Path, by_pip: Sequence[str] = ()
) -> None:
    """Make the environment `name` in `directory` again, of `requirements` and nothing they ask for.

    `by_pip` are those of them whose build is chosen by pip's own settings, which uv does not read.

    Raises:
        ChildFailed: a step failed; the message ends with its log.
    """
    python = str(interpreter(directory))

    def run(doing: str, *command: str) -> None:
        with Child(name, command, log=log) as child:
            child.finish(doing, timeout_s=INSTALL_TIMEOUT_S)

    shutil.rmtree(directory, ignore_errors=True)
    run("making an environment", sys.executable, "-m", "venv", str(directory))
    run("installing uv", python, *PIP, UV)
    if by_pip:
        pinned = ("--no-deps", "--constraint", str(requirements), *by_pip)
        run(f"installing {', '.join(by_pip)}", python, *PIP, *pinned)
    doing = f"installing {_count(requirements)} packages"
    wanted = ("--no-deps", "--requirement", str(requirements))
    try:
        run(doing, python, *UV_PIP, "--python", python, *wanted)
    except ChildFailed:  # uv asks the index itself, whatever pip was told of others
        run(f"{doing} with pip", python, *PIP, *wanted)


def _count(requirements: Path) -> int:
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return sum(bool(line) and not line.startswith("#") for line in lines)
