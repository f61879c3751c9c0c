"""The edge of every request: errors become replies, and one line is logged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from slime_router.api.errors import openai_error, our_fault
from slime_router.api.request import reply_headers, request_id
from slime_router.archive.shared import SharedArchive
from slime_router.auth.access import STRAYS, Access, door
from slime_router.auth.caller import caller
from slime_router.auth.origins import ANYWHERE, Origins, own_hosts
from slime_router.config import Config
from slime_router.edge.cors import Cors
from slime_router.edge.grace import Grace
from slime_router.edge.heads import NO_PROXIES, PARSER_LIMITS, TrustedProxies, check_head
from slime_router.errors import (
    BadRequest,
    HeadTooLarge,
    MethodNotSupported,
    NotDurable,
    PayloadTooLarge,
    RouterError,
    SetupError,
    ShuttingDown,
    Unauthorized,
    UnsupportedCoding,
)
from slime_router.server.error_styles import error_style
from slime_router.telemetry.bodies import BodyLine
from slime_router.telemetry.failures import RecentFailures
from slime_router.telemetry.meters import Meters
from slime_router.telemetry.request_line import request_line
from slime_router.telemetry.request_record import (
    RequestRecord,
    current_request,
    enter_request,
    note_failure,
)
from slime_router.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499  # what nginx logs; no client sees it
_READING = ("GET", "HEAD", "OPTIONS")
_DEGRADED = {"x-slime-degraded": "the store did not answer"}  # so that more may be in it
_ALWAYS_ANSWERED = (
    "/", "/health", "/liveness", "/metrics", "/metrics/prometheus", "/prometheus/metrics"
)  # fmt: skip

_READINESS = ("/readiness", "/health_generate")
_PROBES = frozenset((*_ALWAYS_ANSWERED, *_READINESS))  # asked again and again, by machines

_TOO_MANY = "Too many headers"  # aiohttp's parser has no type of its own for it

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Target(NamedTuple):
    """What a route says of the requests that it matches: looked up once, not for each of them."""

    door: str
    id_headers: tuple[str, ...]
    is_control: bool


class Boundary:
    """Lets requests in, and turns errors into replies."""

    def __init__(
        self,
        access: Access,
        *,
        origins: Origins = ANYWHERE,
        proxies: TrustedProxies = NO_PROXIES,
        grace: Grace | None = None,
        journal: SharedArchive | None = None,
        meters: Meters | None = None,
        tracing: Tracing | None = None,
        logs_bodies: bool = False,
    ) -> None:
        self.failures = RecentFailures()
        self._meters = meters or Meters()
        self._tracing = tracing
        self._logs_bodies = logs_bodies
        self._access = access
        self._origins = origins
        self._proxies = proxies
        self._grace = grace or Grace(0)
        self._journal = journal
        self._targets: dict[web.AbstractRoute, _Target] = {}

    @classmethod
    def of(
        cls,
        config: Config,
        access: Access,
        cors: Cors,
        grace: Grace,
        journal: SharedArchive | None,
        meters: Meters,
        tracing: Tracing | None,
    ) -> Boundary:
        """The edge that these settings ask for. Raises SetupError: a proxy has no address."""
        has_keys = access.is_on
        return cls(
            access,
            origins=Origins(
                cors.allows,
                own_hosts(config.host, config.allowed_hosts, has_keys=has_keys),
                needs_key=has_keys,
            ),
            proxies=TrustedProxies.of(config.trusted_proxies),
            grace=grace,
            journal=journal,
            meters=meters,
            tracing=tracing,
            logs_bodies=config.log_requests,
        )

    @web.middleware
    async def logged(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The outermost HTTP middleware."""
        started = time.monotonic()
        request = self._proxies.seen_by_client(request)
        target = self._target(request)
        headers = reply_headers(request, target.id_headers)
        record = RequestRecord(headers["x-request-id"], target.door)
        record.keeps_body = self._logs_bodies
        if self._tracing is not None and not _is_probe(request):
            record.trace = self._tracing.begin(request.method, record.door, request.headers)
        enter_request(record)
        status = CLIENT_LEFT
        try:
            response = await self._answer(request, handler, target)
            status = response.status
            return response
        except web.HTTPException as exc:  # a reply that a plug-in raised
            status = exc.status
            raise
        except ConnectionError:  # the client's; a worker's was translated where it occurred
            return web.Response(status=CLIENT_LEFT)
        finally:
            record.ending = "client_left" if status == CLIENT_LEFT else ""
            if self._grace.is_over:
                status = ShuttingDown.status if status == CLIENT_LEFT else status
                record.ending = "shutdown"
            seconds = time.monotonic() - started
            self._meters.answered(record.door, status, seconds)
            self._log(request, record, status, seconds)

    def _log(
        self, request: web.Request, record: RequestRecord, status: int, seconds: float
    ) -> None:
        """The request's line, and where they are wanted its span and its body's line."""
        level = _level(request, record, status)
        if not logger.isEnabledFor(level) and record.trace is None:
            return
        path = request.rel_url.raw_path  # as sent: a decoded path could contain newlines
        line = request_line(record, request.method, path, status, seconds)
        # By the logger's own parts: it is known that it says this, and that no code is named.
        logger.handle(logger.makeRecord(logger.name, level, "", 0, line, (), None))
        if record.trace is not None:
            record.trace.end(line.fields)
        if record.body is not None:
            logger.info(BodyLine(record.body))

    def _target(self, request: web.Request) -> _Target:
        route = request.match_info.route
        found = self._targets.get(route)
        if found is None:
            id_headers = error_style(request).id_headers
            found = _Target(door(request), id_headers, self._access.is_control(request))
            resource = route.resource
            if resource is not None and resource.canonical not in STRAYS:
                self._targets[route] = found  # for the rest, it depends on the path
        return found

    @web.middleware
    async def guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Runs before anything that costs time. Raises what `Access.admit` does."""
        self._access.admit(request)
        record, who = current_request(), caller(request)
        if record is not None:
            record.key, record.tag = who.owner, who.tag
        return await handler(request)

    @web.middleware
    async def durable(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """With a journal only: waits until it is read, and until what a request did is in it.

        A reply of a model is durable before its last bytes, which are out when this runs.

        Raises:
            StartingUp: the journal is still being read.
            NotDurable: it cannot be written, and must be.
        """
        journal = self._journal
        if journal is None:
            return await handler(request)
        if request.rel_url.path not in _ALWAYS_ANSWERED:
            journal.check_read()
        if request.rel_url.path in _READINESS and await journal.unready() is not None:
            raise NotDurable(journal.refusal)
        unanswered = journal.unanswered
        response = await handler(request)
        if response.prepared:
            return response
        if request.method in _READING:
            if journal.unanswered != unanswered:  # perhaps somebody else's: rather once too often
                response.headers.update(_DEGRADED)
            return response
        if await journal.written() is not None and journal.must_be_written:
            raise NotDurable(journal.refusal)
        return response

    @web.middleware
    async def answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The innermost middleware, so that plug-ins see an error as the reply it becomes."""
        return await self._answer(request, handler)

    async def _answer(
        self, request: web.Request, handler: Handler, target: _Target | None = None
    ) -> web.StreamResponse:
        """With a target, the request is looked at before anything else is done with it."""
        try:
            if target is not None:
                check_head(request)
                self._origins.admit(request, is_control=target.is_control)
            return await handler(request)
        except RouterError as exc:
            return self._error(request, exc)
        except web.HTTPRequestEntityTooLarge as exc:
            return self._error(request, PayloadTooLarge(exc.text or "the body is too large"))
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:  # the edge of a request: a bug of ours must not go unnoticed
            logger.exception("%s %s failed", request.method, request.rel_url.raw_path)
            return self._error(request, our_fault())

    def _error(self, request: web.Request, exc: RouterError) -> web.Response:
        """The error in the format of the API that the route belongs to."""
        note_failure(exc)
        path = request.rel_url.raw_path  # as sent: a decoded path could contain newlines
        self.failures.note(current_request(), request.method, path, exc, time.time())
        style = error_style(request)
        headers = reply_headers(request, style.id_headers)
        reply = style.write(exc, headers["x-request-id"])
        reply.headers.update(headers)
        if isinstance(exc, MethodNotSupported):
            reply.headers["Allow"] = ", ".join(exc.allowed)
        if isinstance(exc, UnsupportedCoding):
            reply.headers["Accept-Encoding"] = ", ".join(exc.read)
        if isinstance(exc, Unauthorized):
            reply.headers["www-authenticate"] = "Bearer"
        return reply


