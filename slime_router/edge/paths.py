"""One route, however its path is written: a slash at its end, a doubled or an encoded one changes
nothing.

aiohttp's own way is a redirect, which not every client follows with its body.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias

from aiohttp import hdrs, web
from aiohttp.abc import AbstractMatchInfo
from yarl import URL

from slime_router.auth.access import IN_SESSION
from slime_router.auth.surface import tidy_path
from slime_router.edge.heads import let_go_on
from slime_router.errors import SetupError

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PLAIN_PATH = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~@:+-]+)+")  # as clients send it
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)


def tidied(request: web.Request) -> web.Request | None:
    """The request with its path as a route spells it; None if it is spelled so."""
    raw = request.rel_url.raw_path
    path = tidy_path(_ENCODED_SLASH.sub("/", raw))  # workers decode it, too
    if path == raw:
        return None
    query = request.rel_url.raw_query_string
    return request.clone(rel_url=URL(f"{path}?{query}" if query else path, encoded=True))


def in_sessions(routes: Sequence[tuple[str, str, Handler]]) -> list[tuple[str, str, Handler]]:
    """The same routes under a session's path: an agent only has to change its base URL."""
    return [
        (method, IN_SESSION + path.rstrip("/"), handler)
        for method, path, handler in routes
        if path != "/"
    ]


def add_route(app: web.Application, method: str, path: str, handler: Handler) -> None:
    """Serves `path`; what answers GET answers HEAD too."""
    app.router.add_route(method, path, handler, expect_handler=let_go_on)
    if method == "GET":
        app.router.add_route("HEAD", path, handler, expect_handler=let_go_on)


def add_chat(app: web.Application, path: str, handler: Handler) -> None:
    """Serves chat at a path that somebody chose.

    Raises:
        SetupError: it cannot be a path.
    """
    if not _PLAIN_PATH.fullmatch(path.removeprefix(IN_SESSION)):  # aiohttp would see a pattern
        raise SetupError(
            f"chat cannot be served at {path!r}: letters, digits and ._~@:+- stand between slashes"
        )
    add_route(app, hdrs.METH_POST, path, handler)


class TidyPaths(web.AbstractResource):
    """Finds the route of a path with too many slashes.

    It is registered after all routes and before the one that takes every path; `canonical` says
    which paths it is asked about, and `strays` which routes do not count.
    """

    def __init__(self, router: web.UrlDispatcher, canonical: str, strays: frozenset[str]) -> None:
        super().__init__()
        self._router = router
        self._canonical = canonical
        self._strays = strays

    @property
    def canonical(self) -> str:
        """Where aiohttp looks for it."""
        return self._canonical

    async def resolve(self, request: web.Request) -> tuple[Any, set[str]]:
        """aiohttp's question: the route, and the methods that the path has."""
        tidy = tidied(request)
        if tidy is None:
            return None, set()
        found: AbstractMatchInfo = await self._router.resolve(tidy)
        resource = getattr(getattr(found, "route", None), "resource", None)
        if resource is None or resource.canonical in self._strays:
            return None, set()
        return found, {request.method}

    def url_for(self, **_: str) -> URL:
        """No URL leads here."""
        raise RuntimeError("a path is tidied, not made")

    def add_prefix(self, prefix: str) -> None:  # noqa: ARG002 - aiohttp's signature
        """Refuse: this resource is never part of a sub-application."""
        raise RuntimeError("tidied paths have no prefix")

    def get_info(self) -> Any:
        """Nothing to show."""
        return {}

    def raw_match(self, path: str) -> bool:  # noqa: ARG002 - aiohttp's signature
        """No path of a route is its own."""
        return False

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[web.AbstractRoute]:
        return iter(())
