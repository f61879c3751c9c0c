"""`slime-router export`: training rows of many sessions into a directory, each of them once.

Exit codes: 0 fine, 1 not all could be exported, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path

import orjson
from multidict import MultiDict

from slime_router.api.sessions.listing import read_listing
from slime_router.api.sessions.request import STATES
from slime_router.archive.port import Archive
from slime_router.archive.sqlite import SqliteArchive
from slime_router.cli.one_line import EXIT_WRONG_USE, command_parser, error_line
from slime_router.cli.terminal.progress import bar
from slime_router.cli.terminal.remote import ABOUT_KEYS, BadPlace, Remote, add_url
from slime_router.config import JournalSettings
from slime_router.errors import RouterError, SetupError
from slime_router.export.card import card_of
from slime_router.export.directory import ExportDirectory
from slime_router.export.disk import LocalDisk
from slime_router.export.export import FILE_BYTES, Export, ExportCounts
from slime_router.export.formats import FORMATS, check_installed
from slime_router.export.manifest import NAME
from slime_router.export.remote import RouterSource
from slime_router.export.source import ArchiveSource, Source, SourceFailed
from slime_router.journal.database import FILE_NAME

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
STORE_TIMEOUT_S = 30.0
_MAX_DIGITS = 19
_FILTERS = ("group_id", "rollout_id", "since", "until")

_DESCRIPTION = """\
Writes the training rows of closed sessions into a directory, from a running router, a journal or a
Redis. What is there already is not written again: run it as often as you like, also after it was
killed."""
_EPILOG = f"""\
examples:
  slime-router export rows --format parquet                      # from the router that runs here
  slime-router export rows --url http://10.0.0.7:30001 --group-id g-17
  slime-router export rows --journal /var/lib/slime-router --since 2026-01-01
  slime-router export rows --store redis://10.0.1.1:6379/0 --min-reward 0.5

