"""What every archive does: the durable home of turns and sessions, shared by all who open it.

Turns live in homes. A home is all that a look-up can need at once: the turns of a session and what
builds on them, or one tree of turns that no session has. A turn and its base have the same home.

Whoever keeps a home in memory has a cursor: how much of its past it has seen. `news` gives what
came since, so that what is known already is neither sent nor read again.

Turns are found by names, each of them bytes: see `slime_router.archive.homes`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

from slime_router.journal.codec import Damaged, SessionState, unpacked_turn
from slime_router.journal.database import Change, Late, Table
from slime_router.journal.progress import Progress
from slime_router.trajectory.turn import Turn

P = ParamSpec("P")
R = TypeVar("R")
Cursor: TypeAlias = str  # "": nothing was seen

NOTHING_SEEN: Cursor = ""
MAX_HOMES = 16  # of one name: the newest
ROUTERS = 1 << 16  # that have numbers of their own at one time


class ArchiveDown(Exception):
    """The archive does not answer, or not in time."""


class ArchiveOdd(ArchiveDown):
    """What was asked for cannot be read; the archive answers, and all else in it can."""


class ArchiveBroken(ArchiveDown):
    """The archive is damaged, and will not answer again by itself."""


def as_expected(
    read: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """What reads answers, and raises ArchiveOdd where they are not of their form.

    Others may have written to the archive, or it is damaged in a way that its server takes.
    """

    @wraps(read)
    async def reading(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await read(*args, **kwargs)
        except (TypeError, ValueError, LookupError, AttributeError) as exc:
            what = f"{type(exc).__name__}: {exc}"
            raise ArchiveOdd(f"an answer that is not of its form ({what})") from exc

    return reading


@dataclass(frozen=True, slots=True)
class Kept:
    """A turn as it is in the archive; `data` is None for one that the reader has."""

    id: str
    seq: int
    is_undelivered: bool
    data: bytes | None

    def turn(self) -> Turn:
        """The turn that its data are.

        Raises:
            Damaged: they are not a turn, or another one.
        """
        turn = unpacked_turn(self.data or b"")
        if turn.id != self.id:
            raise Damaged(f"it is {turn.id:.80}")
        return turn


@dataclass(frozen=True, slots=True)
class News:
    """What happened to a home since a cursor.

    Attributes:
        turns: those that came or changed, each after its base.
        state: the session as it is, if anything but turns happened to it.
        is_deleted: the session was deleted; what is in `turns` stays without it, and has its data.
        is_gone: there was more before, and the archive has lost a part of it, or all.
        lost: turns that it still names, and has lost.
    """

    home: str
    cursor: Cursor
    turns: tuple[Kept, ...] = ()
    state: SessionState | None = None
    is_deleted: bool = False
    is_gone: bool = False
    lost: int = 0

    def in_parts(self, since: Cursor, turns: int) -> Iterator[News]:
        """The same news, so many turns at a time: only the last part leads on from `since`.

        Of a home that was deleted or lost, all is one part.
        """
        if self.is_deleted or self.is_gone or len(self.turns) <= turns:
            yield self
            return
        for start in range(0, len(self.turns), turns):
            end = start + turns
            is_last = end >= len(self.turns)
            yield replace(
                self,
                cursor=self.cursor if is_last else since,
                turns=self.turns[start:end],
                state=None if start else self.state,
                lost=0 if start else self.lost,
            )


class Archive(Protocol):
    """An open archive. `apply` runs in a separate thread, everything else on the loop."""

    async def prepare(self, progress: Progress) -> None:
        """What must be done before it can be asked; says how far it is. Raises ArchiveDown."""

    def apply(self, changes: list[Change]) -> Late:
        """Make these changes, in this order and for good.

        Returns the sessions that had ended before turns of theirs were put. A turn of a session
        that is said to be deleted is not put.

        Raises:
            OSError, sqlite3.Error: they are not made, or nobody knows; they can be made again.
        """

    async def find(self, names: Sequence[bytes]) -> list[str]:
        """The homes of turns with any of these names, MAX_HOMES of each. Raises ArchiveDown."""

    async def news(self, home: str, since: Cursor, knows: Callable[[str], bool]) -> News:
        """What happened to a home; turns that the reader `knows` come without their data.

        Raises:
            ArchiveDown: it does not answer.
        """

    async def sessions(self, since: Cursor) -> tuple[list[str], Cursor]:
        """The names of sessions to which anything happened since, deleted ones too.

        Raises:
            ArchiveDown: it does not answer.
        """

    async def states(self, names: Sequence[str]) -> dict[str, SessionState]:
        """What is said of these sessions, as far as there are such. Raises ArchiveDown."""

    async def get(self, table: Table, name: str) -> bytes | None:
        """Something that was kept by name. Raises ArchiveDown."""

    async def named(self, table: Table) -> list[tuple[str, bytes]]:
        """All that was kept by name, the oldest first. Raises ArchiveDown."""

    async def workers_version(self) -> str:
        """What changes whenever a worker is registered or removed. Raises ArchiveDown."""

    def has_news(self, since: Cursor) -> bool:
        """Whether anything may have happened since; False only where that is certain."""

    async def number(self) -> int:
        """A number below ROUTERS that no other router has had lately. Raises ArchiveDown."""

    async def last_seq(self) -> int:
        """A number that no turn exceeds, where one can be known; else 0. Raises ArchiveDown."""

    async def bind(self, name: str, value: bytes) -> bytes:
        """What was first bound to a name: `value` now, if nothing was. Raises ArchiveDown."""

    async def close(self) -> None:
        """Let go of it; what was applied stays."""
