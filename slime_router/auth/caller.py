"""The caller: whose names a request uses, and whose it may see. Set at the server's edge.

With it, in a request's `Visit`, is what else the router has found out about it.

Two keys may use the same name for two sessions: inside the router a name carries its owner; clients
read and write it without. A name that belongs to nobody, as all do when keys are unnamed, stays as
it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from aiohttp import web

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


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of what a request creates and names. Lists show everything to one who `sees_all`.

    `owner` is "" if the key has no name, or if no key was needed. `is_admin`: the admin's key was
    sent, or the router has no keys at all.
    """

    owner: str = ""
    sees_all: bool = True
    is_admin: bool = True
    tag: str = ""  # before its rids at workers; no other caller can make it

    def own(self, name: str) -> str:
        """The router's name for what the caller calls `name`."""
        return owned(self.owner, name)

    def own_rid(self, rid: str) -> str:
        """The rid at workers of what the caller calls `rid`."""
        return f"{self.tag}{rid}"

    @property
    def partition(self) -> str:
        """What parts a worker's cache from other owners'; the owner cannot be read from it."""
        return sha256(self.owner.encode()).hexdigest()[:16]

    def sees(self, name: str) -> bool:
        """Whether the thing with this name inside the router is visible to the caller."""
        return self.sees_what_is_of(owner_of(name))

    def sees_what_is_of(self, owner: str) -> bool:
        """Whether this owner's things are visible to the caller."""
        return self.sees_all or owner == self.owner


ANYBODY = Caller()


class Visit:
    """What is known of one HTTP request while it is handled, each part where it was found out.

    Copies of the request (`clone`) share it.

    Attributes:
        caller: whose request it is.
        headers: those of every reply to it, once somebody has made them.
        body: its whole body, where that is kept.
        is_body_shared: somebody else may read the body, too, by aiohttp's means.
    """

    __slots__ = ("__weakref__", "body", "caller", "headers", "is_body_shared")

    def __init__(self) -> None:
        self.caller = ANYBODY
        self.headers: dict[str, str] | None = None
        self.body: bytes | None = None
        self.is_body_shared = False


_KEY = web.RequestKey("slime_router.visit", Visit)


def visit(request: web.Request) -> Visit:
    """What is known of this request."""
    try:
        found: Visit = request[_KEY]
    except KeyError:
        request[_KEY] = found = Visit()
    return found


def caller(request: web.Request) -> Caller:
    """The request's caller; `ANYBODY` if the router requires no key."""
    return visit(request).caller


def introduce(request: web.Request, who: Caller) -> None:
    """Records `who` as the caller of this request."""
    visit(request).caller = who
