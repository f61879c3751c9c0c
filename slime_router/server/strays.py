"""Requests that no route takes: they go to a worker, unless no worker could make sense of them."""

from __future__ import annotations

import re

from aiohttp import hdrs, web

from slime_router.errors import MethodNotSupported, NotFound, NotSupported, NoWorker
from slime_router.server.passthrough import PassThrough
from slime_router.workers.pool import WorkerPool

_OF_WORKERS = re.compile(  # what a worker serves: without one it is a worker that is missing
    r"/(v1/|v2/|api/)?(chat/completions|completions|responses|messages|embeddings|rerank|score"
    r"|classify|pooling|audio/\w+|encode|embed|invocations|vertex_generate|ping|health_generate"
    r"|get_load|generate_from_file|realtime|chat|generate|tags|show)"
)


class Strays:
    """A handler for any method and path behind all routes."""

    def __init__(self, pool: WorkerPool, others: PassThrough) -> None:
        self._pool = pool
        self._others = others

    def __repr__(self) -> str:
        return f"<Strays to {self._others!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Hands `request` on.

        Raises:
            NotSupported: it opens a websocket.
            MethodNotSupported: the path is the router's own, the method is not.
            NotFound: no worker is registered, and the path is not known to be a worker's.
            RouterError: as `PassThrough` does.
        """
        await self._check(request, request.path)
        return await self._others.handle(request)

    async def handle_in_session(self, request: web.Request) -> web.StreamResponse:
        """The same for what stands behind the path of a session."""
        await self._check(request, "/" + request.match_info["path"])
        return await self._others.handle_in_session(request)

    async def _check(self, request: web.Request, path: str) -> None:
        if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            raise NotSupported("Websockets are not served; use HTTP, with 'stream' where needed.")
        allowed = await _allowed_methods(request)
        if allowed and (request.method != hdrs.METH_OPTIONS or not len(self._pool)):
            raise MethodNotSupported(request.method, sorted(allowed))
        if len(self._pool):
            return
        if _OF_WORKERS.fullmatch(path) is None:
            raise NotFound(f"Nothing is served at {path[:200]!r}.", code="unknown_url")
        raise NoWorker("No worker is registered.")


async def _allowed_methods(request: web.Request) -> set[str]:
    """What the router's own routes at this path take; empty for a path that is not its own."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        _, methods = await resource.resolve(request)
        allowed |= methods
    return allowed - {hdrs.METH_ANY}
