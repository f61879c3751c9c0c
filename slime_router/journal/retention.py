"""Retention: what leaves a journal by itself, so that its disk is not filled.

    closed, exported    once it has not changed for `max_age_s`; and, the least recently changed
                        first, while the journal is larger than `max_bytes`
    closed              likewise, while it is larger than `hard_bytes` and nothing exported is left
    all others          never, if somebody opened them

A session that nobody opened, and turns without one, count as closed once they had no turn for
`idle_s`; and such turns as exported, as nobody ever can.

A closed session leaves as one that is deleted does, all else as if it had never been; each in its
own transaction. The writer's thread calls `step` between what it writes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from slime_router.journal.closings import Closings, Leaving
from slime_router.journal.database import as_text

logger = logging.getLogger(__name__)

PERIOD_S = 5.0  # between looks, where nothing is to be dropped
STEP = 4  # sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionLimits:
    """What may stay; None is for all."""

    max_age_s: float | None = None
    max_bytes: int | None = None
    hard_bytes: int | None = None
    idle_s: float = 0.0

    @property
    def is_any(self) -> bool:
        """Whether there is one at all."""
        return (self.max_age_s, self.max_bytes, self.hard_bytes) != (None, None, None)


@dataclass(slots=True)
class RetentionCounts:
    """What this process has dropped since its start."""

    sessions: int = 0
    unexported: int = 0  # of those
    turns: int = 0  # of those, and those without a session


class Shelf(Protocol):
    """What can be dropped; `slime_router.archive.database` has it."""

    closings: Closings

    def drop(self, leaving: Leaving) -> int | None:
        """Drop it, and how many turns went; None where it has changed since it was found."""


class Retention:
    """Drops what is too old or too much, some at a time."""

    def __init__(self, shelf: Shelf, limits: RetentionLimits) -> None:
        self._shelf = shelf
        self._limits = limits
        self._sessions: int | None = -1  # how far those of older routers are known; None: all
        self._homes: bytes | None = b""  # likewise
        self._is_over = False  # nothing more may be dropped, and the journal is too large
        self.counts = RetentionCounts()

    def __repr__(self) -> str:
        return f"<Retention {self._limits}>"

    def step(self) -> float:
        """A little of what is to be done; how many seconds the next step can wait.

        Raises:
            sqlite3.Error: the journal cannot be read or written.
        """
        closings = self._shelf.closings
        if self._sessions is not None:
            self._sessions = closings.learn_sessions(self._sessions)
            return 0.0
        if self._homes is not None:
            self._homes = closings.learn_homes(self._homes)
            return 0.0
        has_dropped = self._drop_some()
        return 0.0 if closings.give_back() or has_dropped else PERIOD_S

    def _drop_some(self) -> bool:
        """Whether there may be more to drop."""
        unexported: list[str] = []
        leaving: Leaving | None = None
        for _ in range(STEP):
            leaving = self._next()
            if leaving is None:
                break
            turns = self._shelf.drop(leaving)
            if turns is None:
                continue
            self.counts.turns += turns
            self.counts.sessions += leaving.is_session
            if leaving.session is not None and not leaving.is_exported:
                self.counts.unexported += 1
                unexported.append(as_text(leaving.session))
        if unexported:
            logger.warning(
                "the journal is larger than --journal-hard-bytes: it dropped sessions that nobody"
                " has exported: %.300s",
                ", ".join(unexported),
            )
        return leaving is not None

    def _next(self) -> Leaving | None:
        """What is dropped next."""
        limits, closings = self._limits, self._shelf.closings
        if limits.max_age_s is not None:
            oldest = self._oldest(is_exported=True, age_s=limits.max_age_s)
            if oldest is not None:
                return oldest
        soft = limits.hard_bytes if limits.max_bytes is None else limits.max_bytes
        if soft is None or (used := closings.used()) <= soft:
            self._is_over = False
            return None
        oldest = self._oldest(is_exported=True)
        if oldest is None and limits.hard_bytes is not None and used > limits.hard_bytes:
            oldest = self._oldest(is_exported=False)
        if oldest is None and not self._is_over:  # warn once
            self._is_over = True
            logger.warning(
                "the journal holds %d bytes, more than its limit, and nothing that may be"
                " dropped: close and export some sessions",
                used,
            )
        return oldest

    def _oldest(self, *, is_exported: bool, age_s: float | None = None) -> Leaving | None:
        closings, idle_s = self._shelf.closings, self._limits.idle_s
        now = closings.now()
        return closings.oldest(
            is_exported=is_exported,
            before=float("inf") if age_s is None else now - age_s,
            idle_before=now - (idle_s if age_s is None else max(age_s, idle_s)),
        )
