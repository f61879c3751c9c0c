"""Which web pages may make a browser ask the router.

A browser sends what any page tells it to, also to addresses that only this machine can reach.
Two things give such a request away: the origin that the browser adds, and, where a page has made
its own name point to this machine (DNS rebinding), the host that it asks for.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from slime_router.errors import Forbidden, SetupError

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
ANY_HOST = "*"
_NAME = re.compile(r"[^\s/:@*?#]+|\[[0-9A-Fa-f:.]+\]")

_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
_OWN_SITES = (None, "none", "same-origin")


@dataclass(frozen=True, slots=True)
class Origins:
    """Lets requests in by where they come from.

    Attributes:
        is_allowed: whether CORS allows an origin.
        hosts: names under which the router may be asked; None if any will do.
        needs_key: control routes are open to nobody without a key, which no page has by itself.
    """

    is_allowed: Callable[[str], bool]
    hosts: frozenset[str] | None
    needs_key: bool

    def admit(self, request: web.Request, *, is_control: bool) -> None:
        """Checks the host and the origin.

        Raises:
            Forbidden: the host is not the router's, or the page may not do this.
        """
        if self.hosts is not None and not is_own_host(request.host, self.hosts):
            raise Forbidden(
                "The router is not served under this host: --allowed-hosts names more.",
                param="host",
                code="forbidden_host",
            )
        if request.method in SAFE_METHODS and not is_control:
            return
        if request.method == "OPTIONS" or not is_foreign(request.headers, request.host):
            return
        is_allowed = self.is_allowed(request.headers.get("Origin", ""))
        if not is_allowed or (is_control and not self.needs_key):
            raise Forbidden(
                "A page of this origin may not ask for this.",
                param="origin",
                code="forbidden_origin",
            )


ANYWHERE = Origins(lambda _: True, None, needs_key=True)


def own_hosts(host: str, allowed: Sequence[str], *, has_keys: bool) -> frozenset[str] | None:
    """The names under which a router that listens on `host` may be asked; None for any.

    Without keys, a router on a loopback address relies on nobody else reaching it.

    Raises:
        SetupError: one of `allowed` is not a name, so nobody would ever ask under it.
    """
    for name in allowed:
        if name != ANY_HOST and not _NAME.fullmatch(name):
            raise SetupError(
                f"--allowed-hosts {name!r}: it takes names such as router.example, without scheme"
                " and port"
            )
    if has_keys or not is_loopback(host) or ANY_HOST in allowed:
        return None
    return frozenset(name.lower().rstrip(".") for name in (host, *allowed))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address, however it is written."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        return ipaddress.ip_address(socket.inet_aton(host)).is_loopback  # 127.1, say
    except (OSError, UnicodeError):
        name = host.lower().rstrip(".")
        return name in ("localhost", "ip6-localhost", "ip6-loopback") or name.endswith(".localhost")


def is_own_host(given: str, hosts: frozenset[str]) -> bool:
    """Whether a Host header names the router: one of `hosts`, an address, or a local name.

    A page cannot make an address, `localhost` or a name without a dot point anywhere.
    """
    name = _without_port(given).lower().rstrip(".")
    if name in hosts or "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_foreign(headers: Mapping[str, str], host: str) -> bool:
    """Whether a browser sends the request for a page that is not the router's own."""
    origin = headers.get("Origin")
    if origin is None:
        return headers.get("Sec-Fetch-Site") not in _OWN_SITES
    scheme, _, place = origin.lower().partition("://")
    own, port = host.lower(), _DEFAULT_PORTS.get(scheme)
    return place not in (own, own.removesuffix(f":{port}")) and f"{place}:{port}" != own


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host
