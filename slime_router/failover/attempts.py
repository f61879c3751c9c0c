"""The tries of one request: which worker is next, how long to wait, when to give up.

A worker that could not be reached is passed over at once. One that is busy or broke is passed over
too, but the number of such tries is limited. There is a delay only when no other worker is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from slime_router.choices import Resume
from slime_router.engine.exchange import NotTaken
from slime_router.errors import (
    NoWorker,
    RouterError,
    TooManyRequests,
    WorkerFailed,
    WorkerRefused,
    WorkerTimeout,
)
from slime_router.failover.stitch import Stitch
from slime_router.pool.backoff import Backoff
from slime_router.pool.lease import Lease
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Kind, Need, Worker
from slime_router.types import WeightVersion
from slime_router.values import replace
from slime_router.waiting.line import Line, Place

logger = logging.getLogger(__name__)

SHUTS_DOWN = 503  # or its queue is full
BUSY = (429, SHUTS_DOWN)  # a worker's queue is full: another's may not be
# Workers that broke before any output: the request itself may be killing them. When all of a small
# fleet is killed at once, an innocent request loses three.
MAX_BROKEN = 4
MAX_ABORTS = 5  # by workers, in a row and without a token in between
STEADY_S = 5.0  # a generation that ran for this long may resume at once: weights were updated

Failure: TypeAlias = NotTaken | RouterError
_Accused: TypeAlias = dict[str, set[Worker]]  # workers by how they failed


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """Limits on waits and retries.

    Attributes:
        request_timeout_s: for a whole generation, with all its tries and waits.
        worker_wait_s: how long a request waits while no worker can be reached.
        pause_wait_s: how long it waits while generation is paused.
        room_wait_s: how long it waits while workers have as many requests as they may.
        resume_aborted: which endpoints' generations resume by themselves if a worker aborts them.
    """

    request_timeout_s: float
    worker_wait_s: float = 30.0
    pause_wait_s: float = 600.0
    room_wait_s: float = 3600.0
    resume_aborted: Resume = "chat"


@dataclass(slots=True, eq=False)
class Run:
    """A generation in progress: whoever granted the latest `lease` runs it as `name`, or has."""

    lease: Lease | None = None
    name: str = ""
    is_cancelled: bool = False  # its abort was requested: it must not continue

    @property
    def worker(self) -> Worker | None:
        """The worker that has it now; None if none has."""
        lease = self.lease
        return lease.worker if lease is not None and lease.is_open else None


@dataclass(slots=True, eq=False)
class _Trouble:
    """What went wrong with the tries of one request."""

    accused: _Accused = field(default_factory=dict)  # before they sampled anything
    cut_short: _Accused = field(default_factory=dict)  # in the middle of their output
    stale: set[str] = field(default_factory=set)  # URLs whose kept connection was closed
    tried_prefills: set[str] = field(default_factory=set)  # URLs
    short_stays: int = 0  # in a row, that ended before the output did
    resumed_at: tuple[WeightVersion | None, int] | None = None  # see `may_resume`
    # In a row, without a token in between:
    retries: int = 0
    broken: int = 0
    aborts: int = 0


class Cancelled(Exception):
    """The abort of the generation was requested while no worker had it."""


class Dispatcher:
    """Where requests find workers and wait for them; shared by all requests.

    `on_suspicion(worker)` is called when a worker could not be reached or broke a connection.
    """

    def __init__(
        self,
        pool: WorkerPool,
        settings: RelaySettings,
        backoff: Backoff,
        *,
        on_suspicion: Callable[[Worker], None],
        random: Callable[[], float],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.pool = pool
        self.settings = settings
        self.backoff = backoff
        self.on_suspicion = on_suspicion
        self.random = random
        self.line: Line[Worker] = Line()  # those that wait for a worker
        pool.subscribe(self.line.wake)
        pool.on_room = self.line.offer

    def __repr__(self) -> str:
        return f"<Dispatcher to {self.pool!r}>"

    @contextmanager
    def waiting(
        self, need: Need, tried: Collection[str], kind: Kind | None
    ) -> Iterator[Place[Worker]]:
        """For the block, a request that needs this waits for a worker that was not tried."""
        pool, is_pinned = self.pool, need.target is not None
        self.counts["waited"] += 1
        pool.note_pinned(+is_pinned)
        try:
            with self.line.place(lambda worker: pool.can_take(worker, need, tried, kind)) as place:
                yield place
        finally:
            pool.note_pinned(-is_pinned)


class Attempts:
    """The tries of one request, for the block: which workers it tried, when to wait or stop."""

    def __init__(self, dispatcher: Dispatcher, need: Need, run: Run) -> None:
        self._dispatcher = dispatcher
        self._pool = dispatcher.pool
        self._settings = dispatcher.settings
        self._need = need
        self._run = run
        self._clock = asyncio.get_running_loop().time
        self._deadline = self._clock() + self._settings.request_timeout_s
        self._worker: Worker | None = None  # the latest one tried
        self._tried: set[str] = set()
        self.is_sampling = False  # the worker, since it was leased
        self._entered_at = 0.0
        self._known_trouble: _Trouble | None = None

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, *_: object) -> None:
        """The client may have left before the end: a worker that broke off alone is at fault."""
        if (trouble := self._known_trouble) is not None:
            self._settle(trouble.cut_short, is_good=False)

    @property
    def _trouble(self) -> _Trouble:
        """What went wrong so far: with most requests nothing does."""
        if self._known_trouble is None:
            self._known_trouble = _Trouble()
        return self._known_trouble

    def left_s(self) -> float:
        """How much of the request timeout is left."""
        return max(self._deadline - self._clock(), 0.001)

    async def lease(self, name: str = "") -> Lease:
        """Leases a worker, waiting while one may become available; it gets the request as `name`.

        Raises:
            NoWorker: there is none, and none came in time.
            Cancelled: the abort of the request was asked for meanwhile.
        """
        self._worker = None
        lease = await self._found(self._need, self._tried)
        self._worker, self.is_sampling = lease.worker, False
        self._entered_at = self._clock()
        self._run.lease, self._run.name = lease, name
        return lease

    async def prefill(self) -> Lease:
        """Leases a worker to compute the prompt for the one leased before; the caller closes it.

        Raises:
            NoWorker: there is none, and none came in time.
            Cancelled: the abort of the request was asked for meanwhile.
        """
        need = replace(self._need, target=None)
        return await self._found(need, self._trouble.tried_prefills, "prefill")

    def prefill_failed(self, prefill: Worker) -> None:
        """The next try has another worker compute its prompt, where there is one."""
        self._trouble.tried_prefills.add(prefill.url)

    async def _found(self, need: Need, tried: set[str], kind: Kind | None = None) -> Lease:
        since = self._clock()
        try:
            return self._look(need, tried, kind)
        except NoWorker as exc:
            why, look_at = exc, self._look_at(exc, since)
        with self._dispatcher.waiting(need, tried, kind) as place:
            while True:
                await place.wait(look_at)
                if place.offered is None:
                    tried.clear()  # something else has changed
                try:
                    lease = self._look(need, tried, kind)
                except NoWorker as exc:
                    if (exc.is_full, exc.is_paused) != (why.is_full, why.is_paused):
                        since = self._clock()
                    why, look_at = exc, self._look_at(exc, since)
                else:
                    place.taken = lease.worker
                    return lease

    def _look(self, need: Need, tried: set[str], kind: Kind | None) -> Lease:
        """Leases a worker that is there now: one that was not tried, or else any."""
        if self._run.is_cancelled:
            raise Cancelled
        try:
            return self._pool.lease(need, tried, kind=kind)
        except NoWorker as exc:
            if not tried or exc.is_full:
                raise
        tried.clear()
        return self._pool.lease(need, kind=kind)

    def _look_at(self, why: NoWorker, since: float) -> float:
        """By the loop's clock, when to look again, at the latest. Raises what there is to say if
        that makes no sense: the request has waited `since` then, for the same reason.
        """
        settings = self._settings
        wait_s = settings.worker_wait_s
        if why.is_full:
            wait_s = settings.room_wait_s
        elif why.is_paused:
            wait_s = settings.pause_wait_s
        until, now = min(since + wait_s, self._deadline), self._clock()
        if why.is_temporary and now < until:
            return until if why.retry_after_s is None else min(until, now + why.retry_after_s)
        if why.is_full:
            raise TooManyRequests(f"{why.message} Try again later.") from None
        raise why

    def progress(self, lease: Lease) -> None:
        """The worker samples: the request is fine, and failures are counted from zero again."""
        self.is_sampling = True
        if (trouble := self._known_trouble) is not None:
            self._settle(trouble.accused, is_good=True)
            trouble.retries = trouble.broken = trouble.aborts = 0
        lease.answered()

    def served(self) -> None:
        """A worker has ended the output: those that broke it off were at fault."""
        if (trouble := self._known_trouble) is not None:
            self._settle(trouble.cut_short, is_good=True)

    async def failed(self, exc: Failure, stitch: Stitch | None = None) -> None:
        """The try ended with `exc`; returns when the next one is due.

        Raises:
            RouterError: there will be no other try.
        """
        worker = self._worker
        can_go_on = stitch is None or stitch.can_go_on
        if worker is None or not self._is_worth_another(exc, worker) or not can_go_on:
            raise self._final_error(exc) from exc
        if isinstance(exc, NotTaken) and exc.is_stale and worker.url not in self._trouble.stale:
            self._trouble.stale.add(worker.url)
            self._note_retry(logging.INFO, worker, exc)  # idle connections get closed: no fault
            return
        self._tried.add(worker.url)
        has_others = self._pool.has_candidates(self._need, self._tried)
        if not (isinstance(exc, NotTaken) and has_others):
            if self._trouble.retries >= self._dispatcher.backoff.max_retries:
                raise self._final_error(exc) from exc
            self._trouble.retries += 1
        sampled_len = 0 if stitch is None else len(stitch.output_ids)
        self._note_retry(logging.WARNING, worker, exc, sampled_len)
        stays = self._note_stay() if self.is_sampling else 0
        if not has_others:
            await self._back_off(
                max(self._trouble.retries, stays) - 1, at_least_s=self._pool.cooldown_s(self._need)
            )
        elif stays > MAX_BROKEN:
            await self._back_off(stays - MAX_BROKEN - 1)

    def _accuse(self, worker: Worker, exc: RouterError) -> None:
        trouble = self._trouble
        accused = trouble.cut_short if self.is_sampling else trouble.accused
        alike = accused.setdefault(exc.message, set())
        if self.is_sampling and alike == {worker}:  # again, and no other has
            self._pool.failed(worker)
        alike.add(worker)

    def _settle(self, accused: _Accused, *, is_good: bool) -> None:
        """Counts the failures of workers, once it is known whose fault they were.

        A request that works elsewhere was not at fault. Nor is a worker if another fails alike with
        the same request: otherwise one client's request could take all of them out of service.
        """
        for workers in accused.values():
            if is_good or len(workers) == 1:
                for worker in workers:
                    self._pool.failed(worker)
        accused.clear()

    def _final_error(self, exc: Failure) -> RouterError:
        for accused in (self._trouble.accused, self._trouble.cut_short):
            self._settle(accused, is_good=False)
        if not isinstance(exc, NotTaken):
            return exc
        words = f"No worker could be reached: {exc.reason}."
        return NoWorker(words, is_temporary=True, retry_after_s=self._pool.probe_s)

    def _note_retry(self, level: int, worker: Worker, exc: Failure, sampled_len: int = 0) -> None:
        self._dispatcher.counts["moved" if sampled_len else "retried"] += 1
        line = "retrying: worker=%s tokens=%d reason=%s"
        logger.log(level, line, worker.url, sampled_len, exc)

    def _is_worth_another(self, exc: Failure, worker: Worker) -> bool:
        """Whether another try may succeed; also updates the worker's record."""
        if isinstance(exc, NotTaken):
            if not exc.is_stale:
                self._dispatcher.on_suspicion(worker)
            return True
        if isinstance(exc, WorkerRefused):
            if exc.status not in BUSY:
                self._pool.succeeded(worker)
                return False
            self._pool.busy(worker)
            if exc.status == SHUTS_DOWN:
                self._dispatcher.on_suspicion(worker)
            return True
        if not isinstance(exc, WorkerFailed | WorkerTimeout):
            return False  # it is not the worker's fault
        if exc.is_misfit:
            self._pool.failed(worker)
        else:
            self._accuse(worker, exc)
        self._dispatcher.on_suspicion(worker)
        self._trouble.broken += not self.is_sampling
        return isinstance(exc, WorkerFailed) and self._trouble.broken < MAX_BROKEN

    def may_resume(self, version: WeightVersion | None) -> bool:
        """Whether an aborted generation may resume; if so, this counts as one more resumption.

        `version` is what the worker ran. A second abort under the same weights and without a pause
        in between has another reason: a trainer ends its surplus rollouts, and wants them.
        """
        if self._run.is_cancelled or self._trouble.aborts >= MAX_ABORTS:
            return False
        before, interruptions = self._trouble.resumed_at, self._pool.interruptions
        if before is not None:
            version = before[0] if version is None else version
            if before == (version, interruptions):
                return False
        self._trouble.resumed_at = (version, interruptions)
        self._trouble.aborts += 1
        self._dispatcher.counts["resumed"] += 1
        return True

    async def rest_after_abort(self) -> None:
        """A worker that keeps aborting is asked less and less often, even if tokens come."""
        await self._back_off(self._note_stay() - 1)

    def _note_stay(self) -> int:
        """How many stays in a row were short, with the one that ends now; at least one."""
        is_short = self._clock() - self._entered_at < STEADY_S
        self._trouble.short_stays = self._trouble.short_stays + 1 if is_short else 1
        return self._trouble.short_stays

    async def _back_off(self, retry: int, *, at_least_s: float = 0.0) -> None:
        delay_s = self._dispatcher.backoff.delay_s(retry, self._dispatcher.random)
        delay_s = max(delay_s, at_least_s)
        await asyncio.sleep(min(delay_s, self.left_s()))
