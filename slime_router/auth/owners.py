"""Names that belong to somebody: two keys may give one name to two sessions.

Inside the router a name says whose it is; clients read and write it without that. What belongs to
nobody, which is everything where keys have no names, is the name itself.
"""

from __future__ import annotations

_MARK = "\x1f"  # stands in no key's name; a client's own name that has it is marked too


def owned(owner: str, name: str) -> str:
    """The name inside the router; another one for each pair of owner and name."""
    return f"{owner}{_MARK}{name}" if owner or _MARK in name else name


def owner_of(name: str) -> str:
    """Whose it is; "" for nobody's."""
    return name.partition(_MARK)[0] if _MARK in name else ""


def shown(name: str) -> str:
    """As its owner writes it."""
    return name.partition(_MARK)[2] if _MARK in name else name
