"""What a plug-in can do to the router: fail one request, within a limited time, and no more.

`SystemExit` and its like would end the process, and a plug-in that sleeps would keep a request
forever. The time that counts is the plug-in's own: while it waits for what it wraps, the clock is
stopped. An abort ends it in that time, too; what it wraps learns of aborts by itself. Where a
plug-in of aiohttp's kind works, the rid is in a body that nobody may have read yet: it is looked up
then.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary, ref

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware as HttpMiddleware

from slime_router.auth.caller import Visit, caller, visit
from slime_router.edge.bodies import body_so_far, share_body
from slime_router.edge.grace import Grace
from slime_router.edge.headers import unsendable
from slime_router.errors import Aborted, RouterError
from slime_router.generation.admission import aborted
from slime_router.generation.middleware import CallNext, HttpPlugin, Middleware
from slime_router.types import GenerateCall, GenerateChunk
from slime_router.waiting.cancel_scope import CancelScope, Cut

logger = logging.getLogger(__name__)

CLOSE_S = 5.0  # for what a plug-in does when its stream is closed

_END = object()  # of a stream
_ENDS = re.compile(r"[\r\n\0]")  # of a header

T = TypeVar("T")
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Clock:
    """The time of one layer for one request; it stands while something inside runs.

    Attributes:
        is_aborted: the abort of the request was asked for.
        open_streams: of what the layer wraps; they end by themselves after an abort.
    """

    def __init__(self, limit_s: float) -> None:
        self.is_aborted = False
        self.open_streams = 0
        self._limit_s = limit_s
        self._timeout: asyncio.Timeout | None = None
        self._scope: CancelScope | None = None
        self._inside = 0

    @contextmanager
    def running(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """For the block, `timeout` is what ends the layer; an abort raises Cut."""
        with CancelScope() as self._scope:
            self._timeout = timeout
            self._set()
            try:
                yield
            finally:
                self._timeout = self._scope = None

    @property
    def is_working(self) -> bool:
        """Whether the layer does something by itself: what it wraps learns of aborts by itself."""
        return self._scope is not None and not self._inside

    def abort(self) -> None:
        """Ends what the layer does by itself."""
        self.is_aborted = True
        if self._scope is not None and not self._inside:
            self._scope.cut()

    @contextmanager
    def standing(self) -> Iterator[None]:
        """For the block, the layer waits for what it wraps."""
        self._inside += 1
        self._set()
        try:
            yield
        finally:
            self._inside -= 1
            self._set()

    def _set(self) -> None:
        timeout = self._timeout
        if timeout is None or timeout.expired():
            return
        now = asyncio.get_running_loop().time()
        timeout.reschedule(None if self._inside else now + self._limit_s)


class _Names:
    """The rids of a request, as workers have them: they are in its body, which is parsed once."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._rids: Sequence[str] | None = None

    def known(self) -> Sequence[str]:
        """The rids in the body, once it has arrived; none where it is packed."""
        if self._rids is None and self._request.content.is_eof():
            body = body_so_far(self._request)
            self._rids = tuple(self._read(body)) if body else None
        return self._rids or ()

    def _read(self, body: bytes) -> Iterator[str]:
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            return
        given = said.get("rid") if isinstance(said, dict) else None
        for rid in given if isinstance(given, list) else (given,):
            if isinstance(rid, str):
                yield caller(self._request).own_rid(rid)


