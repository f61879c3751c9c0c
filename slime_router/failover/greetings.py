"""The greeting of a worker: is it SGLang, does it tokenize as we do, how long is its context?

A worker that cannot serve the model is not ready, and its log line, `GET /workers` and
`GET /readiness` say why. It is looked at again with every probe, so it comes back when it fits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from slime_router.engine.client import WorkerClient
from slime_router.engine.identity import trouble
from slime_router.errors import RouterError
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from slime_router.supervisor import Supervisor
from slime_router.tokens.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Digits, spaces, capitals, quotes, accents, an emoji: this is where tokenizers differ, if they do.
PROBE_TEXT = 'Héllo  WORLD 12345,\n\n{"name": "x"}\t🙂 e\u0301 ' + "don't"

# A worker is often registered while it still loads its weights, which takes minutes.
GREETING_DELAYS_S = (0.0, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Greetings:
    """Asks new workers in the background, until they answer or `delays_s` run out.

    With `allows_mismatch`, a worker that makes other tokens serves anyway.
    """

    def __init__(
        self,
        pool: WorkerPool,
        client: WorkerClient,
        tokenizer: Tokenizer,
        supervisor: Supervisor,
        *,
        checkpoint: str,
        delays_s: Sequence[float],
        allows_mismatch: bool = False,
    ) -> None:
        self._pool = pool
        self._client = client
        self._tokenizer = tokenizer
        self._supervisor = supervisor
        self._checkpoint = checkpoint
        self._delays_s = tuple(delays_s)
        self._allows_mismatch = allows_mismatch
        self._tasks: dict[Worker, asyncio.Task[None]] = {}
        self._calls: dict[Worker, asyncio.Event] = {}  # set where there is no need to wait

    def __repr__(self) -> str:
        return f"<Greetings {len(self)} open>"

    def __len__(self) -> int:
        return len(self._tasks)

    def greet(self, worker: Worker) -> None:
        """Find out whether the worker fits."""
        if worker in self._tasks:
            self._calls[worker].set()
            return
        self._calls[worker] = asyncio.Event()
        task = self._supervisor.start("greeting", partial(self._greet, worker), about=worker.url)
        self._tasks[worker] = task
        task.add_done_callback(partial(self._forget, worker))

    async def stop(self) -> None:
        """Give up on workers that have not answered yet."""
        await self._supervisor.stop(tuple(self._tasks.values()))

    async def _greet(self, worker: Worker) -> None:
        for delay_s in self._delays_s:
            await self._rest(worker, delay_s)
            if worker not in self._pool.list():
                return
            try:
                is_over = await self._look(worker)
            except RouterError:
                continue
            worker.greeted()
            if is_over:
                return
        if worker.is_token_exact is None:
            logger.warning("worker %s: its tokens were not compared with ours", worker.url)

    async def _rest(self, worker: Worker, delay_s: float) -> None:
        """Waits, unless the worker has come up meanwhile."""
        call = self._calls[worker]
        if delay_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await call.wait()
        else:
            await asyncio.sleep(0)
        call.clear()

    def _forget(self, worker: Worker, _: object) -> None:
        del self._tasks[worker], self._calls[worker]

    async def _look(self, worker: Worker) -> bool:
        """Looks at the worker once. Returns whether nothing is left to find out.

        Raises:
            RouterError: it does not answer.
        """
        found = await trouble(self._client, worker)
        if found is not None:
            self._judge(worker, found)
            return True
        reply = await self._client.tokenize(worker, PROBE_TEXT)
        if reply is not None:
            self._note_tokens(worker, *reply)
            return True
        if worker.is_token_exact is None:
            self._judge(worker, None)
        return False

    def _note_tokens(self, worker: Worker, ids: list[int], context_len: int | None) -> None:
        worker.reported(context_len=context_len)
        was_exact = worker.is_token_exact
        is_exact = ids == self._tokenizer.encode(PROBE_TEXT).tolist()
        worker.compared(is_exact=is_exact)
        if is_exact and was_exact is None:
            logger.info("worker %s makes the same tokens", worker.url)
        elif not is_exact and was_exact is not False:
            logger.warning(
                "worker %s tokenizes otherwise than %s: is it the same checkpoint?",
                worker.url,
                self._checkpoint,
            )
        is_fit = is_exact or self._allows_mismatch
        self._judge(worker, None if is_fit else "it makes other tokens than the router's tokenizer")

    def _judge(self, worker: Worker, misfit: str | None) -> None:
        if not self._pool.judge(worker, misfit):
            return
        if misfit is None:
            logger.warning("worker %s fits by now: it gets requests", worker.url)
            return
        cut = self._client.give_up(worker)
        logger.error("worker %s is not ready: %s; %d requests move on", worker.url, misfit, cut)
