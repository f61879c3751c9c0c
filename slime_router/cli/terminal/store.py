"""`slime-router store`: what a prefix of a shared Redis or Valkey holds.

Exit codes: 0 fine, 1 the store does not answer, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

import orjson

from slime_router.archive.redis_listing import sessions_in, stats_of
from slime_router.cli.one_line import EXIT_WRONG_USE, command_parser, error_line
from slime_router.cli.terminal.figures import listed
from slime_router.errors import RouterError

EXIT_AWAY = 1
_DESCRIPTION = "Looks into a store that routers share; changes nothing."
_EPILOG = """\
examples:
  slime-router store stats redis://10.0.0.5:6379/0 --json
  slime-router store ls redis://10.0.0.5:6379/0"""


def store_main(argv: Sequence[str]) -> int:
    """Run one of the actions; returns the exit code. `argv` does not include `store`."""
    asked = parser().parse_args(argv)
    try:
        if asked.action == "ls":
            for name in sessions_in(asked.url, asked.prefix):
                sys.stdout.write(orjson.dumps(name).decode() + "\n")
            return 0
        found = stats_of(asked.url, asked.prefix)
        sys.stdout.write(listed(asdict(found), is_json=asked.json))
        return 0
    except RouterError as exc:
        return _failed(exc.message, EXIT_WRONG_USE)
    except OSError as exc:
        return _failed(f"the store does not answer: {exc}", EXIT_AWAY)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = command_parser("store", _DESCRIPTION, _EPILOG)
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, words in (
        ("stats", "how many homes, turns, sessions and bytes it holds"),
        ("ls", "the names of its sessions, one a line, as JSON"),
    ):
        action = actions.add_parser(name, help=words, description=words)
        action.add_argument("url", metavar="URL", help="what --store names")
        action.add_argument("--prefix", default="slime", help="(default: slime)")
        if name == "stats":
            action.add_argument("--json", action="store_true", help="as one JSON object")
    return p


def _failed(message: str, code: int) -> int:
    sys.stderr.write(error_line(message, "slime-router store"))
    return code
