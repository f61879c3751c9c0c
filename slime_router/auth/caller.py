"""The caller: whose names a request uses, and whose it may see. Set at the server's edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from slime_router.auth.owners import owned, owner_of

# Older versions of aiohttp lack typed keys; newer ones warn about any other kind.
_KEY: Any = getattr(web, "RequestKey", lambda name, _: name)("slime_router.caller", object)


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of what a request creates and names. Lists show everything to one who `sees_all`.

    `owner` is "" if the key has no name, or if no key was needed.
    """

    owner: str = ""
    sees_all: bool = True

    def own(self, name: str) -> str:
        """The router's name for what the caller calls `name`."""
        return owned(self.owner, name)

    def sees(self, name: str) -> bool:
        """Whether the thing with this name inside the router is visible to the caller."""
        return self.sees_what_is_of(owner_of(name))

    def sees_what_is_of(self, owner: str) -> bool:
        """Whether this owner's things are visible to the caller."""
        return self.sees_all or owner == self.owner


ANYBODY = Caller()


def caller(request: web.Request) -> Caller:
    """The request's caller; `ANYBODY` if the router requires no key."""
    found = request.get(_KEY, ANYBODY)
    assert isinstance(found, Caller)
    return found


def introduce(request: web.Request, who: Caller) -> None:
    """Records `who` as the caller of this request."""
    request[_KEY] = who
