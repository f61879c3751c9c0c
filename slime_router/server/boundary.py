"""The edge of every request: errors become replies, and one line is logged."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from slime_router.api.anthropic.reply import messages_error
from slime_router.api.errors import openai_error
from slime_router.api.request import PayloadTooLarge, request_id
from slime_router.errors import MethodNotSupported, RouterError

logger = logging.getLogger(__name__)

_ANTHROPIC = re.compile(r"/v1/messages(/count_tokens)?$")
CLIENT_LEFT = 499  # nginx's word in its logs; no client reads it

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost HTTP middleware."""
    started = time.monotonic()
    status, outcome = CLIENT_LEFT, "the client left"
    try:
        response = await _answer(request, handler)
        status, outcome = response.status, _outcome(response)
        return response
    except web.HTTPException as exc:  # a reply that a plug-in raised
        status, outcome = exc.status, "-"
        raise
    finally:
        logger.log(
            logging.WARNING if status >= 500 else logging.INFO,
            "%s %s %d %.0f ms %s",
            request.method,
            request.rel_url.raw_path,  # as it was sent: a decoded one could hold line ends
            status,
            (time.monotonic() - started) * 1e3,
            outcome,
        )


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RouterError as exc:
        return _error(request, exc)
    except web.HTTPRequestEntityTooLarge as exc:
        return _error(request, PayloadTooLarge(exc.text or "the body is too large"))
    except web.HTTPException:
        raise
    except ConnectionError:  # the client's; a worker's was translated where it came up
        return web.Response(status=CLIENT_LEFT)
    except Exception:  # the edge of a request: a fault of ours must not end in silence
        logger.exception("%s %s failed", request.method, request.rel_url.raw_path)
        return _error(request, RouterError("internal error"))


def _error(request: web.Request, exc: RouterError) -> web.Response:
    """What no door has answered, in the shape of the API whose path it is."""
    given = request_id(request.headers)
    is_anthropic = _ANTHROPIC.search(request.path) is not None
    reply = messages_error(exc, request_id=given) if is_anthropic else openai_error(exc)
    reply.headers["x-request-id"] = given
    if is_anthropic:
        reply.headers["request-id"] = given
    if isinstance(exc, MethodNotSupported):
        reply.headers["Allow"] = ", ".join(exc.allowed)
    return reply


def _outcome(response: web.StreamResponse) -> str:
    """What the log says of a reply: how the prompt was made, or which error it is. No texts."""
    try:
        if (receipt := response.headers.get("x-slime-receipt")) is not None:
            return "{status} reused={reused} encoded={encoded}".format(**orjson.loads(receipt))
        if response.status >= 400 and isinstance(response, web.Response):
            error = orjson.loads(response.text or "")["error"]
            return f"{error['code']} param={error['param']!r:.100}"
    except (KeyError, TypeError, ValueError):
        pass  # a reply of another shape: a worker's, or a plug-in's
    return "-"
