"""Where a router listens."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a URL of nothing but these; `path` and `url` have no slash at the end."""

    url: str
    host: str
    port: int | None
    path: str
    is_secure: bool

    @classmethod
    def of(cls, url: str) -> Address:
        """The address that a URL names.

        Raises:
            ValueError: it is not an `http://` or `https://` URL of a host, and perhaps a path.
        """
        parts = urlsplit(url)
        if "@" in parts.netloc:  # which no message may show
            raise ValueError("The URL of a router names no account: give it as one of the headers.")
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
        ):
            raise ValueError(f"{url!r} is not the URL of a router, such as http://localhost:30001.")
        is_secure = parts.scheme == "https"
        return cls(url.rstrip("/"), parts.hostname, parts.port, parts.path.rstrip("/"), is_secure)

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection that is opened when it is used."""
        kind = http.client.HTTPSConnection if self.is_secure else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout_s)
