"""An archive in memory, for routers of one process and for tests: the others do what this does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from slime_router.archive.homes import home_of_session
from slime_router.archive.merging import merged
from slime_router.archive.port import NOTHING_SEEN, ArchiveDown, Cursor, Kept, News
from slime_router.journal.codec import SessionState, unpacked_session
from slime_router.journal.database import (
    Change,
    Drop,
    Late,
    MarkUndelivered,
    Put,
    PutTurn,
    Table,
)
from slime_router.journal.progress import Progress

MAX_HOMES = 16  # of one name: the newest


@dataclass(slots=True)
class _Turn:
    put: PutTurn
    version: int
    changed: int = -1
    is_undelivered: bool = False


@dataclass(slots=True)
class _Home:
    turns: dict[str, _Turn] = field(default_factory=dict)
    state: SessionState | None = None
    state_version: int = -1
    deleted_version: int = -1


class MemoryArchive:
    """Everything, for as long as the process lasts; while it `is_away`, it does not answer."""

    def __init__(self) -> None:
        self._homes: defaultdict[str, _Home] = defaultdict(_Home)
        self._names: defaultdict[bytes, dict[str, int]] = defaultdict(dict)
        self._sessions: list[str] = []
        self._tables: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        self._version = 0
        self._routers = 0
        self.is_away = False

    def __repr__(self) -> str:
        return f"<MemoryArchive {len(self._homes)} homes>"

    async def prepare(self, _: Progress) -> None:
        """Do nothing: see `Archive.prepare`."""

    def apply(self, changes: list[Change]) -> Late:
        """See `Archive.apply`."""
        if self.is_away:
            raise OSError("the archive is away")
        late: dict[str, Literal["closed", "deleted"]] = {}
        for change in changes:
            self._version += 1
            if isinstance(change, PutTurn) and change.session_id is not None:
                state = self._homes[change.home].state
                if state is not None and state.is_closed and not change.is_change:
                    late[change.session_id] = "closed"
            self._apply(change)
        return late

    def _apply(self, change: Change) -> None:
        if isinstance(change, PutTurn):
            turns = self._homes[change.home].turns
            turn = turns.setdefault(change.id, _Turn(change, self._version))
            turn.put, turn.version = change, self._version
            turn.changed = self._version if change.is_change else turn.changed
            for name in change.names:
                homes = self._names[name]
                homes[change.home] = max(change.seq, homes.get(change.home, 0))
        elif isinstance(change, MarkUndelivered):
            turn = self._homes[change.home].turns[change.id]
            turn.is_undelivered, turn.version = True, self._version
        elif change.table == "sessions":
            self._change_session(change)
        elif isinstance(change, Put):
            self._tables[change.table][change.id] = change.data
        else:
            self._tables[change.table].pop(change.id, None)

    def _change_session(self, change: Put | Drop) -> None:
        home = self._homes[home_of_session(change.id)]
        if isinstance(change, Put):
            home.state = merged(home.state, unpacked_session(change.data))
            home.state_version = self._version
        elif not change.is_deleted:
            return
        else:
            home.turns = {i: t for i, t in home.turns.items() if t.put.session_id is None}
            home.state, home.deleted_version = None, self._version
        self._sessions.append(change.id)

    async def find(self, names: Sequence[bytes]) -> list[str]:
        """See `Archive.find`."""
        self._check_here()
        found: dict[str, None] = {}
        for name in names:
            homes = self._names.get(name, {})
            newest = sorted(homes, key=lambda home: -homes[home])
            found |= dict.fromkeys(newest[:MAX_HOMES])
        return list(found)

    async def news(self, home: str, since: Cursor, knows: Callable[[str], bool]) -> News:
        """See `Archive.news`."""
        self._check_here()
        after, known = int(since or -1), self._homes[home]
        gone = known.deleted_version
        kept = tuple(
            Kept(
                turn.put.id,
                turn.put.seq,
                turn.is_undelivered,
                None if knows(turn.put.id) and max(turn.changed, gone) <= after else turn.put.data,
            )
            for turn in sorted(known.turns.values(), key=lambda turn: turn.put.seq)
            if turn.version > after
        )
        state = known.state if known.state_version > after else None
        return News(home, str(self._version), kept, state, gone > after)

    async def sessions(self, since: Cursor) -> tuple[list[str], Cursor]:
        """See `Archive.sessions`."""
        self._check_here()
        names = self._sessions[int(since or 0) :]
        return list(dict.fromkeys(names)), str(len(self._sessions))

    async def states(self, names: Sequence[str]) -> dict[str, SessionState]:
        """See `Archive.states`."""
        self._check_here()
        states = {name: self._homes[home_of_session(name)].state for name in names}
        return {name: state for name, state in states.items() if state is not None}

    async def get(self, table: Table, name: str) -> bytes | None:
        """See `Archive.get`."""
        self._check_here()
        return self._tables[table].get(name)

    async def named(self, table: Table) -> list[tuple[str, bytes]]:
        """See `Archive.named`."""
        self._check_here()
        return list(self._tables[table].items())

    async def workers_version(self) -> str:
        """See `Archive.workers_version`."""
        self._check_here()
        return str(self._version)

    def has_news(self, since: Cursor) -> bool:
        """See `Archive.has_news`."""
        return since == NOTHING_SEEN or since != str(self._version)

    async def number(self) -> int:
        """See `Archive.number`."""
        self._check_here()
        self._routers += 1
        return self._routers

    async def last_seq(self) -> int:
        """See `Archive.last_seq`. Whoever extends a turn has seen its number."""
        return 0

    async def bind(self, name: str, value: bytes) -> bytes:
        """See `Archive.bind`."""
        self._check_here()
        return self._tables["meta"].setdefault(name, value)

    async def close(self) -> None:
        """See `Archive.close`."""

    def _check_here(self) -> None:
        if self.is_away:
            raise ArchiveDown("the archive is away")
