"""Which names a session may have."""

from __future__ import annotations

MAX_SESSION_ID_LEN = 512


def is_label(name: object, max_len: int = MAX_SESSION_ID_LEN) -> bool:
    """Whether it is a non-empty string of at most `max_len` printable characters."""
    return isinstance(name, str) and 0 < len(name) <= max_len and name.isprintable()


def is_dots(name: object) -> bool:
    """Whether a URL that ends in it points elsewhere, however it is escaped."""
    return name in (".", "..")


def is_session_id(name: object) -> bool:
    """Whether it can name a session."""
    return is_label(name) and not is_dots(name)
