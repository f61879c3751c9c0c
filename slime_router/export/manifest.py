"""The manifest of an export: what is in which file. A line of JSON for each step. Pure.

    {"slime_router_export": 1, "format": "parquet"}
    {"file": "rows-000001.parquet", "rows": 3, "bytes": 8192, "sessions": [
        {"session_id": "ep-7", "owner": "", "version": 1, "rows": 2,
         "revision": "8d1f...", "digest": "77ab...", "dropped_turns": 0}, ...]}

A line is there whole or not at all: what a crash leaves of one is cut off. `file` is null where no
row was written. Of the lines about a session, the last one counts: with a higher version its rows
are in that line's file, in place of those before; with the same version it says that nothing but
its `revision` is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import orjson

from slime_router.errors import SetupError

NAME = "manifest.jsonl"
SCHEMA = 1
_MARK = "slime_router_export"


class Key(NamedTuple):
    """Two owners can use the same name for their sessions."""

    owner: str
    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A session as it was exported.

    Attributes:
        version: 1 for the first export of it, and one more for each time that its rows changed.
        rows: how many it has.
        revision: what the source says of its state; the same, as long as nothing happened to it.
        digest: of its rows.
        dropped_turns: turns that the source had given up by then.
    """

    session_id: str
    owner: str
    version: int
    rows: int
    revision: str
    digest: str
    dropped_turns: int = 0

    @property
    def key(self) -> Key:
        """Whose it is, and its name."""
        return Key(self.owner, self.session_id)


@dataclass(slots=True)
class Manifest:
    """What is known: the newest entry of each session, and the files. `size` is in bytes."""

    size: int = 0
    entries: dict[Key, Entry] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)  # with their rows

    def take(self, line: dict[str, Any]) -> None:
        """One line more.

        Raises:
            KeyError, TypeError: it is not one of ours.
        """
        names = {each.name for each in fields(Entry)}
        for given in line["sessions"]:
            entry = Entry(**{name: given[name] for name in names & given.keys()})
            self.entries[entry.key] = entry
        if line["file"] is not None:
            self.files[line["file"]] = line["rows"]


def header(form: str) -> bytes:
    """The first line."""
    return orjson.dumps({_MARK: SCHEMA, "format": form}) + b"\n"


def line_of(file: str | None, rows: int, size: int, entries: Sequence[Entry]) -> dict[str, Any]:
    """What is said of one file; None for sessions without anything written."""
    return {
        "file": file,
        "rows": rows,
        "bytes": size,
        "sessions": [asdict(each) for each in entries],
    }


def packed(line: dict[str, Any]) -> bytes:
    """A line as `read` takes it."""
    return orjson.dumps(line) + b"\n"


def read(data: bytes, form: str) -> Manifest:
    """What a manifest says, up to the end of its last whole line.

    Raises:
        SetupError: a newer version wrote it, it has another format, or it is damaged.
    """
    manifest = Manifest()
    whole, _, _ = data.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    for number, text in enumerate(lines):
        try:
            line = orjson.loads(text)
            if number:
                manifest.take(line)
            else:
                _check_header(line, form)
        except (ValueError, KeyError, TypeError) as exc:
            if number == len(lines) - 1:  # pages of one write may come to the disk in any order
                break
            raise SetupError(f"line {number + 1} of {NAME} is damaged") from exc
        manifest.size += len(text) + 1
    return manifest


def _check_header(line: dict[str, Any], form: str) -> None:
    if line[_MARK] > SCHEMA:
        raise SetupError(f"{NAME} was written by a newer router: it has schema {line[_MARK]}")
    if line["format"] != form:
        raise SetupError(f"the directory holds an export as {line['format']}: name another one")
