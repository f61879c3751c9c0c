"""The doors of the API's description. Both are open: they reveal nothing about this router."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from importlib.resources import files
from typing import Any, TypeAlias

import orjson
from aiohttp import web

from slime_router.api.openapi.document import Route, document
from slime_router.auth.access import STRAYS

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_OWN_NAME = re.compile(r"^`[A-Z]+ [^`]*`[:.] ?")  # of the route, which is said anyway
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
)


class ApiDescription:
    """Describes the routes of the application that serves it; made when it is first asked for."""

    def __init__(self, chat_path: str) -> None:
        self._chat_path = chat_path
        self._document = b""

    def __repr__(self) -> str:
        return f"<ApiDescription {len(self._document)} bytes>"

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of both doors."""
        return [("GET", "/openapi.json", self.show), ("GET", "/docs", self.page)]

    async def show(self, request: web.Request) -> web.Response:
        """`GET /openapi.json`: the API in the words of OpenAPI 3.1."""
        if not self._document:
            self._document = await asyncio.to_thread(self._written, request.app)
        return web.Response(body=self._document, content_type="application/json")

    def _written(self, app: web.Application) -> bytes:
        return orjson.dumps(document(_routes_of(app), chat_path=self._chat_path))

    async def page(self, _: web.Request) -> web.Response:
        """`GET /docs`: the same as a page, which loads nothing from elsewhere."""
        text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        headers = {"Content-Security-Policy": _PAGE_POLICY}
        return web.Response(text=text, content_type="text/html", headers=headers)


def _routes_of(app: web.Application) -> Iterator[Route]:
    for route in app.router.routes():
        path = "" if route.resource is None else route.resource.canonical
        if route.method in ("*", "HEAD") or path in STRAYS:
            continue
        yield Route(route.method, path, _first_line(route.handler))


def _first_line(handler: Any) -> str:
    while isinstance(handler, partial):
        handler = handler.func
    about = (inspect.getdoc(handler) or "").partition("\n")[0]
    return _OWN_NAME.sub("", about)
