"""Stored responses of all processes and routers: what a request needs is fetched before."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from aiohttp import web

from slime_router.api.request import read_object
from slime_router.api.responses.item_ids import response_of_item
from slime_router.api.responses.journaled import TABLE, JournaledResponses, is_deleted, is_packed
from slime_router.api.responses.store import ResponseStore
from slime_router.archive.shared import SharedArchive
from slime_router.errors import NotDurable, RouterError
from slime_router.siblings.siblings import Siblings

SHOW, FORGET = "responses", "forget_response"
MAX_NAMES = 1000  # of one request

logger = logging.getLogger(__name__)

Door: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SharedResponses:
    """Wraps the doors that look for stored responses.

    `keeping` has those of routers on other machines, by their ids.
    """

    def __init__(
        self, responses: ResponseStore, siblings: Siblings, keeping: SharedArchive | None
    ) -> None:
        self._kept = responses if isinstance(responses, JournaledResponses) else None
        self._others = keeping if keeping is not None and keeping.is_shared else None
        self._siblings = siblings
        siblings.answer(SHOW, self._shown)
        siblings.answer(FORGET, self._forget)

    def first(self, door: Door) -> Door:
        """The door, to which a request comes when what it names is here, if anybody has it."""
        if self._kept is None:
            return door

        async def handle(request: web.Request) -> web.StreamResponse:
            named = request.match_info.get("id")
            needed, others = ([named], []) if named else await _names(request)
            await self._bring(needed)
            with suppress(NotDurable):  # items have ids that nobody has stored, too
                await self._bring(others)
            answer = await door(request)
            if request.method == "DELETE" and self._siblings.others:
                await self._siblings.ask(FORGET, {"id": named})
            return answer

        return handle

    async def _bring(self, names: Sequence[str]) -> None:
        assert self._kept is not None
        await self._hear_of_deletions(names)
        missing = [name for name in names if not self._kept.holds(name)][:MAX_NAMES]
        if not missing:
            return
        if self._siblings.others:
            heard = await self._siblings.ask(SHOW, {"names": missing})
            for lines in heard.answers.values():
                for line in lines:
                    self._put([(name, text.encode()) for name, text in line])
        for name in missing:
            if not self._kept.holds(name):
                self._put(await self._line_of(response_of_item(name) or name))

    async def _hear_of_deletions(self, names: Iterable[str]) -> None:
        """What is here may have been deleted at another router."""
        assert self._kept is not None
        if self._others is None:
            return
        here = dict.fromkeys(map(self._kept.response_of, names))
        for name in [name for name in here if name is not None][:MAX_NAMES]:
            data = None
            with suppress(NotDurable):  # it goes on with what is here
                data = await self._look(name)
            if data is not None and is_deleted(data):
                self._kept.forget_here(name)

    def _put(self, line: list[tuple[str, bytes]]) -> None:
        """A response, after all that it continues."""
        assert self._kept is not None
        if line and not self._kept.holds(line[-1][0]):  # by another request, meanwhile
            self._kept.bring_back(line)

    async def _line_of(self, name: str) -> list[tuple[str, bytes]]:
        """See `JournaledResponses.line_of`, for other routers; nothing if a part is gone."""
        line: list[tuple[str, bytes]] = []
        wanted: str | None = name
        while wanted is not None and self._others is not None and len(line) < MAX_NAMES:
            data = await self._look(wanted)
            if data is None:
                return []
            line.append((wanted, data))
            wanted = json.loads(data)["previous"]
        return line[::-1]

    async def _look(self, name: str) -> bytes | None:
        """What other routers have kept of a response. Raises NotDurable where nobody can tell."""
        assert self._others is not None
        data = await self._others.look(TABLE, name)
        if data is None or is_packed(data):
            return data
        logger.warning("not looked up: %.100s: what the store has by this name is not ours", name)
        raise NotDurable("What the store has by this name is not a response.")

    async def _shown(self, message: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
        """Each with all that it continues, the oldest first."""
        if self._kept is None:
            return []
        found = (self._kept.line_of(name) for name in message["names"])
        return [[(name, data.decode()) for name, data in line] for line in found if line]

    async def _forget(self, message: Mapping[str, Any]) -> None:
        if self._kept is not None:
            self._kept.forget_here(message["id"])


async def _names(request: web.Request) -> tuple[list[str], list[str]]:
    """The response that a request continues, if any, and the items that it names."""
    try:
        body = await read_object(request)
    except RouterError:
        return [], []  # the door says so
    given = body.get("input")
    items = given if isinstance(given, list) else []
    continued = [body.get("previous_response_id")]
    named = [each.get("id") for each in items if isinstance(each, dict)]
    needed, others = ([x for x in names if isinstance(x, str)] for names in (continued, named))
    return needed, others
