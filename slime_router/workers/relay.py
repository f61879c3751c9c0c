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
from typing import Any, TypeAlias

import numpy as np

from slime_router.errors import NoWorker, RouterError, WorkerFailed, WorkerRefused, WorkerTimeout
from slime_router.types import Finish, GenerateCall, GenerateChunk, Resume
from slime_router.workers.backoff import Backoff
from slime_router.workers.client import Answer, WorkerClient
from slime_router.workers.exchange import NotTaken
from slime_router.workers.pool import Lease, WorkerPool
from slime_router.workers.stitch import ReadText, Stitch
from slime_router.workers.worker import Need, Worker

log = logging.getLogger(__name__)

BUSY = (429, 503)  # a worker's queue is full: another's may not be
MAX_BROKEN = 3  # workers that broke without a word: it may be the request that kills them

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
    """A generation under way. `rid` is the name under which `worker` has it now."""

    call: GenerateCall
    worker: Worker | None = None
    rid: str = ""
    is_cancelled: bool = False  # somebody asked for its abort: it does not go on


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
        read_text: ReadText,
        backoff: Backoff | None = None,
        on_suspicion: Callable[[Worker], None] = lambda _: None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._pool = pool
        self._client = client
        self._settings = settings
        self._read_text = read_text
        self._backoff = backoff or Backoff()
        self._on_suspicion = on_suspicion
        self._random = random
        self._runs: dict[str, Run] = {}
        self._is_cumulative = True
        self._change = asyncio.Event()
        pool.subscribe(self._wake)

    def __repr__(self) -> str:
        return f"<Relay {len(self._runs)} runs>"

    # Generations

    async def generate(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        """Runs `call`; yields what comes, as it comes. `call.prompt` has been made.

        Raises:
            NoWorker: none is registered, or none could be reached in time.
            WorkerRefused: the worker's own answer to a bad request.
            WorkerFailed: workers died, or their answers cannot be read.
            WorkerTimeout: the whole took longer than the request timeout.
        """
        stitch = Stitch(call, self._read_text, is_cumulative=self._is_cumulative)
        attempts = _Attempts(self, _need(call))
        with self._running(call) as run:
            part = stitch.next_call()
            while True:
                if run.is_cancelled:
                    yield _cancelled(call, stitch)
                    return
                try:
                    async with attempts.lease() as lease:
                        run.worker, run.rid = lease.worker, part.rid
                        chunks = self._client.generate(
                            lease.worker, part, timeout_s=attempts.left_s()
                        )
                        async with aclosing(chunks):
                            async for came in chunks:
                                if came.output_ids:
                                    lease.first_token()
                                    attempts.progress()
                                chunk = stitch.take(came)
                                if chunk.finish is None:
                                    yield chunk
                                    continue
                                self._pool.succeeded(lease.worker)
                                if not self._goes_on(run, stitch, chunk):
                                    self._ended(call, lease.worker, stitch)
                                    yield chunk
                                    return
                                self.counts["resumed"] += 1
                                if stitch.can_go_on:
                                    yield stitch.without_end(chunk)
                                else:
                                    stitch.start_over()
                                break
                    await attempts.pause_after_abort()
                except (NotTaken, RouterError) as exc:
                    if run.is_cancelled:
                        raise _told(exc) from exc
                    await attempts.failed(exc, stitch)
                    if isinstance(exc, NotTaken) and not exc.is_stale:
                        continue  # nobody has seen its rid
                part = stitch.next_call()

    def _goes_on(self, run: Run, stitch: Stitch, last: GenerateChunk) -> bool:
        """Whether what ended with `last` is to be continued."""
        wanted, native = self._settings.resume_aborted, run.call.native is not None
        finish = last.finish
        if finish is None or finish.type != "abort" or finish.status_code or run.is_cancelled:
            return False
        if wanted == "none" or (native and wanted != "all"):
            return False
        # Under a grammar nothing can go on in the middle; a whole reply can begin anew.
        return stitch.can_go_on or not run.call.stream

    def _ended(self, call: GenerateCall, worker: Worker, stitch: Stitch) -> None:
        assert call.prompt is not None
        if call.native is not None and call.stream:
            self._is_cumulative = stitch.is_cumulative
        output = np.array(stitch.output_ids, np.int32)
        self._pool.held(worker, call.scope, np.concatenate((call.prompt.ids, output)))

    @contextmanager
    def _running(self, call: GenerateCall) -> Iterator[Run]:
        run = Run(call)
        self._runs[call.rid] = run
        try:
            yield run
        finally:
            if self._runs.get(call.rid) is run:
                del self._runs[call.rid]

    def cancel(self, rid: str) -> tuple[Worker, str] | None:
        """The generation is not to go on; says who has it under which rid, or None."""
        run = self._runs.get(rid)
        if run is None:
            return None
        run.is_cancelled = True
        return (run.worker, run.rid) if run.worker is not None else None

    def cancel_all(self) -> None:
        """No generation that runs now is to go on when it is aborted."""
        for run in self._runs.values():
            run.is_cancelled = True

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
        attempts = _Attempts(self, need)
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
                    yield answer
                    return
            except NotTaken as exc:
                if exc.is_stale and not can_repeat:
                    raise WorkerFailed("The worker closed the connection.") from exc
                await attempts.failed(exc)

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


class _Attempts:
    """The tries of one request: who was asked already, how long to wait, when to stop."""

    def __init__(self, relay: Relay, need: Need) -> None:
        self._relay = relay
        self._pool = relay._pool
        self._need = need
        self._clock = asyncio.get_running_loop().time
        self._deadline = self._clock() + relay._settings.request_timeout_s
        self._worker: Worker | None = None
        self._tried: set[str] = set()
        self._stale: set[str] = set()
        self._retries = 0
        self._broken = 0

    def left_s(self) -> float:
        """How much of the request timeout is left."""
        return max(self._deadline - self._clock(), 0.001)

    def progress(self) -> None:
        """A worker samples: the request is sound, and what fails from now on fails anew."""
        self._retries = self._broken = 0

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Lease]:
        """A worker, waited for while there may be one soon.

        Raises:
            NoWorker: there is none, and none came in time.
        """
        with await self._found() as lease:
            self._worker = lease.worker
            yield lease

    async def _found(self) -> Lease:
        began = self._clock()
        while True:
            change = self._relay._change
            try:
                return self._pool.lease(self._need, self._tried)
            except NoWorker as exc:
                settings = self._relay._settings
                if self._tried:
                    self._tried.clear()
                    continue
                wait_s = settings.pause_wait_s if exc.is_paused else settings.worker_wait_s
                until = min(began + wait_s, self._deadline)
                if not exc.is_temporary or self._clock() >= until:
                    raise
                self._relay.counts["waited"] += 1
            try:
                async with asyncio.timeout_at(until):
                    await change.wait()
            except TimeoutError:
                continue  # asked once more, and then told why there is none

    async def failed(self, exc: _Failure, stitch: Stitch | None = None) -> None:
        """The try came to `exc`; returns when another is due.

        Raises:
            RouterError: no other try is to be made.
        """
        worker = self._worker
        if isinstance(exc, NoWorker) or worker is None:
            raise exc
        if not self._is_worth_another(exc, worker) or not (stitch is None or stitch.can_go_on):
            raise _told(exc) from exc
        if isinstance(exc, NotTaken) and exc.is_stale and worker.url not in self._stale:
            self._stale.add(worker.url)
            return
        self._tried.add(worker.url)
        if isinstance(exc, NotTaken) and self._has_others():
            log.warning("not taken: worker=%s reason=%s", worker.url, exc.reason)
            return
        if self._retries >= self._relay._backoff.max_retries or self._broken >= MAX_BROKEN:
            raise _told(exc) from exc
        sampled = len(stitch.output_ids) if stitch is not None else 0
        delay_s = self._relay._backoff.delay_s(self._retries, self._relay._random)
        self._retries += 1
        self._relay.counts["moved" if sampled else "retried"] += 1
        log.warning("to be tried again: worker=%s tokens=%d reason=%s", worker.url, sampled, exc)
        if not self._has_others():
            await asyncio.sleep(min(delay_s, self.left_s()))

    def _is_worth_another(self, exc: _Failure, worker: Worker) -> bool:
        if isinstance(exc, NotTaken):
            if not exc.is_stale:
                self._relay._on_suspicion(worker)
            return True
        if isinstance(exc, WorkerRefused):
            self._pool.succeeded(worker)
            return exc.status in BUSY
        self._pool.failed(worker)
        if isinstance(exc, WorkerTimeout) or not isinstance(exc, WorkerFailed):
            return False
        self._broken += 1
        self._relay._on_suspicion(worker)
        return True

    async def pause_after_abort(self) -> None:
        """A worker that aborts again and again is not asked again and again at once."""
        delay_s = self._relay._backoff.delay_s(self._retries, self._relay._random)
        self._retries = min(self._retries + 1, self._relay._backoff.max_retries)
        await asyncio.sleep(min(delay_s, self.left_s()))

    def _has_others(self) -> bool:
        return any(w.is_up and w.url not in self._tried for w in self._pool.list())


def _told(exc: _Failure) -> RouterError:
    if isinstance(exc, NotTaken):
        return NoWorker(f"No worker could be reached: {exc.reason}.", is_temporary=True)
    return exc


def _cancelled(call: GenerateCall, stitch: Stitch) -> GenerateChunk:
    """The end of a generation that was aborted while no worker had it, as a worker says it."""
    finish = Finish("abort", message="Abort in waiting queue")
    return stitch.take(GenerateChunk(output_ids=[], finish=finish, prompt=call.prompt))


def _need(call: GenerateCall) -> Need:
    assert call.prompt is not None, "the caching middleware makes the prompt"
    headers = {name.lower(): value for name, value in call.headers.items()}
    return Need(
        ids=call.prompt.ids,
        scope=call.scope,
        key=headers.get("x-smg-routing-key") or call.session_id,
        target=headers.get("x-smg-target-worker"),
    )
