"""The one thread that writes the journal, many changes in one transaction.

Whoever needs a change to be durable waits for `written`: while one transaction is committed, the
next ones gather, so a thousand waiting replies cost one commit.

    writing --a commit fails--> degraded: nobody waits, changes gather, a try every `retry_s`
    writing --one takes longer than `patience_s`--> degraded
    degraded --a commit succeeds--> writing; nothing was lost
    degraded --more gathers than may--> lost: nothing is written any more, until a restart

Between transactions, the thread keeps up what is written to, a step at a time.

With `stops_on_error` the first failure is also `lost`, and `on_lost` is called.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Protocol

from slime_router.journal.database import Change, Late, Made

logger = logging.getLogger(__name__)

RETRY_S = 1.0
UPKEEP_RETRY_S = 30.0
CLOSE_TIMEOUT_S = 30.0  # for what is left; a file system that hangs may keep the rest
MAX_WAITING = 200_000  # changes that gather while nothing can be written
BATCH = 2_000  # changes of one transaction: it blocks nobody, but those who wait for it


class Target(Protocol):
    """What is written to; each archive is one."""

    def apply(self, changes: list[Change]) -> Late | None:
        """Make these changes durable; which sessions had ended before turns of theirs came."""


class Upkeep(Protocol):
    """What is done beside writing; `slime_router.journal.retention` has one."""

    def step(self) -> float:
        """A little of it; how many seconds the next step can wait. Raises sqlite3.Error."""


@dataclass(slots=True)
class WriterCounts:
    """What the writer has done since the start."""

    changes: int = 0
    commits: int = 0
    failures: int = 0
    lost: int = 0  # changes that will never be written


class JournalWriter:
    """Takes changes on the loop, and writes them in its own thread between `start` and `close`."""

    def __init__(
        self,
        target: Target,
        *,
        stops_on_error: bool = False,
        on_lost: Callable[[str], None] = lambda _: None,
        on_late: Callable[[Late], None] = lambda _: None,
        retry_s: float = RETRY_S,
        max_waiting: int = MAX_WAITING,
        upkeep: Upkeep | None = None,
        patience_s: float | None = None,
    ) -> None:
        self._patience_s = patience_s
        self._upkeep = upkeep
        self._upkeep_at = 0.0  # when its next step is due, on the monotonic clock
        self._has_warned = False
        self._target = target
        self._stops_on_error = stops_on_error
        self._on_lost = on_lost
        self._on_late = on_late
        self._retry_s = retry_s
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._wakeup = threading.Condition(self._lock)
        self._waiting: deque[Made] = deque()
        self._put = self._done = 0  # changes, in all
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._is_calling = False  # the thread is about to be woken
        self._trouble: str | None = None
        self._is_lost = False
        self.counts = WriterCounts()

    def __repr__(self) -> str:
        return f"<JournalWriter {self.waiting} waiting, {self._trouble or 'well'}>"

    @property
    def waiting(self) -> int:
        """Changes that are not written yet."""
        return self._put - self._done

    @property
    def position(self) -> int:
        """How many changes were put, in all."""
        return self._put

    def has_written(self, position: int) -> bool:
        """Whether what was put up to there is durable."""
        return not self._is_lost and self._done >= position

    @property
    def trouble(self) -> str | None:
        """Why nothing is written at present; None where it is."""
        return self._trouble

    @property
    def is_lost(self) -> bool:
        """Whether nothing will be written until a restart."""
        return self._is_lost

    def start(self) -> None:
        """Begin to write; what was put before comes first."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Write what is waiting, once more where that failed before, and end the thread."""
        if self._thread is None:
            return
        with self._wakeup:
            self._is_closing = True
            self._wakeup.notify()
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_S)
        if self.waiting:
            logger.error("the journal lacks the last %d changes: %s", self.waiting, self._trouble)

    def put(self, made: Made) -> None:
        """Write this change after those that were put before."""
        if self._is_lost:
            self.counts.lost += 1
            return
        with self._lock:
            self._waiting.append(made)
            self._put += 1
        if not self._is_calling and self._loop is not None:
            self._is_calling = True
            self._loop.call_soon(self._call)
        if self._trouble is not None and self.waiting > self._max_waiting:
            self._lose(f"{self.waiting} changes wait, more than may: {self._trouble}")

    async def written(self) -> str | None:
        """Wait until all that was put is durable; returns why it is not, if it cannot be."""
        if self._trouble is not None or self._done >= self._put:
            return self._trouble
        assert self._loop is not None
        waiter, position = self._loop.create_future(), self._put
        self._waiters.append((position, waiter))
        try:
            async with asyncio.timeout(self._patience_s):
                await waiter
        except TimeoutError:
            if self._done < position:
                self._note_trouble(f"no answer within {self._patience_s:g} s")
        return self._trouble

    # In the thread

    def _run(self) -> None:
        while (batch := self._batch()) is not None:
            if not batch:
                self._keep_up()
                continue
            is_last_try = self._is_closing
            failure = self._write(batch)
            self._tell(self._note, len(batch), failure)
            if failure is None:
                self._keep_up()
                continue
            if is_last_try:
                return
            self._pause()

    def _batch(self) -> list[Made] | None:
        """What is to be written next, left where it is until it is; None once all is done.

        Nothing where it is time for upkeep.
        """
        with self._wakeup:
            while not self._waiting:
                if self._is_closing:
                    return None
                if not self._wakeup.wait(self._idle_s()):
                    return []
            return list(islice(self._waiting, BATCH))

    def _idle_s(self) -> float | None:
        """How long there is nothing to do, if nobody puts anything."""
        return None if self._upkeep is None else max(self._upkeep_at - monotonic(), 0.0)

    def _keep_up(self) -> None:
        if self._upkeep is None or self._upkeep_at > monotonic():
            return
        try:
            wait_s = self._upkeep.step()
        except (sqlite3.Error, OSError) as exc:
            wait_s = UPKEEP_RETRY_S
            if not self._has_warned:  # once, as long as it goes on
                logger.warning("nothing is dropped from the journal at present: %s", exc)
            self._has_warned = True
        except Exception:  # a fault of ours: what is written must not wait for it
            wait_s = UPKEEP_RETRY_S
            if not self._has_warned:
                logger.exception("a fault while things were dropped from the journal")
            self._has_warned = True
        else:
            self._has_warned = False
        self._upkeep_at = monotonic() + wait_s

    def _write(self, batch: list[Made]) -> str | None:
        try:
            late = self._target.apply([change for made in batch if (change := self._packed(made))])
        except (sqlite3.Error, OSError) as exc:
            return " ".join(str(exc).split()) or type(exc).__name__
        except Exception as exc:  # a fault of ours: a thread that ends keeps all replies waiting
            if self._trouble is None:  # once, as long as it goes on
                logger.exception("a fault while the journal was written")
            return f"{type(exc).__name__}: {exc}"
        if late:
            self._tell(self._on_late, late)
        with self._wakeup:
            for _ in batch[: len(self._waiting)]:  # none is left where all was given up meanwhile
                self._waiting.popleft()
        return None

    def _packed(self, made: Made) -> Change | None:
        try:
            return made()
        except Exception:  # whatever it is: one such change must not keep all others waiting
            logger.exception("a change cannot be written to the journal")
            self.counts.lost += 1
            return None

    def _pause(self) -> None:
        """Waits before the next try."""
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._is_closing or self._is_lost, self._retry_s)

    def _tell(self, what: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.debug("the journal was written after the loop had ended")

    # On the loop

    def _call(self) -> None:
        """Wakes the thread, once for all that came in one turn of the loop: they go together."""
        self._is_calling = False
        with self._wakeup:
            self._wakeup.notify()

    def _note(self, count: int, failure: str | None) -> None:
        """A transaction has ended."""
        if self._is_lost:
            return
        if failure is not None:
            self._failed(failure)
            return
        if self._trouble is not None:
            logger.warning("the journal is written again; nothing is missing in it")
            self._trouble = None
        self._done += count
        self.counts.changes += count
        self.counts.commits += 1
        while self._waiters and self._waiters[0][0] <= self._done:
            _wake(self._waiters.popleft()[1])

    def _failed(self, failure: str) -> None:
        self.counts.failures += 1
        self._note_trouble(failure)
        if self._stops_on_error:
            self._lose(failure)

    def _note_trouble(self, reason: str) -> None:
        is_news = self._trouble is None
        self._trouble = reason
        if is_news:
            logger.error("the journal cannot be written: %s", reason)
        while self._waiters:  # with a note, the replies go out
            _wake(self._waiters.popleft()[1])

    def _lose(self, reason: str) -> None:
        """Give up: what comes after a gap could not be read without what is in the gap."""
        self._trouble = reason
        self._is_lost = True
        with self._wakeup:
            self.counts.lost += len(self._waiting)
            self._waiting.clear()
            self._done = self._put
            self._wakeup.notify()
        logger.critical("the journal takes nothing more until a restart: %s", reason)
        self._on_lost(reason)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():  # whoever waited may have left
        waiter.set_result(None)
