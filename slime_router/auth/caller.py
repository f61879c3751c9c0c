"""Who asks: whose names a request means, and whose it may see. The server's edge found it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from slime_router.auth.owners import owned, owner_of

# Older versions of aiohttp know no typed keys, newer ones warn of others.
_KEY: Any = getattr(web, "RequestKey", lambda name, _: name)("slime_router.caller", object)


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of what a request makes and names. Lists show all there is to one who `sees_all`.

    `owner` is "" where the key that was given has no name, or none was needed.
    """

    owner: str = ""
    sees_all: bool = True

    def own(self, name: str) -> str:
        """What the caller calls `name`, as the router knows it."""
        return owned(self.owner, name)

    def sees(self, name: str) -> bool:
        """Whether a thing with this name inside the router is there for the caller."""
        return self.sees_what_is_of(owner_of(name))

    def sees_what_is_of(self, owner: str) -> bool:
        """Whether the things of this owner are there for the caller."""
        return self.sees_all or owner == self.owner


ANYBODY = Caller()


def caller(request: web.Request) -> Caller:
    """Who asks; where the router asks nobody for a key, anybody."""
    found = request.get(_KEY, ANYBODY)
    assert isinstance(found, Caller)
    return found


def introduce(request: web.Request, who: Caller) -> None:
    """From now on `who` asks."""
    request[_KEY] = who
