"""npm, by which tests get vocabularies and clients."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class NpmFailed(Exception):
    """It did not do what it was asked for; one line."""


def npm(*arguments: str, directory: Path, timeout_s: float) -> None:
    """Runs it in a directory.

    Raises:
        NpmFailed: it is not there, took too long, or reported an error.
    """
    try:
        subprocess.run(
            ["npm", *arguments, "--silent"],
            check=True,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=directory,
            env=os.environ | {"npm_config_update_notifier": "false"},
        )
    except FileNotFoundError as exc:
        raise NpmFailed("npm is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise NpmFailed(f"npm {arguments[0]} took more than {timeout_s:.0f} s") from exc
    except subprocess.CalledProcessError as exc:
        words = " ".join((exc.stderr or exc.stdout or "").split())[-500:]
        raise NpmFailed(f"npm {arguments[0]} failed ({exc.returncode}): {words}") from exc
