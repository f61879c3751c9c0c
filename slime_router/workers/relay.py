"""Brings a generation to its end, whatever becomes of the workers on the way.

Before its first token a request goes to another worker when one cannot take it. After it, what is
missing is sampled by another worker, from the prompt and the tokens so far: the client's stream
goes on. What a worker aborts, for new weights, goes on likewise when it runs again. Tries, waits
and the whole are bounded; then there is an error.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from slime_router.errors import NoWorker, RouterError, WorkerFailed, WorkerRefused, WorkerTimeout
from slime_router.types import Finish, GenerateCall, GenerateChunk, Resume
from slime_router.workers.backoff import Backoff
from slime_router.workers.client import Answer, WorkerClient
from slime_router.workers.exchange import NotTaken
from slime_router.workers.items import OpenText
from slime_router.workers.pool import Lease, WorkerPool
from slime_router.workers.stitch import Stitch
from slime_router.workers.worker import Need, Worker

log = logging.getLogger(__name__)

BUSY = (429, 503)  # a worker's queue is full: another's may not be
MAX_BROKEN = 3  # workers that broke without a word: it may be the request that kills them
MAX_ABORTS = 5  # by workers, in a row and without a token

_Failure: TypeAlias = NotTaken | RouterError


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """How long and how often.

    Attributes:
        request_timeout_s: of a whole generation, all its tries and waits.
        worker_wait_s: how long a request waits while no worker can be reached.
        pause_wait_s: how long it waits while generation is paused.
        resume_aborted: which doors' generations go on by themselves when a worker aborts them.
    """

    request_timeout_s: float
    worker_wait_s: float = 30.0
    pause_wait_s: float = 600.0
    resume_aborted: Resume = "chat"


@dataclass(slots=True, eq=False)
class Run:
    """A generation under way: `worker` has it now under the name `rid`, or nobody has."""

    worker: Worker | None = None
    rid: str = ""
    is_cancelled: bool = False  # somebody asked for its abort: it does not go on


class _Cancelled(Exception):
    """The abort of the generation was asked for while no worker had it."""


class Relay:
    """Leases workers, runs generations on them, and goes on elsewhere when they fail.

    `on_suspicion(worker)` is called when a worker could not be reached or broke a connection.
    """

    def __init__(
        self,
        pool: WorkerPool,
        client: WorkerClient,
        settings: RelaySettings,
        *,
        open_text: OpenText,
        backoff: Backoff | None = None,
        on_suspicion: Callable[[Worker], None] = lambda _: None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._pool = pool
        self._client = client
        self._settings = settings
        self._open_text = open_text
        self._backoff = backoff or Backoff()
        self._on_suspicion = on_suspicion
        self._random = random
        self._runs: dict[str, list[Run]] = {}  # by the rid that the client knows
        self._is_cumulative: bool | None = None  # whether native items repeat the ones before
        self._change = asyncio.Event()
        pool.subscribe(self._wake)

    def __repr__(self) -> str:
        return f"<Relay {self.running} runs>"

    @property
    def running(self) -> int:
        """Generations under way, those that wait for a worker too."""
        return sum(map(len, self._runs.values()))

    # Generations

    async def generate(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        """Runs `call`; yields what comes, as it comes. `call.prompt` has been made.

        Raises:
            NoWorker: none is registered, or none could be reached in time.
            WorkerRefused: the worker's own answer to a bad request.
            WorkerFailed: workers died, or their answers cannot be read.
            WorkerTimeout: the whole took longer than the request timeout.
        """
        stitch = Stitch(call, self._open_text, is_cumulative=self._is_cumulative)
        with self._running(call.rid) as run:
            attempts = _Attempts(self, _need(call), run)
            part = stitch.next_call()
            while not (stitch.is_over or run.is_cancelled):
                try:
                    async with aclosing(self._sample(part, stitch, attempts)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                    if not stitch.is_over:
                        await attempts.rest_after_abort()
                except _Cancelled:
                    break
                except (NotTaken, RouterError) as exc:
                    if run.is_cancelled:
                        break
                    await attempts.failed(exc, stitch)
                    if isinstance(exc, NotTaken) and not exc.is_stale:
                        continue  # nobody has seen its rid
                part = stitch.next_call()
            if not stitch.is_over:
                for chunk in stitch.aborted():
                    yield chunk

    async def _sample(
        self, part: GenerateCall, stitch: Stitch, attempts: _Attempts
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Runs one part on one worker; yields what the client is told of it."""
        async with attempts.lease(part.rid) as lease:
            came = self._client.generate(lease.worker, part, timeout_s=attempts.left_s())
            async with aclosing(came):
                async for chunk in came:
                    if chunk.output_ids:
                        attempts.progress(lease)
                    stitch.take(chunk)
                    if chunk.finish is None:
                        for told in stitch.told(chunk):
                            yield told
                        continue
                    lease.answered()
                    goes_on = self._goes_on(part, chunk.finish, stitch, attempts)
                    if not goes_on:
                        self._finished(part, lease.worker, stitch)
                    for told in stitch.told(chunk, goes_on=goes_on):
                        yield told
                    return

    def _goes_on(
        self, call: GenerateCall, finish: Finish, stitch: Stitch, attempts: _Attempts
    ) -> bool:
        """Whether what ended so is to be continued."""
        wanted, is_native = self._settings.resume_aborted, call.native is not None
        if finish.type != "abort" or finish.status_code:
            return False
        if wanted == "none" or (is_native and wanted != "all"):
            return False
        # Under a grammar nothing can go on in the middle; a whole reply can begin anew.
        return (stitch.can_go_on or not call.stream) and attempts.may_resume()

    def _finished(self, call: GenerateCall, worker: Worker, stitch: Stitch) -> None:
        assert call.prompt is not None
        if call.native is not None and call.stream and stitch.is_cumulative is not None:
            self._is_cumulative = stitch.is_cumulative
        output = np.array(stitch.output_ids, np.int32)
        self._pool.held(worker, call.scope, np.concatenate((call.prompt.ids, output)))

    @contextmanager
    def _running(self, rid: str) -> Iterator[Run]:
        run = Run()
        runs = self._runs.setdefault(rid, [])
        runs.append(run)
        try:
            yield run
        finally:
            runs.remove(run)
            if not runs:
                del self._runs[rid]

    def cancel(self, rid: str) -> list[tuple[Worker, str]]:
        """What runs under this rid is not to go on; says which workers have it under which name."""
        runs = self._runs.get(rid, [])
        for run in runs:
            run.is_cancelled = True
        self._wake()
        return [(run.worker, run.rid) for run in runs if run.worker is not None]

    def cancel_all(self) -> None:
        """No generation that runs now is to go on when it is aborted."""
        for run in chain.from_iterable(self._runs.values()):
            run.is_cancelled = True
        self._wake()

    # Other requests

    @asynccontextmanager
    async def reach(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: Any = None,
        can_repeat: bool = True,
        need: Need,
    ) -> AsyncIterator[Answer]:
        """Sends a request to the next worker that takes it, and leases that worker for the block.

        `can_repeat` says that `body` can be sent anew after a part of it was. The answer may have
        any status; on leaving the block it is closed.

        Raises:
            NoWorker: none is registered, or none could be reached.
            WorkerFailed: the worker closed the connection without an answer.
            WorkerTimeout: no answer within the request timeout.
        """
        attempts = _Attempts(self, need, Run())
        while True:
            try:
                async with (
                    attempts.lease() as lease,
                    self._client.exchange(
                        lease.worker,
                        method,
                        path,
                        headers=headers,
                        body=body,
                        timeout_s=attempts.left_s(),
                    ) as (_, answer),
                ):
                    lease.answered()
                    yield answer
                    return
            except NotTaken as exc:
                if exc.is_stale and not can_repeat:
                    raise WorkerFailed("The worker closed the connection.") from exc
                await attempts.failed(exc)

    def _wake(self) -> None:
        """Whoever waits for a worker asks anew."""
        self._change.set()
        self._change = asyncio.Event()


