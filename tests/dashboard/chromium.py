"""Chromium for the tests of the dashboard: where it is, and `make browser`, which installs it.

It comes from Debian's packages, which takes root. Where that cannot be had, these tests are left
out, with one line that says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "fonts-dejavu-core")


def chromium() -> str | None:
    """The program, or None: what `CHROMIUM` names, or the first of the usual names."""
    named = os.environ.get("CHROMIUM")
    return next((found for name in (named, *NAMES) if name and (found := shutil.which(name))), None)


def main() -> int:
    """Install it, where it is missing."""
    if chromium() is not None:
        return 0
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        sys.stderr.write("browser: Chromium is installed with Debian's apt-get, as root\n")
        return 1
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            sys.stderr.write(f"browser: {' '.join(command[:2])} failed\n")
            return 1
    return 0 if chromium() is not None else 1


if __name__ == "__main__":
    sys.exit(main())
