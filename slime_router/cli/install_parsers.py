"""`slime-router install-parsers`: SGLang's parsers of replies, without its engine.

SGLang's distribution asks for torch, CUDA and about two hundred packages more. pip has no way
to leave those out: a constraints file chooses versions and removes nothing. So SGLang is installed
here with `--no-deps`, and with it the few packages that its parsers import, which are those of the
extra `parsers`.

Exit codes: 0 the parsers load, 1 they could not be installed, 2 wrong use.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata

from slime_router.cli.one_line import command_parser, error_line
from slime_router.errors import SetupError
from slime_router.replies.sglang_parsers import load_parsers

SGLANG = "sglang==0.5.23"  # the one that the router is tested with
DISTRIBUTION, EXTRA = "slime-router", "parsers"

_DESCRIPTION = """\
Installs what the router reads tool calls and reasoning with, into the environment that it runs in:
SGLang without its engine (no torch), and the few packages that its parsers import."""


_EPILOG = """\
examples:
  slime-router install-parsers
  slime-router install-parsers --dry-run"""


def install_parsers_main(argv: Sequence[str]) -> int:
    """Install them and load them; returns the exit code. `argv` is without `install-parsers`."""
    asked = parser().parse_args(argv)
    try:
        commands = install_commands()
        if asked.dry_run:
            sys.stdout.writelines(f"{shlex.join(command)}\n" for command in commands)
            return 0
        for command in commands:
            _run(command)
        importlib.invalidate_caches()
        parsers = load_parsers()
    except SetupError as exc:
        sys.stderr.write(error_line(exc.message, "slime-router install-parsers"))
        return 1
    counts = (
        f"{len(parsers.tool_formats)} of tool calls, {len(parsers.reasoning_formats)} of reasoning"
    )
    sys.stdout.write(f"{SGLANG}: the router reads {counts}\n")
    return 0


def install_commands() -> list[list[str]]:
    """What is run, in this order.

    Raises:
        SetupError: there is neither pip nor uv, or the router itself is not installed.
    """
    installer = _installer()
    return [[*installer, *parser_packages()], [*installer, "--no-deps", SGLANG]]


def parser_packages() -> list[str]:
    """What SGLang's parsers import: the requirements of the router's extra `parsers`.

    Raises:
        SetupError: the router was copied here, not installed.
    """
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError as exc:
        raise SetupError(
            f"{DISTRIBUTION} is not installed here: pip install {DISTRIBUTION}"
        ) from exc
    split = (requirement.partition(";") for requirement in wanted)
    return [package.strip() for package, _, marker in split if _names_extra(marker)]


def _names_extra(marker: str) -> bool:
    return marker.strip().replace('"', "'") == f"extra == '{EXTRA}'"


def _installer() -> list[str]:
    """pip of this environment; uv where it was made without pip, as uv does."""
    if importlib.util.find_spec("pip") is not None:
        quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")
        return [sys.executable, "-m", "pip", "install", *quiet]
    uv = shutil.which("uv")
    if uv is None:
        raise SetupError("neither pip nor uv is here: `python -m ensurepip` brings pip")
    return [uv, "pip", "install", "--quiet", "--python", sys.executable]


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise SetupError(f"this failed: {shlex.join(command)}") from exc


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = command_parser("install-parsers", _DESCRIPTION, _EPILOG)
    p.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    return p