class _Attempts:
    """The tries of one request: who was asked already, how long to wait, when to stop."""

    def __init__(self, relay: Relay, need: Need, run: Run) -> None:
        self._relay = relay
        self._pool = relay._pool
        self._settings = relay._settings
        self._need = need
        self._run = run
        self._clock = asyncio.get_running_loop().time
        self._deadline = self._clock() + self._settings.request_timeout_s
        self._worker: Worker | None = None  # who was asked last
        self._tried: set[str] = set()
        self._stale: set[str] = set()
        self._is_sampling = False
        # In a row, without a token in between:
        self._retries = 0
        self._broken = 0
        self._aborts = 0

    def left_s(self) -> float:
        """How much of the request timeout is left."""
        return max(self._deadline - self._clock(), 0.001)

    @asynccontextmanager
    async def lease(self, rid: str = "") -> AsyncIterator[Lease]:
        """A worker, waited for while there may be one soon; it has the request as `rid`.

        Raises:
            NoWorker: there is none, and none came in time.
            _Cancelled: the abort of the request was asked for meanwhile.
        """
        self._worker = None
        with await self._found() as lease:
            self._worker, self._is_sampling = lease.worker, False
            self._run.worker, self._run.rid = lease.worker, rid
            try:
                yield lease
            finally:
                self._run.worker = None

    async def _found(self) -> Lease:
        began = self._clock()
        has_waited = False
        while True:
            change = self._relay._change
            if self._run.is_cancelled:
                raise _Cancelled
            try:
                return self._pool.lease(self._need, self._tried)
            except NoWorker as exc:
                if self._tried:
                    self._tried.clear()
                    continue
                settings = self._settings
                wait_s = settings.pause_wait_s if exc.is_paused else settings.worker_wait_s
                until = min(began + wait_s, self._deadline)
                if not exc.is_temporary or self._clock() >= until:
                    raise
            self._relay.counts["waited"] += not has_waited
            has_waited = True
            try:
                async with asyncio.timeout_at(until):
                    await change.wait()
            except TimeoutError:
                pass  # asked once more, and then told why there is none

    def progress(self, lease: Lease) -> None:
        """The worker samples: the request is sound, and what fails from now on fails anew."""
        if not self._is_sampling:
            self._is_sampling = True
            self._retries = self._broken = self._aborts = 0
            lease.answered()

    async def failed(self, exc: _Failure, stitch: Stitch | None = None) -> None:
        """The try came to `exc`; returns when another is due.

        Raises:
            RouterError: no other try is to be made.
        """
        worker = self._worker
        can_go_on = stitch is None or stitch.can_go_on
        if worker is None or not self._is_worth_another(exc, worker) or not can_go_on:
            raise _told(exc) from exc
        if isinstance(exc, NotTaken) and exc.is_stale and worker.url not in self._stale:
            self._stale.add(worker.url)
            return
        self._tried.add(worker.url)
        has_others = self._pool.has_candidates(self._need, self._tried)
        if not (isinstance(exc, NotTaken) and has_others):
            if self._retries >= self._relay._backoff.max_retries:
                raise _told(exc) from exc
            self._retries += 1
        sampled_len = 0 if stitch is None else len(stitch.output_ids)
        self._relay.counts["moved" if sampled_len else "retried"] += 1
        log.warning("tried anew: worker=%s tokens=%d reason=%s", worker.url, sampled_len, exc)
        if not has_others:
            await self._back_off(self._retries - 1)

    def _is_worth_another(self, exc: _Failure, worker: Worker) -> bool:
        """Whether another try may end better; the worker's record is kept."""
        if isinstance(exc, NotTaken):
            if not exc.is_stale:
                self._relay._on_suspicion(worker)
            return True
        if isinstance(exc, WorkerRefused):
            self._pool.succeeded(worker)
            return exc.status in BUSY
        if not isinstance(exc, WorkerFailed | WorkerTimeout):
            return False  # it is not the worker's fault
        self._pool.failed(worker)
        self._relay._on_suspicion(worker)
        self._broken += not self._is_sampling
        return isinstance(exc, WorkerFailed) and self._broken < MAX_BROKEN

    def may_resume(self) -> bool:
        """An abort came: whether the generation goes on, which counts as one more."""
        if self._run.is_cancelled or self._aborts >= MAX_ABORTS:
            return False
        self._aborts += 1
        self._relay.counts["resumed"] += 1
        return True

    async def rest_after_abort(self) -> None:
        """A worker that aborts again and again is not asked again and again at once."""
        await self._back_off(self._aborts - 1)

    async def _back_off(self, retry: int) -> None:
        delay_s = self._relay._backoff.delay_s(retry, self._relay._random)
        await asyncio.sleep(min(delay_s, self.left_s()))


def _told(exc: _Failure) -> RouterError:
    if isinstance(exc, NotTaken):
        return NoWorker(f"No worker could be reached: {exc.reason}.", is_temporary=True)
    return exc


def _need(call: GenerateCall) -> Need:
    assert call.prompt is not None, "the caching middleware makes the prompt"
    headers = {name.lower(): value for name, value in call.headers.items()}
    return Need(
        ids=call.prompt.ids,
        scope=call.scope,
        key=headers.get("x-smg-routing-key") or call.session_id,
        target=headers.get("x-smg-target-worker"),
    )
