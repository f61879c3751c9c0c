"""The greeting of a worker: does it tokenize as we do, and how long is its context?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from slime_router.engine.client import WorkerClient
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from slime_router.tokens.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Digits, spaces, capitals, quotes, accents, an emoji: this is where tokenizers differ, if they do.
PROBE_TEXT = 'Héllo  WORLD 12345,\n\n{"name": "x"}\t🙂 e\u0301 ' + "don't"

# A worker is often registered while it still loads its weights, which takes minutes.
GREETING_DELAYS_S = (0.0, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Greetings:
    """Asks new workers in the background, until they answer or `delays_s` run out."""

    def __init__(
        self,
        pool: WorkerPool,
        client: WorkerClient,
        tokenizer: Tokenizer,
        *,
        checkpoint: str,
        delays_s: Sequence[float],
    ) -> None:
        self._pool = pool
        self._client = client
        self._tokenizer = tokenizer
        self._checkpoint = checkpoint
        self._delays_s = tuple(delays_s)
        self._tasks: dict[Worker, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Greetings {len(self)} open>"

    def __len__(self) -> int:
        return len(self._tasks)

    def greet(self, worker: Worker) -> None:
        """Compare our tokenizer with the worker's."""
        if worker in self._tasks:
            return
        task = asyncio.create_task(self._compare_tokens(worker), name=f"greeting {worker.url}")
        self._tasks[worker] = task
        task.add_done_callback(lambda _: self._tasks.pop(worker))

    async def stop(self) -> None:
        """Give up on workers that have not answered yet."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _compare_tokens(self, worker: Worker) -> None:
        for delay_s in self._delays_s:
            await asyncio.sleep(delay_s)
            if worker not in self._pool.list():
                return
            reply = await self._client.tokenize(worker, PROBE_TEXT)
            if reply is not None:
                self._note_tokens(worker, *reply)
                return
        logger.warning("worker %s: its tokens were not compared with ours", worker.url)

    def _note_tokens(self, worker: Worker, ids: list[int], context_len: object) -> None:
        if type(context_len) is int and context_len > 0:
            worker.context_len = context_len
        was_known = worker.is_token_exact is False
        worker.is_token_exact = ids == self._tokenizer.encode(PROBE_TEXT).tolist()
        if worker.is_token_exact:
            logger.info("worker %s makes the same tokens", worker.url)
        elif not was_known:
            logger.warning(
                "worker %s tokenizes otherwise than %s: is it the same checkpoint?",
                worker.url,
                self._checkpoint,
            )
