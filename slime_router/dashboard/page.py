"""`GET /dashboard`: the page and the files that it loads, served as they lie in `assets/`.

The page holds no data. It asks the router's own routes, with the key that its user types in.
Nothing is loaded from anywhere else, and no text becomes HTML: the browser is asked to refuse both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import orjson
from aiohttp import web

from slime_router.auth.caller import caller
from slime_router.errors import NotFound
from slime_router.telemetry.failures import RecentFailures

ASSETS = Path(__file__).parent / "assets"
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def assets() -> dict[str, tuple[bytes, str]]:
    """The page's files, by name: what is in them, and of which media type it is."""
    return {
        path.name: (path.read_bytes(), MEDIA_TYPES[path.suffix])
        for path in sorted(ASSETS.iterdir())
        if path.suffix in MEDIA_TYPES
    }


class Dashboard:
    """Serves the page, whose files are read once, and the requests that failed last."""

    def __init__(self, failures: RecentFailures) -> None:
        self._failures = failures
        self._files = assets()

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of every route."""
        return [
            ("GET", "/dashboard", self.page),
            ("GET", "/dashboard/{file}", self.file),
            ("GET", "/recent_errors", self.errors),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """`GET /dashboard`; after a slash, the files that it names would lie elsewhere."""
        if request.path.endswith("/"):
            return web.Response(status=308, headers={"Location": "../dashboard"})
        return self._sent(request, INDEX)

    async def file(self, request: web.Request) -> web.Response:
        """`GET /dashboard/{file}`: a style sheet or a module of the page."""
        return self._sent(request, request.match_info["file"])

    async def errors(self, request: web.Request) -> web.Response:
        """`GET /recent_errors`: what the log says of them; the caller's own, or all of them."""
        found = self._failures.seen_by(caller(request).sees_what_is_of)
        body = orjson.dumps({"errors": found}, default=str)
        return web.Response(body=body, content_type="application/json")

    def _sent(self, request: web.Request, name: str) -> web.Response:
        found = self._files.get(name)
        if found is None:
            raise NotFound(f"The dashboard has no file '{name:.80}'.")
        data, media_type = found
        tag = hashlib.sha256(data).hexdigest()[:32]
        headers = {**HEADERS, "ETag": f'"{tag}"'}
        if any(each.value == tag for each in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=data, content_type=media_type, charset="utf-8", headers=headers)
