"""`slime-router journal`: what a journal holds, whether it is sound, its rows, and its spare space.

Exit codes: 0 fine, 1 something is wrong with the journal, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import orjson

from slime_router.api.sessions.parquet import parquet_of
from slime_router.api.sessions.row_formats import lines
from slime_router.cli.one_line import EXIT_WRONG_USE, OneLineParser
from slime_router.cli.terminal.figures import listed
from slime_router.cli.terminal.progress import tracked
from slime_router.errors import RouterError
from slime_router.journal.database import Database
from slime_router.journal.reading import faults, read_store, stats
from slime_router.journal.store import JournaledStore
from slime_router.rows.rows import build_rows

EXIT_SOUND, EXIT_FAULTY = 0, 1

_DESCRIPTION = "Looks into a journal that no router has open."
_EPILOG = """\
examples:
  slime-router journal stats /var/lib/slime-router
  slime-router journal verify /var/lib/slime-router
  slime-router journal export /var/lib/slime-router --format parquet --output rows.parquet"""


def journal_main(argv: Sequence[str]) -> int:
    """Run one of the actions; returns the exit code. `argv` does not include `journal`."""
    asked = parser().parse_args(argv)
    directory = Path(asked.directory)
    try:
        if asked.action == "export":
            return _export(directory, asked.output, asked.format)
        with closing(Database(directory, is_new_allowed=False)) as database:
            if asked.action == "stats":
                sys.stdout.write(listed(asdict(stats(database)), is_json=asked.json))
                return EXIT_SOUND
            if asked.action == "verify":
                return _verify(database)
            return _vacuum(database)
    except RouterError as exc:
        return _failed(exc.message, EXIT_WRONG_USE)
    except sqlite3.Error as exc:
        return _failed(f"the journal {directory} is damaged: {exc}", EXIT_FAULTY)
    except OSError as exc:
        return _failed(f"{exc.filename or directory}: {exc.strerror}", EXIT_WRONG_USE)


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = OneLineParser(
        prog="slime-router journal",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, words in (
        ("stats", "how many turns, sessions and tokens it holds"),
        ("verify", "look at every page and every turn"),
        ("export", "write the training rows of all sessions"),
        ("vacuum", "give the space of what was dropped back to the file system"),
    ):
        action = actions.add_parser(name, help=words, description=words)
        action.add_argument("directory", metavar="DIR", help="what --journal names")
        if name == "stats":
            action.add_argument("--json", action="store_true", help="as one JSON object")
        if name == "export":
            action.add_argument(
                "--format", choices=("jsonl", "parquet"), default="jsonl", help="(default: jsonl)"
            )
            action.add_argument(
                "--output", metavar="FILE", help="where to write (default: standard output)"
            )
    return p


def _failed(message: str, code: int) -> int:
    sys.stderr.write(f"slime-router journal: error: {message}\n")
    return code


def _verify(database: Database) -> int:
    found = 0
    for fault in faults(database):
        sys.stdout.write(fault + "\n")
        found += 1
    turns = database.count("turns")
    sys.stdout.write(f"{turns} turns: {f'{found} faults' if found else 'sound'}\n")
    return EXIT_FAULTY if found else EXIT_SOUND


def _vacuum(database: Database) -> int:
    before = stats(database).bytes
    database.vacuum()
    sys.stdout.write(f"{before:,} bytes before, {stats(database).bytes:,} after\n")
    return EXIT_SOUND


def _export(directory: Path, output: str | None, form: str) -> int:
    """Rows as `GET /sessions/{id}/rows` gives them in that format, of all sessions."""
    store, progress = read_store(directory)
    write = _write_parquet if form == "parquet" else _write_lines
    if output is None:
        write(store, sys.stdout.buffer)
    else:
        part = Path(f"{output}.part")  # so that a file is there whole or not at all
        with part.open("wb") as file:
            write(store, file)
        part.replace(output)
    if progress.skipped:
        return _failed(f"{progress.skipped} turns or sessions cannot be read", EXIT_FAULTY)
    return EXIT_SOUND


def _write_lines(store: JournaledStore, file: BinaryIO) -> None:
    for session in tracked(store.sessions, len(store.sessions), "sessions"):
        for line in lines(session, build_rows(store, tuple(session.turns))):
            file.write(line)
    file.flush()


def _write_parquet(store: JournaledStore, file: BinaryIO) -> None:
    sessions = tracked(store.sessions, len(store.sessions), "sessions")
    built = [(session, build_rows(store, tuple(session.turns))) for session in sessions]
    stats = {session.name: asdict(rowset.stats) for session, rowset in built}
    rows = [(session, row) for session, rowset in built for row in rowset.rows]
    file.write(parquet_of(rows, orjson.dumps(stats)))
    file.flush()
