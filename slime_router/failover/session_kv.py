"""Gives workers' KV of sessions back once nothing more comes of them.

A worker with `--enable-session-radix-cache` tags what it caches with the `session_id` of requests,
and evicts what no open session needs before all else. `POST /close_session` takes the tag away:
nothing is freed at once, and what other sessions share stays theirs. So this changes which tokens
are evicted first, never which are sampled.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from hashlib import blake2b

import orjson
from multidict import CIMultiDict

from slime_router.engine.client import WorkerClient
from slime_router.errors import RouterError
from slime_router.pool.pool import WorkerPool
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000  # sessions that have ended and that no worker knows of yet
CLOSE_TIMEOUT_S = 5.0


def kv_name(session_id: str) -> str:
    """What workers call a session; nobody can read its owner or its name from it."""
    digest = blake2b(session_id.encode("utf-8", "surrogatepass"), digest_size=12)
    return f"slime_{digest.hexdigest()}"


class SessionKv:
    """Tells workers which sessions have ended, one after the other in the background."""

    def __init__(self, pool: WorkerPool, client: WorkerClient) -> None:
        self._pool = pool
        self._client = client
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._news = asyncio.Event()
        self.released = 0  # sessions that every worker was asked to release
        self.failed = 0  # requests to release that a worker did not take, or that were too many

    def __repr__(self) -> str:
        return f"<SessionKv {len(self._waiting)} waiting>"

    def ended(self, session_id: str) -> None:
        """Nothing more is sampled in a session."""
        self._waiting[session_id] = None
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)
            self.failed += 1
            if self.failed == 1:
                logger.warning("more sessions end than workers can be asked to release")
        self._news.set()

    def start(self, supervisor: Supervisor) -> None:
        """Works in the background, as long as the supervisor lasts."""
        supervisor.start("release of sessions' KV", self._release_all)

    async def _release_all(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                session_id, _ = self._waiting.popitem(last=False)
                await self._release(session_id)

    async def _release(self, session_id: str) -> None:
        body = orjson.dumps({"session_id": kv_name(session_id)})
        for worker in self._pool.list():
            try:
                answer = await self._client.ask(
                    worker,
                    "POST",
                    "/close_session",
                    headers=CIMultiDict({"Content-Type": "application/json"}),
                    body=body,
                    timeout_s=CLOSE_TIMEOUT_S,
                )
            except RouterError as exc:
                self._note(worker.url, exc.message)
            else:
                if answer.status >= 400:
                    self._note(worker.url, f"status {answer.status}")
        self.released += 1

    def _note(self, url: str, reason: str) -> None:
        self.failed += 1
        logger.info("worker %s did not release a session's KV: %s", url, reason)
