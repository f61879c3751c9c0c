"""Virtual environments that hold exactly what a requirements file names.

A stamp is written last: without it, or once the file is another one, an environment is made again.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.sglang.child import Child, ChildFailed

UV = "uv==0.13.8"  # installs in seconds what takes pip minutes
INSTALL_TIMEOUT_S = 900.0
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
UV_PIP = ("-m", "uv", "pip", "install", "--quiet")


STAMP = "made-from"  # holds the hash of what was installed


class NotMade(Exception):
    """An environment is not there, or could not be made."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment; `command` makes it. `by_pip`: see `make_venv`."""

    name: str
    directory: Path
    requirements: Path
    command: str
    by_pip: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        """Its interpreter.

        Raises:
            NotMade: it is not there.
        """
        if not self.is_made:
            raise NotMade(f"{self.directory} is not there: run `{self.command}` first")
        return interpreter(self.directory)

    @property
    def is_made(self) -> bool:
        """Whether all that is asked for now is there."""
        stamp = self.directory / STAMP
        return stamp.is_file() and stamp.read_text(encoding="utf-8") == self._key

    def make(self) -> None:
        """Make it again.

        Raises:
            NotMade: a step failed.
        """
        log = self.directory.with_name(f"{self.directory.name}.log")
        try:
            make_venv(self.name, self.directory, self.requirements, log=log, by_pip=self.by_pip)
        except ChildFailed as exc:
            raise NotMade(str(exc)) from exc
        (self.directory / STAMP).write_text(self._key, encoding="utf-8")

    @property
    def _key(self) -> str:
        text = self.requirements.read_text("utf-8")
        return hashlib.sha256(
            repr((sys.version, UV, str(self.directory), text)).encode()
        ).hexdigest()


def make_missing(environments: Sequence[Environment]) -> int:
    """The exit status of a command that makes those of them that are missing."""
    try:
        for environment in environments:
            if not environment.is_made:
                environment.make()
    except NotMade as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    return 0


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
