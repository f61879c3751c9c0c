"""Finds out which workers can be reached, and reports it to the pool.

A paused worker's own `/health` hangs, so a probe checks only whether the front end answers at all:
any status below 500 means up. A worker that refuses connections is down at once; one that is silent
is down after `failure_threshold` probes, and what it runs then moves to others. A worker that is
down is probed until it comes back or is removed, a removed one until it has nothing in flight.
One that says 503 at once shuts down or starts up: it gets nothing new meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from slime_router.engine.client import WorkerClient
from slime_router.engine.exchange import NotTaken, WorkerAnswer
from slime_router.errors import OutOfDescriptors, RouterError
from slime_router.pool.backoff import Backoff
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)

Probe: TypeAlias = Literal["answers", "refuses", "silent"]

ENDPOINT = "/model_info"  # answers even while generation is paused
PING = "/ping"  # 200 unless the worker shuts down or starts up, or once failed its own check
MODELS = "/v1/models"
HEALTH = "/health"  # says 503 at once in the first two cases; else it may generate a token
_SHORT_TIMEOUT_S = 1.0  # a paused worker is silent at `/health`
_OK, _REFUSES = 200, 503
_AGAIN_S = 1.0  # between probes of a worker that may be dead


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """How workers are probed; flag names and meanings are those of sglang-router.

    Without `is_enabled`, only workers that failed a request are probed.
    """

    is_enabled: bool = True
    endpoint: str = ENDPOINT
    interval_s: float = 10.0
    timeout_s: float = 10.0
    failure_threshold: int = 3
    success_threshold: int = 1
    startup_timeout_s: float = 1800.0


class Health:
    """Runs one watching task for each worker of the pool, as workers come and go.

    `on_up(worker)` is called when a worker answers for the first time, again, after a request to
    it failed, or with another tokenizer's name.
    """

    def __init__(
        self,
        pool: WorkerPool,
        client: WorkerClient,
        settings: HealthSettings,
        supervisor: Supervisor,
        *,
        on_up: Callable[[Worker], None] = lambda _: None,
    ) -> None:
        self.deaths = 0
        self.recoveries = 0
        self._pool = pool
        self._client = client
        self._settings = settings
        self._supervisor = supervisor
        self._on_up = on_up
        self._backoff = Backoff(initial_s=0.1, max_s=settings.interval_s)
        self._watches: dict[Worker, asyncio.Task[None]] = {}
        self._alarms: dict[Worker, asyncio.Event] = {}
        self._is_running = False
        pool.subscribe(self._look)

    def __repr__(self) -> str:
        return f"<Health of {len(self._watches)} workers>"

    async def __aenter__(self) -> Health:
        self._is_running = True
        self._look()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_running = False
        await self._supervisor.stop(tuple(self._watches.values()))

    def suspect(self, worker: Worker) -> None:
        """A request to the worker failed: probe it now."""
        alarm = self._alarms.get(worker)
        if alarm is not None:
            alarm.set()

    def _look(self) -> None:
        """Starts watching new workers; watches end by themselves."""
        if not self._is_running:
            return
        for worker in self._pool.list():
            if worker not in self._watches:
                self._alarms[worker] = asyncio.Event()
                self._alarms[worker].set()  # probe at once: is it there?
                state = _State(self._settings, self._backoff, random.random)
                watch = partial(self._watch, worker, state)
                task = self._supervisor.start("health watch", watch, about=worker.url)
                self._watches[worker] = task
                task.add_done_callback(partial(self._forget, worker))
        for worker, alarm in self._alarms.items():
            if self._is_gone(worker):
                alarm.set()

    def _is_gone(self, worker: Worker) -> bool:
        return worker not in self._pool and not worker.in_flight

    def _forget(self, worker: Worker, _: object) -> None:
        del self._watches[worker], self._alarms[worker]

    async def _watch(self, worker: Worker, state: _State) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            is_suspected = await self._rest(worker, state.rest_s(worker))
            if self._is_gone(worker):
                return
            try:
                probe = await self._probe(worker, state)
            except OutOfDescriptors:
                continue
            if probe == "answers":
                await self._answered(worker, state, is_suspected=is_suspected)
                continue
            if not state.was_seen and clock() - began > self._settings.startup_timeout_s:
                logger.error("worker %s did not come up in time; still probing it", worker.url)
                began = clock()
            if state.failed(probe) and worker.is_up:
                self._lost(worker, probe, is_new=not state.was_seen)

    async def _rest(self, worker: Worker, rest_s: float | None) -> bool:
        """Waits until the next probe is due. Returns whether a failed request is the reason."""
        alarm = self._alarms[worker]
        try:
            async with asyncio.timeout(rest_s):
                await alarm.wait()
        except TimeoutError:
            return False
        alarm.clear()
        return True

    async def _probe(self, worker: Worker, state: _State) -> Probe:
        known = worker.weight_version
        endpoint = ENDPOINT if worker.is_resting else self._settings.endpoint
        try:
            answer = await self._client.ask(
                worker, "GET", endpoint, headers={}, timeout_s=self._settings.timeout_s
            )
        except OutOfDescriptors:  # this says nothing about the worker
            raise
        except RouterError as exc:
            logger.debug("probe failed: worker=%s reason=%s", worker.url, exc)
            cause = exc.__cause__
            return "refuses" if isinstance(cause, NotTaken) and cause.is_refused else "silent"
        if answer.status >= 500:
            if answer.status == _REFUSES:
                self._note_refusing(worker, True)
            return "silent"
        info = answer.fields
        state.named(info.get("tokenizer_path"))
        version = info.get("weight_version")
        # Trainers update workers behind our back; a change made meanwhile is newer than the answer.
        if (
            isinstance(version, str | int)
            and not isinstance(version, bool)
            and worker.observed(version, known=known)
        ):
            self._pool.note_versions()
        return "answers"

    async def _ask_whether_it_drains(self, worker: Worker) -> None:
        """A worker that shuts down says so, and serves what it has; it may come back as well.

        `/ping` costs a worker nothing. Only one that is not well there, or has no such route, is
        asked for its `/health`, which tells a shutdown from a check that failed some time ago.
        """
        if worker.is_resting:
            return
        if await self._status(worker, PING) == _OK:
            self._note_refusing(worker, False)
            return
        status = await self._status(worker, HEALTH)
        if status is not None:
            self._note_refusing(worker, status == _REFUSES)

    async def _status(self, worker: Worker, path: str) -> int | None:
        """The status of `_told`."""
        answer = await self._told(worker, path)
        return None if answer is None else answer.status

    async def _told(self, worker: Worker, path: str) -> WorkerAnswer | None:
        """What a worker answers at `path`; None if it is silent: somebody may have paused it."""
        timeout_s = min(_SHORT_TIMEOUT_S, self._settings.timeout_s)
        try:
            return await self._client.ask(worker, "GET", path, headers={}, timeout_s=timeout_s)
        except RouterError:
            return None

    def _note_refusing(self, worker: Worker, is_refusing: bool) -> None:
        if self._pool.refuses(worker, is_refusing):
            words = "takes nothing new: it answers 503" if is_refusing else "takes requests again"
            logger.warning("worker %s %s", worker.url, words)

    async def _answered(self, worker: Worker, state: _State, *, is_suspected: bool) -> None:
        is_new = not state.was_seen
        if state.answered() and not worker.is_up:
            self._pool.mark_up(worker)
            self.recoveries += not is_new
            logger.info("worker %s is %s", worker.url, "up" if is_new else "back")
            is_new = True
        await self._ask_adapters(worker)
        if is_new or is_suspected or state.is_another or worker.misfit is not None:
            self._on_up(worker)
        await self._ask_whether_it_drains(worker)
        if self._settings.is_enabled:
            await self._ask_load(worker)

    async def _ask_adapters(self, worker: Worker) -> None:
        """Asks for the adapters: trainers load them behind our back, and workers start with some.

        A model's card names its parent only where it is an adapter.
        """
        answer = await self._told(worker, MODELS)
        if answer is None or answer.status != 200:
            return
        cards = _objects(answer.fields.get("data"))
        names = [card.get("id") for card in cards if card.get("parent") is not None]
        self._pool.adapters.listed(worker, names)

    async def _ask_load(self, worker: Worker) -> None:
        """Asks the worker for the length of its queue; older workers do not report it.

        Of several data-parallel ranks, each has its own; while any is away, SGLang deals out.
        """
        try:
            answer = await self._client.ask(
                worker, "GET", "/v1/loads", headers={}, timeout_s=self._settings.timeout_s
            )
        except RouterError:
            return  # the next probe will show why
        ranks = _objects(answer.fields.get("loads") if answer.status == 200 else None)
        queued = [_count(rank.get("num_waiting_reqs")) for rank in ranks]
        kv_tokens = [_count(rank.get("max_total_num_tokens")) for rank in ranks]
        worker.reported(queued=sum(queued), kv_tokens=sum(kv_tokens))
        are_all = [rank.get("dp_rank") for rank in ranks] == list(range(len(ranks)))
        reports = tuple(zip(queued, kv_tokens, strict=True)) if are_all else ()
        self._pool.ranks.reported(worker, reports)

    def _lost(self, worker: Worker, probe: Probe, *, is_new: bool) -> None:
        words = "refuses connections" if probe == "refuses" else "answers no probe"
        self._pool.mark_down(worker, f"it {words}", was_stopped=probe == "refuses")
        cut = self._client.give_up(worker)
        if is_new:
            logger.info("worker %s is not there yet", worker.url)
            return
        self.deaths += 1
        logger.warning("worker %s is down: it %s; %d requests move on", worker.url, words, cut)


class _State:
    """The outcome of one worker's probes so far.

    Attributes:
        was_seen: it has answered.
        is_another: the last answer came from a server of another model than the one before.
    """

    def __init__(
        self, settings: HealthSettings, backoff: Backoff, random: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._backoff = backoff
        self._random = random
        self._failures = 0
        self._successes = 0
        self._tokenizer_path: object = None
        self.was_seen = False
        self.is_another = False

    def rest_s(self, worker: Worker) -> float | None:
        """Seconds until the next probe; None to wait until a request fails."""
        if not worker.is_up:
            return self._backoff.delay_s(self._failures, self._random)
        if self._failures or worker.is_refusing:
            return min(_AGAIN_S, self._settings.interval_s)
        if worker.misfit is not None:
            return self._settings.interval_s
        return self._settings.interval_s if self._settings.is_enabled else None

    def answered(self) -> bool:
        """The worker answered; True if it may be trusted to keep doing so."""
        self._failures = 0
        self._successes += 1
        is_trusted = not self.was_seen or self._successes >= self._settings.success_threshold
        self.was_seen = True
        return is_trusted

    def named(self, tokenizer_path: object) -> None:
        """What the worker says of its tokenizer; unlike its model's path, no update changes it."""
        known, self._tokenizer_path = self._tokenizer_path, tokenizer_path
        self.is_another = None not in (known, tokenizer_path) and known != tokenizer_path

    def failed(self, probe: Probe) -> bool:
        """The worker did not answer; True if it now counts as down."""
        self._successes = 0
        self._failures += 1
        return probe == "refuses" or self._failures >= self._settings.failure_threshold


def _objects(value: object) -> list[dict[str, Any]]:
    listed = value if isinstance(value, list) else []
    return [each for each in listed if isinstance(each, dict)]


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
