"""`slime-router completion SHELL`: a script that completes commands and flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import shtab

from slime_router.cli import flags
from slime_router.cli.commands import parsers
from slime_router.cli.one_line import command_parser

SHELLS = ("bash", "zsh", "fish")
_EPILOG = """\
examples:
  slime-router completion bash > ~/.local/share/bash-completion/completions/slime-router
  slime-router completion zsh > "${fpath[1]}/_slime-router"
  slime-router completion fish > ~/.config/fish/completions/slime-router.fish"""


def completion_main(argv: Sequence[str]) -> int:
    """Print the script; returns the exit code. `argv` does not include `completion`."""
    asked = parser().parse_args(argv)
    sys.stdout.write(shtab.complete(_whole(), shell=asked.shell))
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = command_parser(
        "completion", "Prints a script with which the shell completes commands and flags.", _EPILOG
    )
    p.add_argument("shell", choices=SHELLS, help="which shell")
    return p


def _whole() -> argparse.ArgumentParser:
    """The router's own flags, and those of each command."""
    whole = flags.parser()
    commands = whole.add_subparsers(metavar="COMMAND")
    for name, each in parsers().items():
        commands.add_parser(
            name, parents=[each], conflict_handler="resolve", help=each.description, prog=each.prog
        )
    return whole
