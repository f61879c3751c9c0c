"""The commands beside the server: what each is for, and where it is.

They are imported when they are run: most take longer to import than the arguments to read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple


class Command(NamedTuple):
    """One command: its module has `parser`, and `run` there is called with the arguments."""

    module: str
    run: str
    usage: str
    summary: str


COMMANDS = {
    "top": Command(
        "terminal.top", "top_main", "top", "workers, rates and sessions of a running router, live"
    ),
    "sessions": Command(
        "terminal.sessions",
        "sessions_main",
        "sessions [ID]",
        "its sessions, or the turns, rows and coloured tokens of one",
    ),
    "doctor": Command(
        "terminal.preflight",
        "doctor_main",
        "doctor",
        "before the start: do the workers fit, and the configuration?",
    ),
    "check": Command(
        "check",
        "check_main",
        "check CHECKPOINT",
        "which capabilities of a checkpoint are served exactly",
    ),
    "conformance": Command(
        "trials.conformance",
        "conformance_main",
        "conformance",
        "does a gateway hand over exactly what was sampled?",
    ),
    "diagnose": Command(
        "diagnose",
        "diagnose_main",
        "diagnose FILE",
        "where held tokens and a text diverge, and why",
    ),
    "journal": Command(
        "journal", "journal_main", "journal ACTION", "what a journal holds, and whether it is sound"
    ),
    "export": Command(
        "export",
        "export_main",
        "export DIR",
        "training rows of many sessions into a directory, each of them once",
    ),
    "store": Command(
        "terminal.store", "store_main", "store ACTION URL", "what a Redis holds that routers share"
    ),
    "install-parsers": Command(
        "install_parsers",
        "install_parsers_main",
        "install-parsers",
        "installs what tool calls and reasoning are read with",
    ),
    "completion": Command(
        "terminal.completion",
        "completion_main",
        "completion SHELL",
        "completes commands and flags in bash, zsh or fish",
    ),
}


def summaries() -> str:
    """One line for each command."""
    return "\n".join(f"slime-router {each.usage:<17} {each.summary}" for each in COMMANDS.values())


def command(name: str) -> Callable[[list[str]], int]:
    """What runs a command with its arguments and returns the exit code."""
    run: Callable[[list[str]], int] = getattr(_module(COMMANDS[name]), COMMANDS[name].run)
    return run


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The arguments of each command."""
    return {name: _module(each).parser() for name, each in COMMANDS.items()}


def _module(of: Command) -> Any:
    return import_module(f"slime_router.cli.{of.module}")
