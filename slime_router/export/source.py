"""Where rows come from: what every source does, and an archive as one.

All give rows as JSON has them in `GET /sessions/{id}/rows`: so an export is the same from each.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, TypeVar

import orjson

from slime_router.api.sessions.listing import Listing
from slime_router.api.sessions.row_formats import as_json
from slime_router.archive.homes import home_of_session
from slime_router.archive.port import NOTHING_SEEN, Archive, ArchiveDown, Cursor, News
from slime_router.archive.store import ArchivedStore
from slime_router.export.manifest import Key
from slime_router.journal.codec import SessionState, packed_session
from slime_router.journal.database import Change, Made, Put
from slime_router.journal.progress import Progress
from slime_router.rows.revision import revision_of
from slime_router.rows.rows import build_rows
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore

T = TypeVar("T")
Rows: TypeAlias = list[dict[str, Any]]

ROOM = 2**62  # tokens: nothing is dropped while a session is read


class SourceFailed(Exception):
    """A source does not answer, or not as it should; the message is one line."""


class Gone(Exception):
    """A session cannot be had, though others can: it was deleted meanwhile, or is another key's."""


@dataclass(frozen=True, slots=True)
class Found:
    """A session that may be exported. `rows` raises Gone or SourceFailed."""

    key: Key
    revision: str
    dropped_turns: int
    rows: Callable[[], Rows]


class Source(Protocol):
    """Sessions with their rows, and a way to say that they are exported."""

    skipped: int  # turns and sessions that could not be read

    def __len__(self) -> int:
        """How many sessions there are, about."""

    def sessions(self, wanted: Listing, min_reward: float | None) -> Iterator[Found]:
        """The wanted sessions, each once.

        Raises:
            SourceFailed: it does not answer.
        """

    def exported(self, keys: Collection[Key]) -> None:
        """These are durable elsewhere. Raises SourceFailed."""

    def close(self) -> None:
        """Let go of it."""


class ArchiveSource:
    """An archive that routers may have open meanwhile; one session after the other is read.

    Raises:
        SourceFailed: it does not answer, or it is damaged.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._runner = asyncio.Runner()
        progress = Progress(0, 0)
        try:
            self._asked(archive.prepare(progress))
        except BaseException:  # whatever it is: it must not stay open
            self.close()
            raise
        self._names: list[str] | None = None
        self._unmarked: dict[Key, tuple[SessionState, Cursor]] = {}
        self._unread = progress.skipped
        self.skipped = self._unread

    def __repr__(self) -> str:
        return f"<ArchiveSource {self._archive!r}>"

    def __len__(self) -> int:
        return len(self._listed())

    def sessions(self, wanted: Listing, min_reward: float | None) -> Iterator[Found]:
        """See `Source.sessions`."""
        for store, session, cursor in self.read():
            if not (wanted.fits(session) and earns(session.reward, min_reward)):
                continue
            found = _found(store, session)
            if session.exported():
                self._unmarked[found.key] = SessionState.of(session), cursor
            yield found

    def read(self) -> Iterator[tuple[TrajectoryStore, Session, Cursor]]:
        """Each session, alone in a store with its turns, and how far it was read.

        Raises:
            SourceFailed: it does not answer.
        """
        self.skipped = self._unread
        for name in self._listed():
            store = ArchivedStore(_Nowhere(), ROOM)
            news = self._news(name, NOTHING_SEEN)
            store.absorb(news, NOTHING_SEEN, lambda _: 0)
            is_damaged = news.state is None and not news.is_deleted and bool(news.turns)
            self.skipped += store.skipped_turns + is_damaged
            session = store.sessions.find(name)
            if session is not None:
                yield store, session, news.cursor

    def exported(self, keys: Collection[Key]) -> None:
        """See `Source.exported`. What was recorded about them in the meantime stays."""
        changes: list[Change] = []
        for key in keys:
            state, cursor = self._unmarked.pop(key, (None, NOTHING_SEEN))
            if state is None:
                continue
            news = self._news(state.spec.id, cursor)
            if not news.is_deleted and not news.is_gone:
                changes.append(_put(replace(news.state or state, was_exported=True)))
        if changes:
            try:
                self._archive.apply(changes)
            except (OSError, sqlite3.Error) as exc:
                raise SourceFailed(f"the store or journal cannot be written: {exc}") from exc

    def close(self) -> None:
        """See `Source.close`."""
        self._runner.run(self._archive.close())
        self._runner.close()

    def _listed(self) -> list[str]:
        if self._names is None:
            self._names, _ = self._asked(self._archive.sessions(NOTHING_SEEN))
        return self._names

    def _news(self, name: str, since: Cursor) -> News:
        known = since != NOTHING_SEEN
        return self._asked(self._archive.news(home_of_session(name), since, lambda _: known))

    def _asked(self, answer: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(answer)
        except ArchiveDown as exc:
            raise SourceFailed(f"the store or journal cannot be read: {exc}") from exc


def _put(state: SessionState) -> Put:
    return Put("sessions", state.spec.id, packed_session(state))


class _Nowhere:
    """Takes changes and forgets them: reading changes nothing."""

    position = 0

    def put(self, made: Made) -> None:
        """Write nothing."""

    def has_written(self, position: int) -> bool:  # noqa: ARG002 - nothing waits
        """There is nothing to write."""
        return True


def earns(reward: object, least: float | None) -> bool:
    """Whether a reward is a number that is large enough."""
    if least is None:
        return True
    is_number = isinstance(reward, int | float) and not isinstance(reward, bool)
    return is_number and reward >= least  # type: ignore[operator]  # the check is in the line above


def _found(store: TrajectoryStore, session: Session) -> Found:
    def rows() -> Rows:
        made = as_json(session, build_rows(store, tuple(session.turns)))
        return list(orjson.loads(made)["rows"])

    key = Key(session.owner, session.name)
    return Found(key, revision_of(store, session), session.dropped_turns, rows)
