"""CORS: which web pages may read the router's answers. Off unless origins are given.

Browsers send a preflight request before they send a key, so it is answered without one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web

from slime_router.auth.keys import check_header_value
from slime_router.edge.paths import Handler
from slime_router.errors import SetupError

MAX_AGE_S = 600  # how long a browser may go without asking again

ANY = "*"
EXPOSED = (
    "x-request-id",
    "request-id",
    "x-slime-receipt",
    "x-slime-joined",
    "x-slime-degraded",
    "x-should-retry",
    "retry-after",
    "location",
)
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_ASKED = "access-control-request-method"
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s*:\[\]]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Cors:
    """Answers preflight requests, and marks every answer with the origin that may read it.

    Raises:
        SetupError: an origin is invalid.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        for origin in origins:
            check_header_value(origin, "--cors-allowed-origins")
        self._origins = frozenset(map(_as_browsers_say_it, origins))

    def __repr__(self) -> str:
        return f"<Cors {', '.join(sorted(self._origins)) or 'off'}>"

    @property
    def is_on(self) -> bool:
        """Whether any origin is allowed."""
        return bool(self._origins)

    @web.middleware
    async def preflight(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The HTTP middleware that runs before the one that asks for keys."""
        headers = request.headers
        if request.method != "OPTIONS" or "origin" not in headers or _ASKED not in headers:
            return await handler(request)
        response = web.Response(status=204)
        if self._allowed(request) is not None:
            response.headers["Access-Control-Allow-Methods"] = _METHODS
            asked = headers.get("access-control-request-headers")
            if asked is not None:  # `*` would not cover `authorization`
                response.headers["Access-Control-Allow-Headers"] = asked
            response.headers["Access-Control-Max-Age"] = str(MAX_AGE_S)
        return response

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """aiohttp's signal that an answer's headers are about to be sent, a stream's included."""
        if ANY not in self._origins:
            response.headers.add("Vary", "Origin")
        allowed = self._allowed(request)
        if allowed is not None:
            response.headers["Access-Control-Allow-Origin"] = allowed
            response.headers["Access-Control-Expose-Headers"] = ", ".join(EXPOSED)

    def allows(self, origin: str) -> bool:
        """Whether a page of this origin may read answers."""
        return ANY in self._origins or origin.lower() in self._origins

    def _allowed(self, request: web.Request) -> str | None:
        """The value of `Access-Control-Allow-Origin`; None for an origin that may read nothing."""
        origin = request.headers.get("origin")
        if origin is None:
            return None
        if ANY in self._origins:
            return ANY
        return origin if self.allows(origin) else None


def _as_browsers_say_it(origin: str) -> str:
    """In small letters, and without the port that its scheme has anyway."""
    found = _ORIGIN.fullmatch(origin.lower())
    if origin == ANY:
        return origin
    if found is None or int((found[3] or ":0")[1:]) > 65535:
        raise SetupError(
            f"--cors-allowed-origins {origin!r}: an origin looks like https://host:port"
        )
    scheme, host, port = found.groups(default="")
    return f"{scheme}://{host}{'' if port == _DEFAULT_PORTS.get(scheme) else port}"
