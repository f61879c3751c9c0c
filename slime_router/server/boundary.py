"""The edge of every request: errors become replies, and one line is logged."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson
from aiohttp import web

from slime_router.api.anthropic.reply import ANTHROPIC_ERRORS
from slime_router.api.errors import OPENAI_ERRORS, ErrorStyle, our_fault
from slime_router.api.request import PayloadTooLarge, reply_headers
from slime_router.auth.access import ANY_PATH, IN_SESSION, Access
from slime_router.errors import MethodNotSupported, RouterError, Unauthorized

logger = logging.getLogger(__name__)

_ANTHROPIC = re.compile(r"/v1/messages(/count_tokens)?$")
CLIENT_LEFT = 499  # what nginx logs; no client sees it

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Boundary:
    """Lets requests in, and turns errors into replies.

    `styles` covers the routes whose errors are not in OpenAI's format. Its paths are written as in
    the routing table, and also apply within a session.
    """

    def __init__(self, access: Access, styles: Mapping[str, ErrorStyle]) -> None:
        self._access = access
        self._styles = dict(styles)

    @web.middleware
    async def logged(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The outermost HTTP middleware."""
        started = time.monotonic()
        status, outcome = CLIENT_LEFT, "the client left"
        try:
            response = await self._answer(request, handler)
            status, outcome = response.status, _outcome(response)
            return response
        except web.HTTPException as exc:  # a reply that a plug-in raised
            status, outcome = exc.status, "-"
            raise
        except ConnectionError:  # the client's; a worker's was translated where it occurred
            return web.Response(status=CLIENT_LEFT)
        finally:
            logger.log(
                logging.WARNING if status >= 500 else logging.INFO,
                "%s %s %d %.0f ms %s",
                request.method,
                request.rel_url.raw_path,  # as sent: a decoded path could contain newlines
                status,
                (time.monotonic() - started) * 1e3,
                outcome,
            )

    @web.middleware
    async def guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Runs before anything that costs time. Raises what `Access.admit` does."""
        self._access.admit(request)
        return await handler(request)

    @web.middleware
    async def answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The innermost middleware, so that plug-ins see an error as the reply it becomes."""
        return await self._answer(request, handler)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
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
        style = self._style(request)
        headers = reply_headers(request, style.id_headers)
        reply = style.write(exc, headers["x-request-id"])
        reply.headers.update(headers)
        if isinstance(exc, MethodNotSupported):
            reply.headers["Allow"] = ", ".join(exc.allowed)
        if isinstance(exc, Unauthorized):
            reply.headers["www-authenticate"] = "Bearer"
        return reply

    def _style(self, request: web.Request) -> ErrorStyle:
        resource = request.match_info.route.resource
        path = ANY_PATH if resource is None else resource.canonical.removeprefix(IN_SESSION)
        if path != ANY_PATH:
            return self._styles.get(path, OPENAI_ERRORS)
        # No route: a path that ends like one of Anthropic's was meant for that API.
        return ANTHROPIC_ERRORS if _ANTHROPIC.search(request.path) is not None else OPENAI_ERRORS


def _outcome(response: web.StreamResponse) -> str:
    """What the log reports about a reply: how the prompt was made, or which error. No texts."""
    try:
        if (receipt := response.headers.get("x-slime-receipt")) is not None:
            return "{status} reused={reused} encoded={encoded}".format(**orjson.loads(receipt))
        if response.status >= 400 and isinstance(response, web.Response):
            error = orjson.loads(response.text or "")["error"]
            return f"{error['code']} param={error['param']!r:.100}"
    except (KeyError, TypeError, ValueError):
        pass  # a reply in another format: a worker's, or a plug-in's
    return "-"
