"""Who may ask for what: client keys, the admin's key, and whose things a request is about.

A key is compared as a digest, in constant time, with every known key. Nothing here keeps, logs or
returns a key itself.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

from aiohttp import web

from slime_router.auth.caller import Caller, introduce
from slime_router.auth.keys import check_header_value, check_key, sent_keys
from slime_router.auth.keys_file import read_keys_file
from slime_router.auth.origins import is_loopback
from slime_router.auth.surface import is_for_clients
from slime_router.config import Config
from slime_router.errors import NotFound, SetupError, Unauthorized

IN_SESSION = "/sessions/{session}"
ANY_PATH = "/{path}"  # the catch-all route
OWNER_HEADER = "x-slime-owner"  # whose things the admin means
TARGET_HEADER = "x-smg-target-worker"  # which worker is to take it, whatever the policy says
OVERRIDE_PREFIX = "x-override-"  # SGLang: they replace fields of the body, unchecked

_PAGE = {("GET", "/dashboard"), ("GET", "/dashboard/{file}")}  # it holds no data
_OPEN = {
    *(("GET", "/health"), ("GET", "/liveness"), ("GET", "/readiness"), ("HEAD", "/")),
    *(("GET", "/openapi.json"), ("GET", "/docs")),  # they reveal nothing about this router
    *_PAGE,
}
_LISTING = ("GET", "/sessions")
_TELLING = ("/server_info", "/get_server_info")  # a worker's flags, its own key among them
STRAYS = frozenset((ANY_PATH, IN_SESSION + ANY_PATH))  # what matches no other route

Route: TypeAlias = tuple[str, str]  # method, and path as the routing table has it


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `name` is "" for an unnamed key; what it creates belongs to nobody."""

    digest: bytes = field(repr=False)
    name: str = ""
    is_admin: bool = False


NO_KEY = Key(b"")


