"""Passes a request that the router has no route for to a worker, byte for byte, both ways.

A request that no worker could make sense of is refused.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from types import MappingProxyType

from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy

from slime_router.api.request import PayloadTooLarge
from slime_router.auth.keys import KEY_HEADERS
from slime_router.engine.client import Answer, read_some
from slime_router.errors import (
    MethodNotSupported,
    NotFound,
    NotSupported,
    NoWorker,
    RouterError,
)
from slime_router.failover.relay import Relay
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Need

logger = logging.getLogger(__name__)

_HOP_BY_HOP = frozenset(  # RFC 9110, 7.6.1: these describe one connection, not the message
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# Our server has already answered `Expect`; client credentials are for the router alone.
OWN_REQUEST = frozenset({"host", "expect", "cookie", *KEY_HEADERS})
UNPACKED = frozenset({"content-encoding", "content-length"})
OWN_ANSWER = frozenset(  # what our server sets itself, or leaves out
    {
        "server",
        "date",
        "access-control-allow-origin",
        "access-control-allow-credentials",
        "access-control-allow-headers",
        "access-control-allow-methods",
        "access-control-expose-headers",
        "access-control-max-age",
    }
)


class PassThrough:
    """A handler for any method and path. Nothing is parsed, kept or changed along the way."""

    def __init__(self, relay: Relay, *, max_payload_size: int) -> None:
        self._relay = relay
        self._max_payload_size = max_payload_size  # bytes

    def __repr__(self) -> str:
        return f"<PassThrough to {self._relay!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Sends `request` to the least loaded worker and its answer to the client.

        A worker that cannot be reached is skipped; one that took the request is not.

        Raises:
            NoWorker: none is registered, or none could be reached.
            WorkerFailed: the worker closed the connection without an answer.
            WorkerTimeout: no answer within the request timeout.
            PayloadTooLarge: the body is over the limit; no worker got all of it.
            ClientTimeout: the client sends no more of the body; no worker got all of it.
        """
        return await self.hand_on(request, _target(request))

    async def handle_in_session(self, request: web.Request) -> web.StreamResponse:
        """The same for a path within a session; the worker gets the rest of the path."""
        _, _, _, rest = _target(request).split("/", 3)
        return await self.hand_on(request, f"/{rest}")

    async def hand_on(
        self,
        request: web.Request,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> web.StreamResponse:
        """The same, to `target`; `body` is the request's body if it has already been read.

        `headers` are added to the answer.
        """
        is_unread = body is None and request.body_exists
        upload = _Upload(request, self._max_payload_size) if is_unread else None
        try:
            async with self._relay.reach(
                request.method,
                target,
                headers=end_to_end(request.headers, _not_handed_on(request)),
                body=body if upload is None else upload,
                can_repeat=upload is None,
                need=_need(request),
            ) as answer:
                return await _answered(request, answer, headers)
        except RouterError as exc:
            if upload is not None and upload.fault is not None:
                raise upload.fault from exc
            raise


class _Upload:
    """The body of a request on its way to a worker, up to `max_len` bytes."""

    def __init__(self, request: web.Request, max_len: int) -> None:
        self._content = request.content
        self._max_len = max_len
        self._len = 0
        self.fault: RouterError | None = None  # the client's: why the upload broke off
        if (request.content_length or 0) > max_len:
            raise self._too_large()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._content.iter_any():
                self._len += len(data)
                if self._len > self._max_len:
                    raise self._too_large()
                yield data
        except RouterError as exc:
            self.fault = exc
            raise

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"The request body is longer than {self._max_len} bytes.")


async def _answered(
    request: web.Request, answer: Answer, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Passes the answer to the client, as fast as the client takes it."""
    reply = web.StreamResponse(
        status=answer.status,
        reason=answer.reason,
        headers=end_to_end(answer.headers, OWN_ANSWER),
    )
    reply.headers.update(headers)
    await reply.prepare(request)
    try:
        while data := await read_some(answer):
            await reply.write(data)
    except RouterError as exc:
        # The status line is out: only a broken connection can still show that this is not the end.
        logger.warning("answer broke off: path=%s reason=%s", request.path, exc)
        _break_off(request)
        return reply
    except asyncio.CancelledError:
        _break_off(request)
        raise
    await reply.write_eof()
    return reply


def _break_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _not_handed_on(request: web.Request) -> frozenset[str]:
    """Our server decompresses bodies: they are passed on that way, without their old length."""
    return OWN_REQUEST | UNPACKED if "content-encoding" in request.headers else OWN_REQUEST


def _need(request: web.Request) -> Need:
    headers = request.headers
    return Need(key=headers.get("X-SMG-Routing-Key"), target=headers.get("X-SMG-Target-Worker"))


def _target(request: web.Request) -> str:
    """Path and query as the client wrote them."""
    raw = request.raw_path
    return raw if raw.startswith("/") else request.rel_url.raw_path_qs


def end_to_end(headers: CIMultiDictProxy[str], own: Iterable[str]) -> CIMultiDict[str]:
    """`headers` without those that belong to the connection; repeated ones stay repeated."""
    named = {
        name.strip().lower()
        for value in headers.getall("Connection", ())
        for name in value.split(",")
    }
    dropped = _HOP_BY_HOP.union(own, named)
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in dropped
    )


_OF_WORKERS = re.compile(  # what workers serve: if there is no worker, that is what is missing
    r"/(v1/|v2/|api/)?(chat/completions|completions|responses|messages|embeddings|rerank|score"
    r"|classify|pooling|audio/\w+|encode|embed|invocations|vertex_generate|ping|health_generate"
    r"|get_load|generate_from_file|realtime|chat|generate|tags|show)"
)


class Fallback:
    """A handler for any method and path that no other route takes."""

    def __init__(self, pool: WorkerPool, others: PassThrough) -> None:
        self._pool = pool
        self._others = others

    def __repr__(self) -> str:
        return f"<Fallback to {self._others!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Passes `request` on.

        Raises:
            NotSupported: it opens a websocket.
            MethodNotSupported: the path is the router's own, the method is not.
            NotFound: no worker is registered, and the path is not known to be a worker's.
            RouterError: as `PassThrough` does.
        """
        await self._check(request, request.path)
        return await self._others.handle(request)

    async def handle_in_session(self, request: web.Request) -> web.StreamResponse:
        """The same for a path within a session."""
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
    """The methods of the router's own routes at this path; empty if it has none there."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        _, methods = await resource.resolve(request)
        allowed |= methods
    return allowed - {hdrs.METH_ANY}
