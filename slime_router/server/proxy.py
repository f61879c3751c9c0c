"""Passes a request that the router has no route for to a worker, its body and answer as they are.

A request that no worker could make sense of is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import MappingProxyType
from typing import TypeAlias

from aiohttp import hdrs, web

from slime_router.api import sse
from slime_router.api.errors import openai_error_object
from slime_router.api.generate.worker_bodies import WorkerBody
from slime_router.api.request import fresh_hex, reply_headers
from slime_router.api.responses.dialect import PATH as RESPONSES_PATH
from slime_router.auth.caller import Caller, caller
from slime_router.auth.surface import CONVERSATIONS, Served, is_of_an_api, served_at, tidy_path
from slime_router.edge.bodies import read_body, unpacked, unpacker_of
from slime_router.edge.grace import Grace
from slime_router.edge.headers import to_client, to_worker
from slime_router.edge.paths import tidied
from slime_router.engine.kept import Answer, read_some
from slime_router.engine.request import ON_THE_WAY
from slime_router.errors import (
    Aborted,
    MethodNotSupported,
    NotFound,
    NotSupported,
    NoWorker,
    OnlyHttp,
    PayloadTooLarge,
    RouterError,
    ShuttingDown,
    WorkerFailed,
)
from slime_router.failover.relay import Relay
from slime_router.generation.admission import AdmissionQueue
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Need
from slime_router.waiting.fair_queue import Party

logger = logging.getLogger(__name__)

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


_LENGTH = ("content-length",)  # of a body that was read: it may be another one now


class PassThrough:
    """A handler for any method and path. Nothing is parsed or kept along the way."""

    def __init__(
        self,
        relay: Relay,
        *,
        max_payload_size: int,
        grace: Grace | None = None,
        keepalive_s: float = 0.0,
        admission: AdmissionQueue | None = None,
    ) -> None:
        self._relay = relay
        self._keepalive_s = keepalive_s  # between signs of life in a worker's stream; 0: none
        self._grace = grace or Grace(0)
        self._admission = admission or AdmissionQueue.unlimited()
        self._max_payload_size = max_payload_size  # bytes

    def __repr__(self) -> str:
        return f"<PassThrough to {self._relay!r}>"

    async def hand_on(
        self,
        request: web.Request,
        target: str,
        body: WorkerBody | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> web.StreamResponse:
        """Sends `request` to the least loaded worker and its answer to the client.

        A worker that cannot be reached is skipped; one that took the request is not. `target` is
        the path, with the query, that the worker gets; `body` is the request's body if it has
        already been read. `headers` are added to the answer. What was read to be checked is work,
        which waits for a slot as a generation does.

        Raises:
            TooManyRequests: no slot became free in time, or there was no room to wait for one.
            Aborted: somebody asked for that while it waited.
            NoWorker: none is registered, or none could be reached.
            WorkerFailed: the worker closed the connection without an answer, or it redirects.
            WorkerTimeout: no answer within the request timeout.
            BadRequest: the body is corrupt; no worker got all of it.
            PayloadTooLarge: it is over the limit; no worker got all of it.
            UnsupportedCoding: it is packed in a way that is not read.
            ClientTimeout: the client sends no more of the body; no worker got all of it.
        """
        is_unread = body is None and request.body_exists
        upload = _Upload(request, self._max_payload_size) if is_unread else None
        try:
            async with (
                self._slot(request, body),
                self._relay.reach(
                    request.method,
                    target,
                    headers=to_worker(request, but=() if body is None else _LENGTH),
                    body=upload if body is None else body.raw,
                    can_repeat=upload is None,
                    need=_need(request, is_light=body is None),
                ) as answer,
            ):
                return await self._answered(request, answer, headers)
        except RouterError as exc:
            if upload is not None and upload.fault is not None:
                raise upload.fault from exc
            raise

    @asynccontextmanager
    async def _slot(self, request: web.Request, body: WorkerBody | None) -> AsyncIterator[None]:
        """Work whose body was read has a slot for the block."""
        if body is None:
            yield
            return
        party = Party(caller(request).owner, fresh_hex(24))
        slot = await self._admission.enter(body.rid or party.name, party)
        if slot is None:
            raise Aborted("It was aborted while it waited.")
        with slot:
            slot.prepared()
            yield

    async def _answered(
        self, request: web.Request, answer: Answer, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Passes the answer to the client, as fast as the client takes it."""
        check_answer(answer.status)
        reply = web.StreamResponse(
            status=answer.status, reason=answer.reason, headers=to_client(answer.headers)
        )
        reply.headers.update({**reply_headers(request), **headers})
        await reply.prepare(request)
        stream = sse.PassedStream(reply)
        write: Callable[[bytes], Awaitable[None]] = reply.write
        every_s = 0.0
        if _may_grow(reply):
            every_s, write = self._keepalive_s, stream.pass_on
        try:
            with self._grace.scope():
                async with sse.Line(request, {}, every_s=every_s, stream=stream):
                    while data := await read_some(answer):
                        await write(data)
        except RouterError as exc:
            if isinstance(exc, ShuttingDown) and reply.content_type == "text/event-stream":
                await reply.write(sse.event(openai_error_object(exc)) + sse.DONE)
                await reply.write_eof()
                return reply
            # The status line is out: only a broken connection can show that this is not the end.
            logger.warning("answer broke off: path=%s reason=%s", request.rel_url.raw_path, exc)
            _break_off(request)
            return reply
        except asyncio.CancelledError:
            _break_off(request)
            raise
        await reply.write_eof()
        return reply


