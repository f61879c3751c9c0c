"""Brings a generation to its end, whatever happens to the workers on the way.

Before its first token, a request that one worker cannot take goes to another. After it, another
worker samples the rest from the prompt and the tokens so far, and the client's stream continues.
What a worker aborts, to get new weights, continues likewise once it runs again. Tries, waits and
the total time are bounded; beyond that there is an error.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterator,
    Mapping,
)
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from itertools import chain
from typing import Any

import numpy as np

from slime_router.auth.owners import shown
from slime_router.engine.client import Answer, WorkerClient
from slime_router.engine.exchange import NotTaken
from slime_router.errors import RouterError, WorkerFailed
from slime_router.failover.attempts import Attempts, Cancelled, Dispatcher, RelaySettings, Run
from slime_router.failover.disaggregated import paired, prefilling
from slime_router.failover.native_items import OpenText
from slime_router.failover.stitch import Stitch
from slime_router.pool.backoff import Backoff
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Need, Worker
from slime_router.types import GenerateCall, GenerateChunk

logger = logging.getLogger(__name__)


class Relay:
    """Leases workers, runs generations on them, and continues on others when they fail.

    `on_suspicion(worker)` is called when a worker could not be reached or broke a connection.
    """

    def __init__(
        self,
        pool: WorkerPool,
        client: WorkerClient,
        settings: RelaySettings,
        *,
        open_text: OpenText,
        eos_ids: Collection[int] = (),
        backoff: Backoff | None = None,
        on_suspicion: Callable[[Worker], None] = lambda _: None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._pool = pool
        self._client = client
        self._settings = settings
        self._open_text = open_text
        self._eos_ids = frozenset(eos_ids)
        self._dispatcher = Dispatcher(
            pool, settings, backoff or Backoff(), on_suspicion=on_suspicion, random=random
        )
        self._runs: dict[str, list[Run]] = {}  # by the rid that the client knows
        self._is_cumulative: bool | None = None  # whether native items repeat earlier output

    def __repr__(self) -> str:
        return f"<Relay {self.running} runs>"

    @property
    def counts(self) -> Counter[str]:
        """How often a request waited for a worker, was `retried`, `moved` on or `resumed`."""
        return self._dispatcher.counts

    @property
    def running(self) -> int:
        """Generations in progress, including those that wait for a worker."""
        return sum(map(len, self._runs.values()))

    # Generations

    async def generate(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        """Runs `call`, whose prompt has been made; yields chunks as they arrive.

        Raises:
            NoWorker: none is registered, or none could be reached in time.
            WorkerRefused: the worker's own answer to a bad request.
            WorkerFailed: workers died, or their answers cannot be read.
            WorkerTimeout: the whole generation took longer than the request timeout.
        """
        stitch = Stitch(
            call, self._open_text, eos_ids=self._eos_ids, is_cumulative=self._is_cumulative
        )
        with self._running(call.asked_as or call.rid) as run:
            attempts = Attempts(self._dispatcher, _need(call), run)
            part = stitch.next_call()
            while not (stitch.is_over or run.is_cancelled):
                try:
                    async with aclosing(self._sample(part, stitch, attempts)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                    if stitch.is_over:
                        break
                    await attempts.rest_after_abort()
                except Cancelled:
                    break
                except (NotTaken, RouterError) as exc:
                    if run.is_cancelled or stitch.ending() is not None:
                        break
                    await attempts.failed(exc, stitch)
                    if isinstance(exc, NotTaken) and not exc.is_stale:
                        continue  # no worker has seen its rid
                part = stitch.next_call()
            if not stitch.is_over:
                for chunk in stitch.ended():
                    yield chunk

    async def _sample(
        self, part: GenerateCall, stitch: Stitch, attempts: Attempts
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Runs one part on one worker; yields the chunks for the client."""
        async with (
            attempts.lease(part.rid) as lease,
            self._prefilled(part, lease.worker, attempts) as call,
        ):
            came = self._client.generate(lease.worker, call, timeout_s=attempts.left_s())
            is_sampling = False
            async with aclosing(came):
                async for chunk in came:
                    if chunk.output_ids and not is_sampling:
                        is_sampling = True
                        attempts.progress(lease)
                    stitch.take(chunk)
                    if chunk.finish is None:
                        for emitted in stitch.emit(chunk):
                            yield emitted
                        continue
                    lease.answered()
                    self._pool.succeeded(lease.worker)
                    goes_on = self._goes_on(part, chunk, stitch, attempts)
                    if not goes_on:
                        self._finished(part, lease.worker, stitch)
                    elif not stitch.can_go_on:
                        self._note_dropped(part, len(stitch.output_ids))
                    for emitted in stitch.emit(chunk, goes_on=goes_on):
                        yield emitted
                    return

    def _prefilled(
        self, part: GenerateCall, worker: Worker, attempts: Attempts
    ) -> AbstractAsyncContextManager[GenerateCall]:
        """The call as `worker` gets it; for a decode worker, another one computes the prompt."""
        is_decode = worker.kind == "decode"
        return self._paired(part, worker, attempts) if is_decode else nullcontext(part)

    @asynccontextmanager
    async def _paired(
        self, part: GenerateCall, worker: Worker, attempts: Attempts
    ) -> AsyncIterator[GenerateCall]:
        with await attempts.prefill() as lease:
            call = paired(part, lease.worker)

            def failed(prefill: Worker) -> None:
                self._pool.failed(prefill)
                self._dispatcher.on_suspicion(prefill)
                self._client.cut(worker, call.rid)  # it would wait for a cache that never arrives

            async with prefilling(
                self._client, lease, call, timeout_s=attempts.left_s(), on_failure=failed
            ):
                yield call

    def _goes_on(
        self, call: GenerateCall, last: GenerateChunk, stitch: Stitch, attempts: Attempts
    ) -> bool:
        """Whether to continue the part that ended with this chunk."""
        wanted, is_native = self._settings.resume_aborted, call.native is not None
        finish = last.finish
        if finish is None or finish.type != "abort" or finish.status_code:
            return False
        if wanted == "none" or (is_native and wanted != "all"):
            return False
        ending = stitch.ending()
        if ending is not None:
            stitch.settle(last, ending)
            return False
        # Under a grammar no part can start in the middle; a whole reply can start over.
        return (stitch.can_go_on or not call.stream) and attempts.may_resume()

    def _note_dropped(self, call: GenerateCall, count: int) -> None:
        """A whole reply under a grammar starts over: the client never sees what was sampled."""
        self.counts["dropped_tokens"] += count
        logger.warning("starting over: rid=%s, %d tokens are dropped", call.rid, count)

    def _finished(self, call: GenerateCall, worker: Worker, stitch: Stitch) -> None:
        assert call.prompt is not None
        if call.native is not None and call.stream and stitch.is_cumulative is not None:
            self._is_cumulative = stitch.is_cumulative
        output = np.array(stitch.output_ids, np.int32)
        self._pool.held(worker, shown(call.scope), np.concatenate((call.prompt.ids, output)))

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
        """Stops whatever runs under this rid; returns the workers that have it and their rids."""
        runs = self._runs.get(rid, [])
        for run in runs:
            run.is_cancelled = True
        self._dispatcher.wake()
        return [(run.worker, run.rid) for run in runs if run.worker is not None]

    def cancel_all(self) -> None:
        """No generation in progress is to be resumed after an abort."""
        for run in chain.from_iterable(self._runs.values()):
            run.is_cancelled = True
        self._dispatcher.wake()

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
        """Sends a request to the next worker that takes it, leased for the block.

        `can_repeat`: `body` can be sent again even after part of it was sent. The answer may have
        any status, and is closed on leaving the block.

        Raises:
            NoWorker: none is registered, or none could be reached.
            WorkerFailed: the worker closed the connection without an answer.
            WorkerTimeout: no answer within the request timeout.
        """
        attempts = Attempts(self._dispatcher, need, Run())
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


def _need(call: GenerateCall) -> Need:
    assert call.prompt is not None, "the caching middleware makes the prompt"
    headers = {name.lower(): value for name, value in call.headers.items()}
    return Need(
        ids=call.prompt.ids,
        scope=shown(call.scope),  # a worker's cache does not distinguish owners
        key=headers.get("x-smg-routing-key") or call.session_id,
        target=headers.get("x-smg-target-worker"),
    )
