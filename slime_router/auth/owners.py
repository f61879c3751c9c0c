"""Names that belong to somebody: two keys may use the same name for two sessions.

Inside the router a name carries its owner; clients read and write it without. A name that belongs
to nobody, as all do when keys are unnamed, stays as it is.
"""

from __future__ import annotations

_ROOT = "\x1e"  # no name of a session has it: they are printable
_MARK = "\x1f"  # never part of a key's name; a client's own name that contains it is marked too


def owned(owner: str, name: str) -> str:
    """The name inside the router, unique to each pair of owner and name."""
    return f"{owner}{_MARK}{name}" if owner or _MARK in name else name


def owner_of(name: str) -> str:
    """Whose it is; "" if nobody's."""
    return name.partition(_MARK)[0] if _MARK in name else ""


def shown(name: str) -> str:
    """The name as its owner writes it."""
    return name.partition(_MARK)[2] if _MARK in name else name


def name_of_root(turn_id: str) -> str:
    """The name of a conversation without a session, by its first turn; no session has it."""
    return f"{_ROOT}{turn_id}"


def is_of_root(name: str) -> bool:
    """Whether it is one of a conversation without a session."""
    return name.startswith(_ROOT)
