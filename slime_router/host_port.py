"""The place where a router listens, as it is given and as it is shown."""

from __future__ import annotations


def bare_host(text: str) -> str:
    """A name or an address; the brackets that IPv6 has in URLs are taken off.

    Raises:
        ValueError: there is nothing in it.
    """
    host = text.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host:
        raise ValueError("it is empty")
    return host


def host_port(host: str, port: int) -> str:
    """The two as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