{ABOUT_KEYS}"""


def export_main(argv: Sequence[str]) -> int:
    """Run it; returns the exit code. `argv` does not include `export`."""
    asked = parser().parse_args(argv)
    try:
        return _run(asked)
    except (BadPlace, RouterError) as exc:
        return _failed(getattr(exc, "message", str(exc)), EXIT_WRONG_USE)
    except SourceFailed as exc:
        return _failed(str(exc), EXIT_FAILED)
    except sqlite3.Error as exc:
        return _failed(f"the journal {asked.journal} cannot be read: {exc}", EXIT_FAILED)
    except OSError as exc:
        return _failed(f"{exc.filename or asked.directory}: {exc.strerror or exc}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _failed("interrupted; run it again for the rest", EXIT_INTERRUPTED)


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = command_parser("export", _DESCRIPTION, _EPILOG)
    p.add_argument("directory", metavar="DIR", help="where to write; made if it is not there")
    p.add_argument("--format", choices=tuple(FORMATS), default="parquet", help="(default: parquet)")
    add_url(p)
    where = p.add_mutually_exclusive_group()
    where.add_argument("--journal", metavar="DIR", help="read this journal, and ask no router")
    where.add_argument("--store", metavar="URL", help="read this Redis, and ask no router")
    p.add_argument("--store-prefix", default="slime", metavar="TEXT", help="(default: slime)")
    p.add_argument(
        "--store-ttl-secs",
        type=_positive,
        default=int(JournalSettings.store_ttl_s),
        metavar="S",
        help="as for its routers (default: 604800)",
    )
    p.add_argument(
        "--state",
        choices=(*STATES, "all"),
        default="closed",
        help="sessions in this state; of others, rows may still change (default: closed)",
    )
    p.add_argument("--group-id", metavar="ID", help="sessions of this group")
    p.add_argument("--rollout-id", metavar="ID", help="sessions of this rollout")
    p.add_argument("--since", metavar="TIME", help="active since then: Unix time, or ISO 8601")
    p.add_argument("--until", metavar="TIME", help="started before then")
    p.add_argument(
        "--min-reward", type=_finite, metavar="X", help="with a reward that is a number, at least X"
    )
    p.add_argument(
        "--file-bytes",
        type=_positive,
        default=FILE_BYTES,
        metavar="N",
        help=f"begin a new file after so many bytes of arrays (default: {FILE_BYTES:,})",
    )
    p.add_argument("--json", action="store_true", help="say what was done as one JSON object")
    return p


def _finite(text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")


def _positive(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")


def _run(asked: argparse.Namespace) -> int:
    check_installed(asked.format)
    query = {name: value for name in _FILTERS if (value := getattr(asked, name)) is not None}
    if asked.state != "all":
        query["state"] = asked.state
    wanted, form = read_listing(MultiDict(query)), FORMATS[asked.format]
    with closing(_source(asked, query)) as source:
        count = len(source)  # where nobody answers, no directory is made
        with closing(LocalDisk(Path(asked.directory), lock=NAME)) as disk:
            card = card_of(asked.format, form.suffix)
            directory = ExportDirectory(disk, asked.format, form.suffix, card)
            export = Export(source, directory, form, file_bytes=asked.file_bytes)
            counts = _with_bar(count, lambda advance: export.run(wanted, asked.min_reward, advance))
        _tell(counts, source.skipped, is_json=asked.json, closed_only=asked.state == "closed")
        return EXIT_FAILED if counts.gone or source.skipped else 0


def _source(asked: argparse.Namespace, query: dict[str, str]) -> Source:
    if asked.store is not None:
        return ArchiveSource(_redis(asked.store, asked.store_prefix, asked.store_ttl_secs))
    if asked.journal is None:
        return RouterSource(Remote(asked.url), query)
    directory = Path(asked.journal)
    if not os.path.isfile(directory / FILE_NAME):
        raise SetupError(f"{directory}: there is no journal")
    return ArchiveSource(SqliteArchive(directory))


def _redis(url: str, prefix: str, ttl_s: int) -> Archive:
    try:
        from slime_router.archive.redis import RedisArchive
        from slime_router.archive.redis_client import RedisClients
    except ImportError as exc:
        raise SetupError("--store needs the extra: pip install 'slime-router[redis]'") from exc
    clients = RedisClients(url, timeout_s=STORE_TIMEOUT_S, write_timeout_s=STORE_TIMEOUT_S)
    return RedisArchive(clients, prefix=prefix, ttl_s=ttl_s)


def _with_bar(count: int, run: Callable[[Callable[[], None]], ExportCounts]) -> ExportCounts:
    with bar() as progress:
        task = progress.add_task("sessions", total=count)
        return run(lambda: progress.advance(task))


def _tell(counts: ExportCounts, skipped: int, *, is_json: bool, closed_only: bool) -> None:
    if is_json:
        sys.stdout.write(orjson.dumps({**asdict(counts), "skipped": skipped}).decode() + "\n")
        return
    sys.stdout.write(
        f"{counts.rows:,} rows in {counts.files:,} files:"
        f" {counts.new:,} sessions new, {counts.changed:,} changed,"
        f" {counts.same + counts.as_it_was:,} there before\n"
    )
    for number, words in (
        (counts.shrunk, "have lost turns since, and stay as they were"),
        (counts.gone, "were deleted meanwhile, or belong to another key"),
    ):
        if number:
            sys.stderr.write(f"slime-router export: {number:,} sessions {words}\n")
    if closed_only and not counts.new + counts.changed + counts.same + counts.as_it_was:
        sys.stderr.write(
            "slime-router export: no closed session was found; --state all takes open ones, too\n"
        )
    if skipped:
        _failed(f"{skipped:,} turns or sessions cannot be read", EXIT_FAILED)


def _failed(message: str, code: int) -> int:
    sys.stderr.write(error_line(message, "slime-router export"))
    return code