class Protocol(web.RequestHandler):
    """One connection of a client.

    What aiohttp refuses by itself, because it cannot or will not read the head, is answered in
    OpenAI's form: which API was meant, nobody knows by then.
    """

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The reply to what never became a request. It closes the connection.

        Raises:
            ConnectionError: some of another reply was sent already.
        """
        super().handle_error(request, status, exc, message)  # logs it
        reply = openai_error(_ours(exc))
        reply.headers["x-request-id"] = request_id(request.headers)
        reply.force_close()
        return reply


def _level(request: web.Request, record: RequestRecord, status: int) -> int:
    """How much it matters: a probe's line only to who looks for it."""
    failure = record.failure
    is_ours = isinstance(failure, RouterError) and failure.status >= 500
    if status >= 500 or (is_ours and status != CLIENT_LEFT):
        return logging.WARNING
    return logging.DEBUG if _is_probe(request) and status < 400 else logging.INFO


def _is_probe(request: web.Request) -> bool:
    return request.method in _READING and request.rel_url.path in _PROBES


def protocols(runner: web.AppRunner) -> Callable[[], Protocol]:
    """What makes a protocol for each connection, with the settings of the runner's server.

    Raises:
        SetupError: this version of aiohttp keeps them elsewhere.
    """
    server = runner.server
    assert server is not None, "the runner was set up"
    settings = getattr(server, "_kwargs", None)
    if not isinstance(settings, dict):
        raise SetupError(
            f"this version of aiohttp ({aiohttp.__version__}) does not fit: "
            "Server._kwargs is missing"
        )
    return partial(Protocol, server, loop=asyncio.get_running_loop(), **settings)


def _ours(exc: BaseException | None) -> RouterError:
    """The error in our own words: what could not be read may hold a key."""
    if isinstance(exc, LineTooLong):
        longest = PARSER_LIMITS["max_field_size"]
        return HeadTooLarge(f"The URL or a header is longer than {longest} bytes.")
    if isinstance(exc, HttpProcessingError):
        if exc.message.startswith(_TOO_MANY):
            most = PARSER_LIMITS["max_headers"]
            return HeadTooLarge(f"The request has more than {most} headers.")
        return BadRequest("The request is not HTTP.")
    return our_fault()