class PluginGuard:
    """Wraps plug-ins; `failures` counts the requests at which one of them failed."""

    def __init__(self, limit_s: float) -> None:
        self.failures = 0
        self._limit_s = limit_s
        self._clocks: dict[str, set[_Clock]] = {}  # of generations, by rid
        self._requests: dict[_Clock, _Names] = {}  # at plug-ins of aiohttp's kind
        self._answered: WeakKeyDictionary[web.StreamResponse, ref[Visit]]
        self._answered = WeakKeyDictionary()  # whose reply a response of such a plug-in is

    def __repr__(self) -> str:
        return f"<PluginGuard {self._limit_s} s, {self.failures} failures>"

    def cancel(self, rid: str) -> None:
        """No plug-in goes on with a generation of this rid: it ends as aborted."""
        for clock in self._clocks.get(rid, ()):
            clock.abort()
        for clock, names in self._requests.items():
            if clock.is_working and rid in names.known():
                clock.abort()

    def cancel_all(self) -> None:
        """No plug-in goes on with a generation that runs now."""
        for clock in chain(self._requests, *self._clocks.values()):
            clock.abort()

    def note_exit(self, exc: SystemExit) -> None:
        """A task or a callback asked for the end of the process, which goes on."""
        self.failures += 1
        logger.error("plug-in failed: what it started raised %r; the router goes on", exc)

    def cancelled(self, exc: BaseException) -> RouterError:
        """A plug-in cancelled the task of a generation, which is not that of its request."""
        return self._failed(_noted(exc) or "one", "it cancelled the task of its generation")

    @contextmanager
    def _clock(self, rid: str) -> Iterator[_Clock]:
        clocks = self._clocks.setdefault(rid, set())
        clocks.add(clock := _Clock(self._limit_s))
        try:
            yield clock
        finally:
            clocks.discard(clock)
            if not clocks:
                self._clocks.pop(rid, None)

    def generations(self, plugin: Middleware) -> Middleware:
        """The plug-in, guarded."""

        async def guarded(
            call: GenerateCall, call_next: CallNext
        ) -> AsyncGenerator[GenerateChunk, None]:
            with self._clock(call.asked_as or call.rid) as clock:
                stream = plugin(call, self._standing(call_next, clock, plugin))
                has_finished = False

                async def ask() -> GenerateChunk | None:
                    chunk: object = await anext(stream, _END)
                    if isinstance(chunk, GenerateChunk):
                        return chunk
                    if chunk is not _END:
                        raise self._failed(plugin, f"it yielded {_kind(chunk)}")
                    if not has_finished and not clock.is_aborted:
                        raise self._failed(plugin, "it ended without a finish")
                    return None

                try:
                    while has_finished or clock.open_streams or not clock.is_aborted:
                        chunk = await self._within(ask, clock, plugin)
                        if chunk is None:
                            return
                        has_finished |= chunk.finish is not None
                        yield chunk
                except Cut:
                    if has_finished:
                        return
                finally:
                    await self._closed(stream, plugin)
                yield aborted(call)

        guarded.__name__ = _name(plugin)
        return guarded

    def http(self, plugin: HttpPlugin) -> HttpMiddleware:
        """The same for aiohttp's kind."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            clock = _Clock(self._limit_s)
            share_body(request)
            sent: web.StreamResponse | None = None

            async def inside(request: web.Request) -> web.StreamResponse:
                nonlocal sent
                if sent is not None:
                    raise RuntimeError("the reply to this request is out: there can be no other")
                self._check_headers(request.headers, plugin, is_framed=True)
                with clock.standing():
                    response = await handler(request)
                if response.prepared:
                    sent = response
                return response

            async def ask() -> object:
                return await plugin(request, inside)

            self._requests[clock] = _Names(request)
            try:
                response = self._checked(await self._within(ask, clock, plugin), request, plugin)
                if sent is not None and response is not sent:
                    raise self._failed(plugin, "it returned another reply than the one that is out")
            except Exception as exc:  # any: the client would read a second reply as the next one's
                if sent is None and isinstance(exc, Cut):
                    raise Aborted("It was aborted while a plug-in worked.") from exc
                if sent is None:
                    raise
                if not isinstance(exc, (RouterError, Cut)):
                    self._failed(plugin, f"it raised {type(exc).__name__} after the reply")
                return sent
            finally:
                del self._requests[clock]
            return response

        return guarded

    def middlewares(
        self, generation: Sequence[Middleware], http: Sequence[HttpPlugin], grace: Grace
    ) -> list[HttpMiddleware]:
        """What wraps HTTP requests where there are plug-ins, the outermost first."""
        if not generation and not http:
            return []
        return [self._uncancelled(grace), *map(self.http, http)]

    def _uncancelled(self, grace: Grace) -> HttpMiddleware:
        """A plug-in that cancels the task of a request fails it, as if it had raised something.

        The server does so too, but only where the client has left, or at the end.
        """

        @web.middleware
        async def uncancelled(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            except asyncio.CancelledError as exc:
                names = _noted(exc)
                transport, task = request.transport, asyncio.current_task()
                has_left = transport is None or transport.is_closing()
                if not names or has_left or grace.is_over or task is None:
                    raise
                failed = self._failed(names, "it cancelled the task of its request")
                if request.writer.output_size:  # the status line is out: it can only break off
                    raise
                while task.uncancel():
                    pass
                raise failed from exc

        return uncancelled

    def _checked(
        self, response: object, request: web.Request, plugin: object
    ) -> web.StreamResponse:
        """What a plug-in returned, if it can be the reply to this request. Raises RouterError."""
        if not isinstance(response, web.StreamResponse):
            raise self._failed(plugin, f"it returned {_kind(response)}")
        if isinstance(response, web.WebSocketResponse) and not response.prepared:
            raise self._failed(plugin, "it returned a WebSocketResponse that it did not prepare")
        if not response.prepared and not _is_http(response):
            raise self._failed(plugin, "it returned a response whose head cannot be sent")
        asked = visit(request)  # a plug-in may hand another one a copy of the request
        if self._answered.setdefault(response, ref(asked))() is not asked:
            raise self._failed(plugin, "it returned a response that was sent before")
        return response

    async def _within(self, ask: Callable[[], Awaitable[T]], clock: _Clock, plugin: object) -> T:
        """What `ask` returns."""
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                with clock.running(timeout):
                    return await ask()
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._failed(plugin, f"it took more than {self._limit_s:g} s") from None
        except Exception:  # the boundary translates it
            raise
        except BaseException as exc:  # SystemExit and its like would end the process
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                exc.add_note(_name(plugin))  # for `_uncancelled`
                raise
            raise self._failed(plugin, f"it raised {type(exc).__name__}") from exc

    async def _closed(self, stream: AsyncGenerator[GenerateChunk, None], plugin: object) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await stream.aclose()
        except (Exception, asyncio.CancelledError, GeneratorExit):  # as if there were no guard
            raise
        except BaseException as exc:  # see `_within`
            raise self._failed(plugin, f"it raised {type(exc).__name__}") from exc

    def _standing(self, call_next: CallNext, clock: _Clock, plugin: object) -> CallNext:
        async def inside(call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
            if clock.is_aborted:
                yield aborted(call)
                return
            self._check_headers(call.headers, plugin)
            stream = call_next(call)
            clock.open_streams += 1
            try:
                while True:
                    with clock.standing():
                        chunk = await anext(stream, None)
                    if chunk is None:
                        return
                    yield chunk
            finally:
                clock.open_streams -= 1
                with clock.standing():
                    await stream.aclose()

        return inside

    def _check_headers(self, headers: object, plugin: object, *, is_framed: bool = False) -> None:
        """Sees that a worker can be sent `headers`. Raises RouterError: it cannot."""
        if (name := unsendable(headers, is_framed=is_framed)) is not None:
            raise self._failed(plugin, f"it set headers that cannot be sent: {name[:80]!r}")

    def _failed(self, plugin: object, reason: str) -> RouterError:
        self.failures += 1
        logger.error("plug-in failed: %s: %s", _name(plugin), reason)
        return RouterError("A plug-in failed; the log says which.")


def _is_http(response: web.StreamResponse) -> bool:
    """Whether its head can be sent, and is one head."""
    lines = chain(response.headers.values(), response.headers, [response.reason])
    return 100 <= response.status <= 999 and not any(map(_ENDS.search, lines))


def _noted(exc: BaseException) -> str:
    """Which plug-ins it came through; see `PluginGuard._within`."""
    return " or ".join(dict.fromkeys(getattr(exc, "__notes__", ())))


def _kind(given: object) -> str:
    return "nothing" if given is None else f"a {type(given).__name__}"


def _name(plugin: object) -> str:
    if isinstance(plugin, str):
        return plugin
    return str(getattr(plugin, "__name__", type(plugin).__name__))
