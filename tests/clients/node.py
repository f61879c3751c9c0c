"""The npm clients that tests run: `python -m tests.clients.node` installs them.

`npm/NAME/package.json` names exact versions, the newest that run on Node 20. Each set lies in
`.cache/clients/npm-NAME/`, whole or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from tests.npm import NpmFailed, npm

PACKAGES = Path(__file__).resolve().parent / "npm"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "clients"
NAMES = tuple(sorted(path.parent.name for path in PACKAGES.glob("*/package.json")))
MARKER = ".installed"  # holds the hash of the package.json that was installed
INSTALL = ("install", "--no-package-lock", "--no-audit", "--no-fund")
INSTALL_TIMEOUT_S = 600.0


class InstallError(Exception):
    """A set of npm packages could not be installed; one line."""


def installed(name: str) -> Path:
    """The directory that holds the set's `node_modules`."""
    directory = _directory(name)
    if not is_installed(name):
        raise InstallError(f"{directory} is not there: run `python -m tests.clients.node` first")
    return directory


def program(name: str, command: str) -> Path:
    """A command that an installed set brings."""
    return installed(name) / "node_modules" / ".bin" / command


def is_installed(name: str) -> bool:
    """Whether what lies there is what package.json asks for now."""
    marker = _directory(name) / MARKER
    return marker.is_file() and marker.read_text() == _wanted(name)


def install(name: str) -> None:
    """Install one set; an interrupted one leaves nothing in its place."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".npm-") as scratch:
        made = Path(scratch, name)
        made.mkdir()
        shutil.copy(PACKAGES / name / "package.json", made)
        try:
            npm(*INSTALL, directory=made, timeout_s=INSTALL_TIMEOUT_S)
        except NpmFailed as exc:
            raise InstallError(f"{name}: {exc}") from exc
        (made / MARKER).write_text(_wanted(name))
        shutil.rmtree(_directory(name), ignore_errors=True)
        made.rename(_directory(name))


def _directory(name: str) -> Path:
    return CACHE / f"npm-{name}"


def _wanted(name: str) -> str:
    return hashlib.sha256((PACKAGES / name / "package.json").read_bytes()).hexdigest()


def main() -> int:
    """Install what is missing."""
    try:
        for name in NAMES:
            if not is_installed(name):
                sys.stderr.write(f"installing {name} (npm)\n")
                install(name)
    except InstallError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