class Access:
    """Lets requests in. With no keys at all, everything is open; see `admit`.

    If there is no admin key, an unnamed key is the admin's.
    """

    def __init__(self, keys: Sequence[Key], *, needs_key: bool) -> None:
        self._set(keys, needs_key=needs_key)
        told = (prefix + path for prefix in ("", IN_SESSION) for path in _TELLING)
        self._admin_routes: set[Route] = {_LISTING, *(("GET", path) for path in told)}

    @classmethod
    def of(cls, config: Config) -> Access:
        """The keys of a configuration.

        Raises:
            SetupError: a key is unusable or given twice, or the key file cannot be read.
        """
        keys: list[Key] = []
        if config.worker_api_key is not None:
            check_header_value(config.worker_api_key, "--worker-api-key")
        check_header_value(config.health_check_endpoint, "--health-check-endpoint")
        if config.api_key is not None:
            check_key(config.api_key, "--api-key")
            keys.append(Key(_digest(config.api_key), is_admin=config.admin_api_key is None))
        if config.admin_api_key is not None:
            check_key(config.admin_api_key, "--admin-api-key")
            keys.append(Key(_digest(config.admin_api_key), is_admin=True))
        if config.api_keys_file is not None:
            named = read_keys_file(Path(config.api_keys_file))
            keys += [Key(_digest(key), name) for name, key in named.items()]
        if len({key.digest for key in keys}) < len(keys):
            raise SetupError("one API key is given twice: nobody could tell whose it is")
        needs_key = config.api_key is not None or config.api_keys_file is not None
        return cls(keys, needs_key=needs_key)

    def __repr__(self) -> str:
        return f"<Access {len(self._keys)} keys>"

    def __len__(self) -> int:
        return len(self._keys)

    def check_change(self, other: Access) -> None:
        """Raises SetupError unless these keys may become those of `other` while requests run."""
        if self.is_on != other.is_on or self._needs_key != other._needs_key:
            raise SetupError("whether clients need a key changes only with a restart")

    def become(self, other: Access) -> None:
        """From now on only the keys of `other` are let in; what runs goes on."""
        self._set(other._keys, needs_key=other._needs_key)

    def _set(self, keys: Sequence[Key], *, needs_key: bool) -> None:
        self._keys = tuple(keys)
        self._needs_key = needs_key  # for client routes
        self._names = {key.name for key in keys if key.name}

    def reserve(self, routes: Iterable[Route]) -> None:
        """Reserves these routes for the admin; paths are written as in the routing table."""
        self._admin_routes |= {(method, _canonical(path)) for method, path in routes}

    def warning(self, host: str) -> str | None:
        """The warning for a router that listens on `host`; None if there is no need for one."""
        if self._needs_key or is_loopback(host):
            return None
        return f"{host} is open to others, and no API key is needed: give --api-key"

    @property
    def owners(self) -> frozenset[str]:
        """The names of the keys, "" for those that have none."""
        return frozenset(key.name for key in self._keys)

    @property
    def is_on(self) -> bool:
        """Whether there is any key."""
        return bool(self._keys)

    def admit(self, request: web.Request) -> None:
        """Identifies the caller (see `caller`) and checks that the route is open to them.

        Raises:
            Unauthorized: it is not.
            NotFound: the admin names an owner that does not exist.
        """
        introduce(request, self._admitted(request))

    def is_control(self, request: web.Request) -> bool:
        """Whether only the admin's key, where there is one, opens the route."""
        return self._is_reserved(request, _route(request), NO_KEY)

    def _admitted(self, request: web.Request) -> Caller:
        route = _route(request)
        if route in _OPEN:
            return Caller(sees_all=False, is_admin=False)
        key = self._known(request)
        if key is None and self._needs_key:
            raise Unauthorized("A valid API key is needed: send 'Authorization: Bearer KEY'.")
        key = key or NO_KEY
        if not key.is_admin and self._is_reserved(request, route, key):
            raise Unauthorized("This route needs the admin's API key.")
        if not key.is_admin:
            _check_headers(request)
        return self._caller(request, key)

    def _known(self, request: web.Request) -> Key | None:
        """The key that the request presents; if it presents several, the admin's wins."""
        shown = [_digest(text) for text in sent_keys(request.headers)]
        found = [
            key
            for key in self._keys
            if any([hmac.compare_digest(key.digest, digest) for digest in shown])  # noqa: C419
        ]
        return max(found, key=lambda key: key.is_admin, default=None)

    def _is_reserved(self, request: web.Request, route: Route, key: Key) -> bool:
        if route == _LISTING:
            return not key.name  # a named key may list its own sessions
        if route[1] in STRAYS:
            return not is_for_clients("/" + request.match_info["path"])
        return route in self._admin_routes

    def _caller(self, request: web.Request, key: Key) -> Caller:
        owner = request.headers.get(OWNER_HEADER)
        if owner is None or owner == key.name:
            return Caller(
                key.name, sees_all=key.is_admin, is_admin=key.is_admin, tag=self._tag(key)
            )
        if not key.is_admin:
            raise Unauthorized(f"Only the admin's API key can be used with '{OWNER_HEADER}'.")
        if owner not in self._names:
            raise NotFound(f"No API key has the name '{owner[:80]}'.", param=OWNER_HEADER)
        [named] = [each for each in self._keys if each.name == owner]
        return Caller(owner, sees_all=False, tag=self._tag(named))

    def _tag(self, key: Key) -> str:
        """What only this key makes; "" where there are no names to tell apart."""
        if not self._names:
            return ""
        return f"{sha256(b'rid' + key.digest).hexdigest()[:16]}."


def _check_headers(request: web.Request) -> None:
    """Raises Unauthorized where a header overrides what the router decides and checks."""
    for name in map(str.lower, request.headers):
        if name == TARGET_HEADER or name.startswith(OVERRIDE_PREFIX):
            raise Unauthorized(f"Only the admin's API key can be used with '{name[:80]}'.")


def door(request: web.Request) -> str:
    """The path of its route, without the session before it; "" for what has no route of its own."""
    path = _route(request)[1]
    return "" if path in STRAYS else path.removeprefix(IN_SESSION) or path


def _route(request: web.Request) -> Route:
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else ""
    is_head = request.method == "HEAD" and path != "/"
    return "GET" if is_head else request.method, path


def _canonical(path: str) -> str:
    """The route as aiohttp names it: without the patterns of its variables."""
    return re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", path)


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogateescape")).digest()
