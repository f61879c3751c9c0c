"""An export: every wanted session whose rows the directory does not have goes into it, once.

    new       not in the directory: version 1
    changed   its revision is another one, and so are its rows: one version more
    same      its revision is another one, but its rows are not: only that is noted
    as it was nothing happened to it; its rows are not even asked for

Of a session that has lost turns since it was exported, the directory has more: it stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import orjson

from slime_router.api.sessions.listing import Listing
from slime_router.export.columns import Record, record_of, size_of
from slime_router.export.directory import ExportDirectory
from slime_router.export.formats import Format
from slime_router.export.manifest import Entry, Key
from slime_router.export.source import Found, Gone, Rows, Source, SourceFailed

FILE_BYTES = 64 * 2**20  # of arrays, in one file
MAX_SESSIONS = 10_000  # of one file


@dataclass(slots=True)
class ExportCounts:
    """What became of the sessions. `rows` are those that were written."""

    new: int = 0
    changed: int = 0
    same: int = 0
    as_it_was: int = 0
    shrunk: int = 0  # lost turns since
    gone: int = 0
    rows: int = 0
    files: int = 0


@dataclass(slots=True)
class _Batch:
    """What goes into the next file."""

    entries: list[Entry] = field(default_factory=list)
    keys: set[Key] = field(default_factory=set)
    records: list[Record] = field(default_factory=list)
    bytes: int = 0


class Export:
    """One run. What is committed stays, wherever it ends."""

    def __init__(
        self, source: Source, directory: ExportDirectory, form: Format, *, file_bytes: int
    ) -> None:
        self._source = source
        self._directory = directory
        self._form = form
        self._file_bytes = file_bytes
        self._batch = _Batch()
        self._done: list[Key] = []  # are in the directory, though the source may not know it yet
        self.counts = ExportCounts()

    def __repr__(self) -> str:
        return f"<Export from {self._source!r} to {self._directory!r}>"

    def run(
        self,
        wanted: Listing,
        min_reward: float | None = None,
        advance: Callable[[], None] = lambda: None,
    ) -> ExportCounts:
        """Export what is wanted; `advance` is called after each session.

        Raises:
            SourceFailed: the source does not answer.
            OSError: the directory cannot be written.
        """
        for found in self._source.sessions(wanted, min_reward):
            if found.key in self._batch.keys:  # deleted, and opened again under the same name
                self._commit()
            try:
                self._take(found)
            except Gone:
                self.counts.gone += 1
            except (KeyError, TypeError, ValueError) as exc:
                name = found.key.session_id
                raise SourceFailed(f"the rows of {name!r} cannot be read: {exc!r}") from exc
            if self._batch.bytes >= self._file_bytes or len(self._done) >= MAX_SESSIONS:
                self._commit()
            advance()
        self._commit()
        return self.counts

    def _take(self, found: Found) -> None:
        before = self._directory.find(found.key)
        if before is not None and before.revision == found.revision:
            self.counts.as_it_was += 1
            self._done.append(found.key)
            return
        if before is not None and found.dropped_turns > before.dropped_turns:
            self.counts.shrunk += 1
            return
        rows = found.rows()
        digest = _digest(rows)
        entry = Entry(
            session_id=found.key.session_id,
            owner=found.key.owner,
            version=1,
            rows=len(rows),
            revision=found.revision,
            digest=digest,
            dropped_turns=found.dropped_turns,
        )
        if before is not None and before.digest == digest:
            self.counts.same += 1
            self._add(replace(entry, version=before.version))
            return
        if before is not None:
            self.counts.changed += 1
            entry = replace(entry, version=before.version + 1)
        else:
            self.counts.new += 1
        records = [record_of(row, entry.version) for row in rows]
        self._add(entry)
        self._batch.records += records
        self._batch.bytes += sum(map(size_of, records))

    def _add(self, entry: Entry) -> None:
        self._batch.entries.append(entry)
        self._batch.keys.add(entry.key)
        self._done.append(entry.key)

    def _commit(self) -> None:
        batch, self._batch = self._batch, _Batch()
        if batch.entries:
            data = self._form.encode(batch.records) if batch.records else None
            self._directory.commit(data, len(batch.records), batch.entries)
            self.counts.rows += len(batch.records)
            self.counts.files += data is not None
        done, self._done = self._done, []
        if done:
            self._source.exported(done)


def _digest(rows: Rows) -> str:
    """Of their content, whatever the order of its keys."""
    found = blake2b(digest_size=16)
    for row in rows:
        found.update(orjson.dumps(row, option=orjson.OPT_SORT_KEYS))
    return found.hexdigest()