class _Upload:
    """The body of a request on its way to a worker, unpacked, up to `max_len` bytes."""

    def __init__(self, request: web.Request, max_len: int) -> None:
        self.fault: RouterError | None = None  # the client's: why the upload broke off
        if (request.content_length or 0) > max_len:
            raise PayloadTooLarge(f"The request body is longer than {max_len} bytes.")
        unpacker_of(request, max_len)  # one that is not read is refused before a worker is asked
        self._pieces = unpacked(request, max_len)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._pieces:
                yield data
        except RouterError as exc:
            self.fault = exc
            raise


def _may_grow(reply: web.StreamResponse) -> bool:
    """Whether it is a stream of events that can take another one."""
    is_fixed = "Content-Length" in reply.headers or "Content-Encoding" in reply.headers
    return reply.content_type == "text/event-stream" and not is_fixed


def check_answer(status: int) -> None:
    """Checks whether an answer is for the client.

    Raises:
        WorkerFailed: it is a redirect, which names an address that no client should know; it
            refuses the router's key, which would be taken for the client's own, or is about the way
            to the worker; or it ends nothing, as a 101 does, after which a client takes the
            connection for something else.
    """
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED):
        raise WorkerFailed(f"The worker refuses the router's key: it answers {status}.")
    if status in ON_THE_WAY:
        raise WorkerFailed(f"The worker was not reached: it answers {status}.")
    if not 200 <= status < 600:
        raise WorkerFailed(f"The worker answered with an unexpected status, {status}.")
    if 300 <= status < 400 and status != HTTPStatus.NOT_MODIFIED:
        raise WorkerFailed(f"The worker answered with a redirect ({status}).")


def _break_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _need(request: web.Request, *, is_light: bool) -> Need:
    headers = request.headers
    key, target = headers.get("X-SMG-Routing-Key"), headers.get("X-SMG-Target-Worker")
    only_asks = is_light and not request.body_exists
    return Need(key=key, target=target, is_light=is_light, only_asks=only_asks)


def _target(request: web.Request) -> str:
    """Path and query as the client wrote them."""
    raw = request.raw_path
    return raw if raw.startswith("/") else request.rel_url.raw_path_qs


Prepare: TypeAlias = Callable[[bytes, bool, Caller], WorkerBody]


class Fallback:
    """A handler for any method and path that no other route takes.

    `prepare(raw, is_conversation, caller)` returns a body as a worker gets it; it raises BadRequest
    for one that a worker might not survive.
    """

    def __init__(self, pool: WorkerPool, others: PassThrough, prepare: Prepare) -> None:
        self._pool = pool
        self._others = others
        self._prepare = prepare

    def __repr__(self) -> str:
        return f"<Fallback to {self._others!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Passes `request` on.

        Raises:
            NotSupported: it opens a websocket.
            MethodNotSupported: the path is the router's own or a worker's, the method is not.
            NotFound: no worker is registered, and the path is not known to be a worker's.
            BadRequest: a worker might not survive the body.
            RouterError: as `PassThrough` does.
        """
        return await self._pass(request, request.path, _target(request))

    async def handle_in_session(self, request: web.Request) -> web.StreamResponse:
        """The same for a path within a session; the worker gets the rest of the path.

        Only for what workers are known to serve: a client that asks for something else means the
        session, and must not hear from a worker that all is well. Nor is it one worker's where all
        are meant.
        """
        _, _, _, rest = _target(request).split("/", 3)
        path = "/" + request.match_info["path"]
        served = served_at(path)
        is_a_workers = served is not None and served.how != "control"
        if not is_a_workers and not await _allowed_methods(request):
            raise NotFound(f"A session has nothing at {path[:200]!r}.", code="unknown_url")
        return await self._pass(request, path, f"/{rest}")

    async def _pass(self, request: web.Request, path: str, target: str) -> web.StreamResponse:
        tidy, query = tidy_path(path), target.partition("?")[1:]
        served = served_at(tidy)
        await self._check(request, path, served)
        if served is not None and tidy != path:
            target = tidy + "".join(query)
        if not _is_checked(request, path, served):
            return await self._others.hand_on(request, target)
        raw = await read_body(request)
        body = self._prepare(raw, tidy in CONVERSATIONS, caller(request))
        return await self._others.hand_on(request, target, body)

    async def _check(self, request: web.Request, path: str, served: Served | None) -> None:
        is_upgrade = request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        if is_upgrade or (served is not None and served.how == "refused"):
            refusal = OnlyHttp if tidy_path(path) == RESPONSES_PATH else NotSupported
            raise refusal("Websockets are not served; use HTTP, with 'stream' where needed.")
        allowed = await _allowed_methods(request)
        if not allowed and served is not None and request.method not in served.methods:
            allowed = set(served.methods)
        if allowed and (request.method != hdrs.METH_OPTIONS or not len(self._pool)):
            raise MethodNotSupported(request.method, sorted(allowed))
        if len(self._pool):
            return
        if served is None:
            raise NotFound(f"Nothing is served at {path[:200]!r}.", code="unknown_url")
        raise NoWorker("No worker is registered.")


def _is_checked(request: web.Request, path: str, served: Served | None) -> bool:
    if not request.body_exists:
        return False
    if served is None:
        return is_of_an_api(path) and "json" in request.content_type
    return served.how in ("checked", "door")


async def _allowed_methods(request: web.Request) -> set[str]:
    """The methods of the router's own routes at this path; empty if it has none there."""
    tidy = tidied(request)
    for asked in (request,) if tidy is None else (request, tidy):
        allowed: set[str] = set()
        for resource in request.app.router.resources():
            _, methods = await resource.resolve(asked)
            allowed |= methods
        if own := allowed - {hdrs.METH_ANY}:
            return own  # a slash that is encoded may be part of a name
    return set()
