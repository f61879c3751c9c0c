"""Retention: what leaves a journal by itself, so that its disk is not filled.

    closed, exported    once it has not changed for `max_age_s`; and, the least recently changed
                        first, while the journal is larger than `max_bytes`
    closed              likewise, while it is larger than `hard_bytes` and nothing exported is left
    all others          never

A session leaves as one that is deleted does, in a transaction of its own. The writer's thread calls
`step` between what it writes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from slime_router.journal.closings import Closings
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

    @property
    def is_any(self) -> bool:
        """Whether there is one at all."""
        return (self.max_age_s, self.max_bytes, self.hard_bytes) != (None, None, None)


@dataclass(slots=True)
class RetentionCounts:
    """What this process has dropped since its start."""

    sessions: int = 0
    unexported: int = 0  # of those


class Shelf(Protocol):
    """Sessions that can be dropped; `slime_router.archive.sqlite` has them."""

    closings: Closings

    def drop_closed(self, name: bytes) -> bool:
        """Drop a session, unless it is not closed any more; whether it was dropped."""


class Retention:
    """Drops what is too old or too much, some at a time."""

    def __init__(self, shelf: Shelf, limits: RetentionLimits) -> None:
        self._shelf = shelf
        self._limits = limits
        self._learnt: int | None = -1  # how far what older routers closed is known; None: all
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
        if self._learnt is not None:
            self._learnt = closings.learn(self._learnt)
            return 0.0
        has_dropped = self._drop_some()
        return 0.0 if closings.give_back() or has_dropped else PERIOD_S

    def _drop_some(self) -> bool:
        """Whether there may be more to drop."""
        unexported: list[str] = []
        name: bytes | None = None
        for _ in range(STEP):
            name, is_exported = self._next()
            if name is None:
                break
            if self._shelf.drop_closed(name):
                self.counts.sessions += 1
                if not is_exported:
                    self.counts.unexported += 1
                    unexported.append(as_text(name))
        if unexported:
            logger.warning(
                "the journal is larger than --journal-hard-bytes: it dropped sessions that nobody"
                " has exported: %.300s",
                ", ".join(unexported),
            )
        return name is not None

    def _next(self) -> tuple[bytes | None, bool]:
        """What is dropped next, and whether it was exported."""
        limits, closings = self._limits, self._shelf.closings
        if limits.max_age_s is not None:
            name = closings.oldest(is_exported=True, before=closings.now() - limits.max_age_s)
            if name is not None:
                return name, True
        soft = limits.hard_bytes if limits.max_bytes is None else limits.max_bytes
        if soft is None or (used := closings.used()) <= soft:
            self._is_over = False
            return None, True
        name = closings.oldest(is_exported=True)
        if name is not None:
            return name, True
        if limits.hard_bytes is not None and used > limits.hard_bytes:
            name = closings.oldest(is_exported=False)
        if name is None and not self._is_over:  # warn once
            self._is_over = True
            logger.warning(
                "the journal holds %d bytes, more than its limit, and no session that may be"
                " dropped: close and export some",
                used,
            )
        return name, False
