"""The head of a request: what is refused before anybody looks at what it asks for."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from aiohttp import HttpVersion11, web

from slime_router.errors import BadRequest, HeadTooLarge, MethodNotSupported, SetupError

MAX_TARGET_LEN = 8190  # characters of path and query
MAX_HEADER_LEN = 8190  # characters of a name and its value
MAX_HEADERS = 128
# What the server's parser reads: beyond it, nobody knows which API and which header was meant.
PARSER_LIMITS = {
    "max_line_size": 2**16,
    "max_field_size": 2**16,
    "max_headers": 256,
}
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_GO_ON = "100-continue"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HOST = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


def check_head(request: web.Request) -> None:
    """Refuses a request whose head is too long, broken, or asks for what is not HTTP here.

    Raises:
        HeadTooLarge: the URL, a header, or their number.
        MethodNotSupported: a method that no API has.
        BadRequest: a header that is not text, an invalid host, something that is expected and
            unknown, or framing that HTTP/1.0 lacks.
    """
    if len(request.raw_path) > MAX_TARGET_LEN:
        raise HeadTooLarge(f"The URL is longer than {MAX_TARGET_LEN} characters.", status=414)
    headers = request.headers
    if len(headers) > MAX_HEADERS:
        raise HeadTooLarge(f"The request has more than {MAX_HEADERS} headers.")
    values = "".join(headers.values())
    if len(values) > MAX_HEADER_LEN:
        _check_lengths(request)
    if not values.isprintable():
        _check_values(request)
    if request.method not in METHODS:
        raise MethodNotSupported(request.method, METHODS)
    if request.version < HttpVersion11 and "Transfer-Encoding" in headers:
        raise BadRequest("HTTP/1.0 has no Transfer-Encoding.", param="transfer-encoding")
    if headers.get("Expect", _GO_ON).lower() != _GO_ON:
        raise BadRequest(f"'expect' must be '{_GO_ON}'.", param="expect")
    hosts = headers.getall("Host", ())
    if len(hosts) > 1 or (hosts and hosts[0] and _HOST.fullmatch(hosts[0]) is None):
        raise BadRequest("'host' must be a name or an address, with a port or not.", param="host")


async def let_go_on(request: web.Request) -> None:
    """Asks for the body, where a client waits for that; `check_head` refuses what else it expects.

    aiohttp's own handler answers before anything of ours runs.
    """
    is_asked = request.headers["Expect"].lower() == _GO_ON
    if is_asked and request.version >= HttpVersion11 and request.writer is not None:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the answer, nothing was sent


def _check_lengths(request: web.Request) -> None:
    for name, value in request.headers.items():
        if len(name) + len(value) > MAX_HEADER_LEN:
            raise HeadTooLarge(
                f"The header '{name[:80]}' is longer than {MAX_HEADER_LEN} characters.",
                param=name[:80].lower(),
            )


def _check_values(request: web.Request) -> None:
    for name, value in request.headers.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _bad(name, "is not UTF-8") from None
        if _CONTROL.search(value):
            raise _bad(name, "has control characters")


def _bad(name: str, fault: str) -> BadRequest:
    return BadRequest(f"The header '{name[:80]}' {fault}.", param=name[:80].lower())


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """Proxies whose word counts on which scheme and host a client asked for."""

    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, given: Sequence[str]) -> TrustedProxies:
        """From addresses and networks.

        Raises:
            SetupError: one of them is neither.
        """
        try:
            return cls(tuple(ipaddress.ip_network(text, strict=False) for text in given))
        except ValueError as exc:
            raise SetupError(f"--trusted-proxies: {exc}") from None

    def seen_by_client(self, request: web.Request) -> web.Request:
        """The request with the scheme and host that its client used; itself if no proxy sent it.

        A scheme or host that cannot be one does not count.
        """
        if not self.networks or not self._sent(request):
            return request
        scheme = _last(request, "X-Forwarded-Proto").lower()
        host = _last(request, "X-Forwarded-Host")
        return request.clone(
            scheme=scheme if scheme in ("http", "https") else request.scheme,
            host=host if _HOST.fullmatch(host) else request.host,
        )

    def _sent(self, request: web.Request) -> bool:
        try:
            address = ipaddress.ip_address(request.remote or "")
        except ValueError:  # a Unix socket has none
            return False
        return any(address in network for network in self.networks)


NO_PROXIES = TrustedProxies()


def _last(request: web.Request, name: str) -> str:
    """What the nearest proxy says, if several have; "" if none has."""
    values = request.headers.getall(name, ("",))
    return values[-1].rpartition(",")[2].strip()
