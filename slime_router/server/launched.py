"""Workers that the router started: what is done when one of them answers, and when it died."""

from __future__ import annotations

from collections.abc import Callable

from slime_router.errors import NotFound, RouterError
from slime_router.workers.client import WorkerClient
from slime_router.workers.pool import WorkerPool
from slime_router.workers.worker import Worker

PROBE_TIMEOUT_S = 10.0


class LaunchedWorkers:
    """Keeps the pool informed; `greet` is told of each worker that begins to serve.

    `api_key` is the one that all of them ask for.
    """

    def __init__(
        self,
        pool: WorkerPool,
        client: WorkerClient,
        greet: Callable[[Worker], None],
        *,
        api_key: str | None = None,
    ) -> None:
        self._api_key = api_key
        self._pool = pool
        self._client = client
        self._greet = greet

    async def answers(self, url: str) -> bool:
        """Whether the worker at `url`, which need not be registered, is ready to serve."""
        try:
            answer = await self._client.ask(
                Worker(url, api_key=self._api_key),
                "GET",
                "/health",
                headers={},
                timeout_s=PROBE_TIMEOUT_S,
            )
        except RouterError:
            return False
        return answer.status == 200

    def note_up(self, url: str) -> None:
        """Registers it, or takes it back into service."""
        worker = self._pool.add(url, api_key=self._api_key)
        self._pool.mark_up(worker)
        self._greet(worker)

    def note_down(self, url: str) -> None:
        """It gets no request; its cache, its pause and its weights are gone with it."""
        try:
            worker = self._pool.get(url)
        except NotFound:  # a user has removed it
            return
        self._pool.mark_down(worker)
        self._pool.rest(worker, is_paused=False, is_asleep=False)
        worker.weight_version = None
