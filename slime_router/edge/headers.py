"""Which headers pass the router: those of the message do, those of a connection or a party do not.

What identifies a client (its keys, cookies and addresses) is for the router alone, and what a
worker says in the router's place, such as a request's id or a receipt, would be taken for ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from slime_router.auth.keys import KEY_HEADERS

_HOP_BY_HOP = frozenset(  # RFC 9110, 7.6.1: these describe one connection, not the message
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Our server has already answered `Expect`.
_OF_CLIENTS = frozenset(
    {
        "host",
        "expect",
        "cookie",
        "forwarded",
        "via",
        "x-real-ip",
        "x-client-ip",
        "true-client-ip",
        "cf-connecting-ip",
        *KEY_HEADERS,
    }
)
_OF_CLIENTS_PREFIXES = ("x-forwarded-", "x-slime-")
_OF_WORKERS = frozenset(
    {
        "server",
        "date",
        "set-cookie",
        "set-cookie2",
        "www-authenticate",
        "authentication-info",
        "nel",
        "report-to",
        "reporting-endpoints",
        "public-key-pins",
        "x-sendfile",  # with those of nginx, a file or path that the proxy before us would serve
        "location",
        "content-location",
        "refresh",
        "alt-svc",
        "clear-site-data",
        "strict-transport-security",
        "x-request-id",
        "request-id",
        "x-should-retry",
    }
)
_OF_WORKERS_PREFIXES = ("access-control-", "x-accel-", "x-slime-")
_PACKED = frozenset({"content-encoding", "content-length"})
_FRAMING = frozenset({"content-length", "transfer-encoding"})
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

Dropped: TypeAlias = Callable[[str], bool]


def unsendable(headers: object, *, is_framed: bool = False) -> str | None:
    """What cannot be sent of `headers`, which somebody else made: a name, or what they are instead.

    With `is_framed`, they may say how long the body is.
    """
    if not isinstance(headers, Mapping):
        return type(headers).__name__
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str) or not _is_text(value):
            return str(name)
        is_misplaced = name.lower() in _FRAMING and not is_framed
        if is_misplaced or _NAME.fullmatch(name) is None:
            return name
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return _CONTROL.search(value) is None


def to_worker(request: web.Request, *, but: Collection[str] = ()) -> CIMultiDict[str]:
    """The headers of a request that its worker gets, except those named `but`.

    The body goes on unpacked: it loses its coding, and its length with that.
    """
    headers = request.headers
    names = _OF_CLIENTS.union(but, _PACKED if "content-encoding" in headers else ())
    return _end_to_end(headers, lambda name: name in names or name.startswith(_OF_CLIENTS_PREFIXES))


def to_client(headers: CIMultiDictProxy[str], *, but: Collection[str] = ()) -> CIMultiDict[str]:
    """The headers of a worker's answer that the client gets, except those named `but`."""
    names = _OF_WORKERS.union(but)
    return _end_to_end(headers, lambda name: name in names or name.startswith(_OF_WORKERS_PREFIXES))


def _end_to_end(headers: CIMultiDictProxy[str], is_dropped: Dropped) -> CIMultiDict[str]:
    """`headers` without those that belong to the connection; repeated ones stay repeated."""
    named = {
        name.strip().lower()
        for value in headers.getall("Connection", ())
        for name in value.split(",")
    }
    hops = _HOP_BY_HOP | named
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if (lower := name.lower()) not in hops and not is_dropped(lower)
    )
