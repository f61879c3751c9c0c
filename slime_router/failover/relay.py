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
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, nullcontext
from itertools import chain
from typing import TypeAlias

from slime_router.auth.caller import shown
from slime_router.engine.client import WorkerClient
from slime_router.engine.exchange import NotTaken
from slime_router.engine.kept import Answer
from slime_router.engine.request import Body
from slime_router.engine.wire.rids import name_at_worker
from slime_router.errors import MasksRefused, RouterError, WorkerFailed
from slime_router.failover.attempts import Attempts, Cancelled, Dispatcher, RelaySettings, Run
from slime_router.failover.disaggregated import paired, prefilling
from slime_router.failover.native_items import OpenText
from slime_router.failover.stitch import Stitch
from slime_router.pool.backoff import Backoff
from slime_router.pool.lease import Lease
from slime_router.pool.pool import WorkerPool
from slime_router.pool.rank import RANK_FIELD, Place
from slime_router.pool.worker import Need, Worker
from slime_router.shortcut.shortcut import Shortcut
from slime_router.telemetry.request_record import Trace, current_request
from slime_router.types import Finish, GenerateCall, GenerateChunk
from slime_router.values import replace

logger = logging.getLogger(__name__)

# Generations in progress, by the rid that the client knows and their own: its samples have several.
_Runs: TypeAlias = dict[str, dict[str, list[Run]]]


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
    ) -> None:
        self._pool = pool
        self._client = client
        self._settings = settings
        self._open_text = open_text
        self._eos_ids = frozenset(eos_ids)
        self._dispatcher = Dispatcher(
            pool, settings, backoff or Backoff(), on_suspicion=on_suspicion, random=random.random
        )
        self._runs: _Runs = {}
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
        return sum(1 for _ in self._all_runs())

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
        with (
            _Listed(self._runs, call) as run,
            Attempts(self._dispatcher, _need(call), run) as attempts,
        ):
            part = stitch.next_call()
            if call.shortcut is not None:
                _open_shortcut(call.shortcut, stitch, attempts)
            while not (stitch.is_over or run.is_cancelled):
                try:
                    with await attempts.lease(name_at_worker(part)) as lease:
                        came = self._sampled(part, lease, attempts)
                        try:
                            async for chunk in came:
                                if not attempts.is_sampling and chunk.output_ids:
                                    attempts.progress(lease)
                                if stitch.passes(chunk):
                                    yield chunk
                                    continue
                                taken = stitch.take(chunk)
                                if taken.finish is None:
                                    shown = stitch.emit(taken)
                                else:
                                    shown = self._ended(part, taken, lease, stitch, attempts)
                                for each in shown:
                                    yield each
                                if taken.finish is not None:
                                    break
                        finally:
                            await came.aclose()
                    if stitch.is_over:
                        break
                    await attempts.rest_after_abort()
                except Cancelled:
                    break
                except (NotTaken, RouterError) as exc:
                    if run.is_cancelled or stitch.ending() is not None:
                        break
                    if isinstance(exc, MasksRefused) and stitch.give_up_masks():
                        self.counts["masks_refused"] += 1
                        logger.info("without sampling masks: rid=%s reason=%s", part.rid, exc)
                    else:
                        await attempts.failed(exc, stitch)
                    if isinstance(exc, NotTaken) and not exc.is_stale:
                        continue  # no worker has seen its rid
                part = stitch.next_call()
            if not stitch.is_over:
                for chunk in stitch.ended():
                    yield chunk

    def _ended(
        self,
        part: GenerateCall,
        last: GenerateChunk,
        lease: Lease,
        stitch: Stitch,
        attempts: Attempts,
    ) -> Sequence[GenerateChunk]:
        """What the client gets of the chunk, already taken, that ended a part."""
        lease.answered()
        self._pool.succeeded(lease.worker)
        may_go_on = self._may_go_on(part, last.finish)
        ending = stitch.ending() if may_go_on else None
        if ending is not None:
            last = stitch.settled(last, ending)
        # Under a grammar no part can start in the middle; a whole reply can start over.
        elif (
            may_go_on
            and (stitch.can_go_on or not part.stream)
            and attempts.may_resume(last.weight_version)
        ):
            if not stitch.can_go_on:
                self._note_dropped(part, len(stitch.output_ids))
            return stitch.emit(last, goes_on=True)
        attempts.served()
        self._finished(part, lease.place, stitch)
        lease.close()  # its reader may keep it open for the other samples of the request
        return stitch.emit(last)

    def _sampled(
        self, part: GenerateCall, lease: Lease, attempts: Attempts
    ) -> AsyncGenerator[GenerateChunk, None]:
        """What the worker samples; for a decode worker, another one computes the prompt."""
        worker, request = lease.worker, current_request()
        if lease.rank is not None:
            part = part.asking({**part.asked, RANK_FIELD: lease.rank.number})
        trace = None if request is None else request.trace
        if trace is None and worker.kind != "decode":
            return self._client.generate(worker, part, timeout_s=attempts.left_s())
        return self._sampled_with(trace, part, worker, attempts)

    async def _sampled_with(
        self, trace: Trace | None, part: GenerateCall, worker: Worker, attempts: Attempts
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The same, in a pair; or as a span of the request's trace, which workers can continue."""
        is_decode = worker.kind == "decode"
        with nullcontext({}) if trace is None else trace.hop(worker.url) as headers:
            part = replace(part, headers={**part.headers, **headers})
            async with (
                self._paired(part, worker, attempts) if is_decode else nullcontext(part) as sent,
                aclosing(self._client.generate(worker, sent, timeout_s=attempts.left_s())) as came,
            ):
                async for chunk in came:
                    yield chunk

    @asynccontextmanager
    async def _paired(
        self, part: GenerateCall, worker: Worker, attempts: Attempts
    ) -> AsyncIterator[GenerateCall]:
        with await attempts.prefill() as lease:
            call = paired(part, lease.worker)

            def failed(prefill: Worker) -> None:
                self._pool.failed(prefill)
                attempts.prefill_failed(prefill)
                self._dispatcher.on_suspicion(prefill)
                self._client.cut(worker, call)  # it would wait for a cache that never arrives

            async with prefilling(
                self._client, lease, call, timeout_s=attempts.left_s(), on_failure=failed
            ):
                yield call

    def _may_go_on(self, call: GenerateCall, finish: Finish | None) -> bool:
        """Whether a part that ended so is to be continued."""
        if finish is None or finish.type != "abort" or finish.status_code:
            return False
        wanted = self._settings.resume_aborted
        return wanted == "all" or (wanted == "chat" and not call.is_passed_on)

    def _note_dropped(self, call: GenerateCall, count: int) -> None:
        """A whole reply under a grammar starts over: the client never sees what was sampled."""
        self.counts["dropped_tokens"] += count
        logger.warning("starting over: rid=%s, %d tokens are dropped", call.rid, count)

    def _finished(self, call: GenerateCall, place: Place, stitch: Stitch) -> None:
        assert call.prompt is not None
        if call.is_passed_on and call.stream and stitch.is_cumulative is not None:
            self._is_cumulative = stitch.is_cumulative
        self._pool.held(place, shown(call.scope), call.prompt.ids, stitch.output_ids)

    def cancel(self, rid: str) -> list[tuple[Worker, str]]:
        """Stops whatever runs under this rid; the workers that have it, and its names there."""
        found = _stopped(chain.from_iterable(self._runs.get(rid, {}).values()))
        self._dispatcher.line.wake()
        return found

    def abort(self, call: GenerateCall) -> bool:
        """Has the worker that runs the call end it, and say what it sampled; whether one runs it.

        It is not resumed. Other samples of its request go on.
        """
        found = _stopped(self._runs.get(_request_of(call), {}).get(call.rid, ()))
        for worker, name in found:
            self._client.abort_later(worker, call, name)
        return bool(found)

    def cancel_all(self) -> None:
        """No generation in progress is to be resumed after an abort."""
        _stopped(self._all_runs())
        self._dispatcher.line.wake()

    def _all_runs(self) -> Iterator[Run]:
        for of_request in self._runs.values():
            yield from chain.from_iterable(of_request.values())

    # Other requests

    @asynccontextmanager
    async def reach(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: Body | None = None,
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
                with await attempts.lease() as lease:
                    async with self._client.exchange(
                        lease.worker,
                        method,
                        path,
                        headers=headers,
                        body=body,
                        timeout_s=attempts.left_s(),
                    ) as (_, answer):
                        lease.answered()
                        yield answer
                        return
            except NotTaken as exc:
                if exc.is_stale and not can_repeat:
                    raise WorkerFailed("The worker closed the connection.") from exc
                await attempts.failed(exc)


class _Listed:
    """A run that is found by its request's rid and its own, for the block."""

    __slots__ = ("_request", "_rid", "_run", "_runs")

    def __init__(self, runs: _Runs, call: GenerateCall) -> None:
        self._runs, self._request, self._rid, self._run = runs, _request_of(call), call.rid, Run()

    def __enter__(self) -> Run:
        self._runs.setdefault(self._request, {}).setdefault(self._rid, []).append(self._run)
        return self._run

    def __exit__(self, *_: object) -> None:
        of_request = self._runs[self._request]
        of_rid = of_request[self._rid]
        of_rid.remove(self._run)
        if not of_rid:
            del of_request[self._rid]
        if not of_request:
            del self._runs[self._request]


def _stopped(runs: Iterable[Run]) -> list[tuple[Worker, str]]:
    """Has the runs not go on; returns the workers that have one, and its name there."""
    found = []
    for run in runs:
        run.is_cancelled = True
        if run.worker is not None:
            found.append((run.worker, run.name))
    return found


def _request_of(call: GenerateCall) -> str:
    """The rid that the client knows."""
    return call.asked_as or call.rid


def _open_shortcut(shortcut: Shortcut[GenerateChunk], stitch: Stitch, attempts: Attempts) -> None:
    shortcut.takes = lambda chunk: attempts.is_sampling and stitch.passes(chunk)
    shortcut.adds = stitch.output_ids.extend


def _need(call: GenerateCall) -> Need:
    assert call.prompt is not None, "the caching middleware makes the prompt"
    headers = {name.lower(): value for name, value in call.headers.items()}
    return Need(
        ids=call.prompt.ids,
        scope=shown(call.scope),  # a worker's cache does not distinguish owners
        key=headers.get("x-smg-routing-key") or call.session_id or call.prompt.conversation or None,
        target=headers.get("x-smg-target-worker"),
        rank=_rank(call.asked.get(RANK_FIELD), headers.get("x-data-parallel-rank")),
    )


def _rank(in_body: object, in_headers: str | None) -> int | None:
    """The data-parallel rank that the client asks for; None where it names none."""
    if in_headers is not None and in_headers.isdecimal():
        return int(in_headers[:10])
    return in_body if type(in_body) is int and in_body >= 0 else None
