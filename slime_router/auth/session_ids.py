"""Which names a session can have."""

from __future__ import annotations

MAX_SESSION_ID_LEN = 512


def is_label(name: object, max_len: int = MAX_SESSION_ID_LEN) -> bool:
    """Whether it is a string of some printable characters, at most `max_len`."""
    return isinstance(name, str) and 0 < len(name) <= max_len and name.isprintable()


def is_dots(name: object) -> bool:
    """Whether a URL that ends in it names another place, however it is written."""
    return name in (".", "..")


def is_session_id(name: object) -> bool:
    """Whether it can name a session."""
    return is_label(name) and not is_dots(name)
