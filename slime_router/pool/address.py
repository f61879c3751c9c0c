"""The address of a worker, as whoever registers it writes it: checked, and in one spelling."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from slime_router.errors import BadRequest

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_MAX_HOST_LEN = 253  # of a name, in ASCII
_MAX_URL_LEN = 2048


def worker_url(url: str) -> str:
    """`http://host:port` without a trailing slash; a name beyond ASCII comes in its ASCII form.

    Raises:
        BadRequest: no worker could be reached there; it names `url`.
    """
    text = url.strip()
    if len(text) > _MAX_URL_LEN or not text.isprintable() or any(map(str.isspace, text)):
        raise _refusal("has no spaces or control characters, and is short")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _refusal("looks like http://host:port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refusal("looks like http://host:port")
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise _refusal("has no user, query or fragment")
    if parts.path.strip("/"):
        raise _refusal(f"has no path such as {parts.path[:40]!r}: the router adds SGLang's own")
    if port == 0:
        raise _refusal("has a port from 1 to 65535")
    suffix = "" if port is None else f":{port}"
    return f"{parts.scheme}://{_host(parts)}{suffix}"


def _host(parts: SplitResult) -> str:
    """The host as it is asked for: an address, or a name that can be looked up."""
    host = parts.hostname or ""
    if ":" in host or "[" in parts.netloc:
        return f"[{_checked_ip(host)}]"
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise _refusal("has a host name that can be looked up") from None
    labels = name.removesuffix(".").split(".")
    if len(name) > _MAX_HOST_LEN or not all(map(_LABEL.fullmatch, labels)):
        raise _refusal("has a host name whose parts have 1 to 63 letters, digits or hyphens")
    if labels[-1].isdigit():
        return _checked_ip(name)
    return name


def _checked_ip(host: str) -> str:
    """The address in its shortest form; before a zone, a URL may write %25 (RFC 6874)."""
    try:
        return ip_address(host.replace("%25", "%", 1)).compressed
    except ValueError:
        raise _refusal("has a host name or an IP address") from None


def _refusal(what: str) -> BadRequest:
    return BadRequest(f"A worker's URL {what}.", param="url")
