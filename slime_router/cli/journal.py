"""`slime-router journal`: what a journal holds, whether it is sound, its rows, and its spare space.

Exit codes: 0 fine, 1 something is wrong with the journal, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import orjson

from slime_router.api.sessions.parquet import write_parquet
from slime_router.api.sessions.row_formats import lines
from slime_router.archive.sqlite import SqliteArchive
from slime_router.cli.one_line import EXIT_WRONG_USE, command_parser, error_line
from slime_router.cli.terminal.figures import listed
from slime_router.cli.terminal.progress import tracked
from slime_router.errors import RouterError
from slime_router.export.source import ArchiveSource, SourceFailed
from slime_router.journal.database import Database
from slime_router.journal.reading import faults, stats
from slime_router.rows.rows import Row, RowOptions, RowSet, build_rows
from slime_router.trajectory.session import Session

EXIT_SOUND, EXIT_FAULTY = 0, 1
GROUP_TOKENS = 1_000_000  # of a row group, about

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
    except (sqlite3.Error, SourceFailed) as exc:
        return _failed(f"the journal {directory} is damaged: {exc}", EXIT_FAULTY)
    except OSError as exc:
        return _failed(f"{exc.filename or directory}: {exc.strerror}", EXIT_WRONG_USE)


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = command_parser("journal", _DESCRIPTION, _EPILOG)
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
    sys.stderr.write(error_line(message, "slime-router journal"))
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
    Database(directory, is_new_allowed=False).close()
    write = _write_parquet if form == "parquet" else _write_lines
    with closing(ArchiveSource(SqliteArchive(directory, is_shared=False))) as source:
        if output is None:
            write(source, sys.stdout.buffer)
        else:
            part = Path(f"{output}.part")  # so that a file is there whole or not at all
            with part.open("wb") as file:
                write(source, file)
            part.replace(output)
        if source.skipped:
            return _failed(f"{source.skipped} turns or sessions cannot be read", EXIT_FAULTY)
    return EXIT_SOUND


def _read(source: ArchiveSource) -> Iterator[tuple[Session, RowSet]]:
    """One session after the other: they need not find room in memory."""
    for store, session, _ in tracked(source.read(), len(source), "sessions"):
        yield session, build_rows(store, tuple(session.turns), RowOptions(wanted=session.wanted))


def _write_lines(source: ArchiveSource, file: BinaryIO) -> None:
    for session, rowset in _read(source):
        for line in lines(session, rowset):
            file.write(line)
    file.flush()


def _write_parquet(source: ArchiveSource, file: BinaryIO) -> None:
    """All is read twice: the file begins with the statistics."""
    stats = {session.name: asdict(rowset.stats) for session, rowset in _read(source)}

    def portions() -> Iterator[list[tuple[Session, Row]]]:
        rows: list[tuple[Session, Row]] = []
        for session, rowset in _read(source):
            rows += [(session, row) for row in rowset.rows]
            if sum(len(row.tokens) for _, row in rows) >= GROUP_TOKENS:
                yield rows
                rows = []
        yield rows

    write_parquet(file, portions(), orjson.dumps(stats))
    file.flush()
