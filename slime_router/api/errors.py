"""The one place that writes error bodies; `slime_router.server.boundary` asks it to.

OpenAI's SDKs read four keys, so all four are always there. SGLang's own clients read
`error.message`, and a worker's own message reaches them byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from slime_router.errors import (
    Aborted,
    NoWorker,
    RouterError,
    TooManyRequests,
    WorkerFailed,
    WorkerRefused,
)
from slime_router.types import Finish

_RETRY_AFTER_S = range(1, 61)  # the first, if nothing better is known
_RETRY_LATER = frozenset({429, 503})
_CONSUMED = frozenset({502, 504})  # a generation was paid for: an SDK must not pay again on its own


@dataclass(frozen=True, slots=True)
class ErrorStyle:
    """How an API answers a request that failed before its first byte.

    Attributes:
        write: makes the reply from an error and the request's id.
        id_headers: the headers that carry the request's id in every reply.
    """

    write: Callable[[RouterError, str], web.Response]
    id_headers: tuple[str, ...] = ("x-request-id",)


def our_fault() -> RouterError:
    """The error that a client gets for an unexpected exception."""
    return RouterError("The router failed; its log says why.")


def openai_error(exc: RouterError, _: str = "") -> web.Response:
    """OpenAI's reply, which does not name the request."""
    return _final(exc, _reply(exc.status, orjson.dumps(openai_error_object(exc))))


def openai_error_object(exc: RouterError) -> dict[str, Any]:
    """OpenAI's error object, also used in a stream that has begun."""
    kind, code = _kind_and_code(exc)
    return {
        "error": {"message": exc.message, "type": kind, "param": exc.param, "code": code},
    }


def native_error(exc: RouterError, _: str = "") -> web.Response:
    """The reply of `/generate`: the worker's own body if there is one, else one in its format."""
    if isinstance(exc, WorkerRefused) and exc.body:
        is_json = exc.body.lstrip()[:1] in (b"{", b"[")
        return _reply(exc.status, exc.body, "application/json" if is_json else "text/plain")
    return _final(exc, _reply(exc.status, orjson.dumps(native_error_object(exc))))


def native_error_object(exc: RouterError) -> dict[str, Any]:
    """SGLang's error object."""
    return {"error": {"message": exc.message}}


def abort_error(finish: Finish, *, has_begun: bool) -> RouterError:
    """The error that a chat client gets for an aborted generation: by its worker or the router."""
    message = f"The generation was aborted: {finish.message or 'no reason given'}"
    status = finish.status_code
    if status is not None and 400 <= status < 500:
        return WorkerRefused(message, status=status)
    if has_begun:
        return WorkerFailed(message)
    if status is not None and status >= 500:
        return WorkerRefused(message, status=status)
    return Aborted(message)


def _kind_and_code(exc: RouterError) -> tuple[str, str | None]:
    """A worker's refusal takes its type from its status, not its class."""
    if not isinstance(exc, WorkerRefused) or exc.code != WorkerRefused.code:
        return exc.type, exc.code
    if exc.status == TooManyRequests.status:
        return TooManyRequests.type, TooManyRequests.code
    if exc.status == NoWorker.status:
        return NoWorker.type, "upstream_error"
    if exc.status >= 500:
        return WorkerFailed.type, WorkerFailed.code
    return exc.type, exc.code


def _reply(status: int, body: bytes, content_type: str = "application/json") -> web.Response:
    response = web.Response(status=status, body=body, content_type=content_type)
    if status in _RETRY_LATER:
        response.headers["retry-after"] = str(_RETRY_AFTER_S[0])
    if status in _CONSUMED:
        response.headers["x-should-retry"] = "false"
    return response


def _final(exc: RouterError, response: web.Response) -> web.Response:
    if exc.retry_after_s is not None and "retry-after" in response.headers:
        wait_s = min(max(math.ceil(exc.retry_after_s), _RETRY_AFTER_S[0]), _RETRY_AFTER_S[-1])
        response.headers["retry-after"] = str(wait_s)
    if exc.is_final:
        response.headers.pop("retry-after", None)
        response.headers["x-should-retry"] = "false"
    return response


OPENAI_ERRORS = ErrorStyle(openai_error)
NATIVE_ERRORS = ErrorStyle(native_error)
