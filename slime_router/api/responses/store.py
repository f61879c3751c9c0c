"""The responses that a client may refer to: `previous_response_id`, item references, `GET`.

They live in memory; a journal brings them back (`journaled`). Where there are too many, the owner
that has most loses its least recently used one, so that nobody can have another's forgotten. A
response that continues another holds on to it, so a conversation stays whole when the id of its
first response goes, and each item is held once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from slime_router.auth.caller import ANYBODY, Caller
from slime_router.errors import BadRequest, NotFound
from slime_router.json_text import size_of

Item: TypeAlias = dict[str, Any]

MAX_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, its input, and the response that it continues."""

    response: Mapping[str, Any]
    asked: tuple[Item, ...]
    said: tuple[Item, ...]  # the output items, each with the `turn` that sampled it
    previous: Stored | None = None
    owner: str = ""  # only this caller can see it

    def steps(self) -> list[Stored]:
        """This response and all that it continues, the oldest first."""
        steps: list[Stored] = []
        step: Stored | None = self
        while step is not None:
            steps.append(step)
            step = step.previous
        return steps[::-1]

    def conversation(self) -> list[Item]:
        """All items up to the end of this response, the oldest first."""
        return [item for each in self.steps() for item in (*each.asked, *each.said)]


class ResponseStore:
    """At most `max_stored` responses, by id, of at most `max_bytes` as JSON.

    What is forgotten counts as long as a response that continues it is stored. What another owner
    stored is not visible.
    """

    def __init__(self, max_stored: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_stored = max_stored
        self._max_bytes = max_bytes
        self._bytes = 0
        self._responses: dict[str, Stored] = {}
        self._lines: dict[str, OrderedDict[str, None]] = {}  # ids by owner, the latest used last
        self._bytes_of: Counter[str] = Counter()  # by owner
        self._held: dict[str, _Held] = {}  # those, and all that they continue
        self._items: dict[str, tuple[Item, str, str]] = {}  # whose it is, and of which response
        self.forgotten = 0  # to stay within the limits

    def __repr__(self) -> str:
        return f"<ResponseStore {len(self)}/{self._max_stored}, {self._bytes} bytes>"

    def __len__(self) -> int:
        return len(self._responses)

    @property
    def size(self) -> int:
        """What is held, in bytes of JSON."""
        return self._bytes

    def put(self, stored: Stored) -> None:
        """Keeps a response; others are forgotten to make room for it.

        One that is too large by itself is not kept either.
        """
        if stored.response["id"] in self._responses:
            self._forget(stored.response["id"])
        self._responses[stored.response["id"]] = stored
        self._lines.setdefault(stored.owner, OrderedDict())[stored.response["id"]] = None
        self._items.update(
            {item["id"]: (item, stored.owner, stored.response["id"]) for item in stored.said}
        )
        self._hold(stored)
        while self._bytes > self._max_bytes:
            self._make_room(max(self._lines, key=self._bytes_of.__getitem__))
        while len(self._responses) > self._max_stored:
            self._make_room(max(self._lines, key=lambda owner: len(self._lines[owner])))

    def _make_room(self, owner: str) -> None:
        self.forgotten += 1
        self._forget(next(iter(self._lines[owner])))

    def _hold(self, stored: Stored) -> None:
        """One more reason to keep a response, and so all that it continues."""
        step: Stored | None = stored
        while step is not None:
            held = self._held.get(step.response["id"])
            if held is not None:
                held.reasons += 1
                return
            held = self._held[step.response["id"]] = _Held(_size(step))
            self._bytes += held.size
            self._bytes_of[step.owner] += held.size
            step = step.previous

    def _let_go(self, stored: Stored) -> None:
        step: Stored | None = stored
        while step is not None:
            held = self._held[step.response["id"]]
            held.reasons -= 1
            if held.reasons:
                return
            self._bytes -= held.size
            self._bytes_of[step.owner] -= held.size
            del self._held[step.response["id"]]
            step = step.previous

    def get(self, response_id: str, by: Caller = ANYBODY) -> Stored:
        """Raises NotFound where it was never kept, is forgotten, or is not the caller's."""
        stored = self._responses.get(response_id)
        if stored is None or not by.sees_what_is_of(stored.owner):
            raise NotFound(f"Response with id '{response_id[:80]}' not found.", param="id")
        self._lines[stored.owner].move_to_end(response_id)
        return stored

    def previous(self, response_id: str, by: Caller = ANYBODY) -> Stored:
        """Raises BadRequest where a request continues what is not here."""
        try:
            return self.get(response_id, by)
        except NotFound:
            raise BadRequest(
                f"Previous response with id '{response_id[:80]}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            ) from None

    def item(self, item_id: str, param: str, by: Caller = ANYBODY) -> Item:
        """An output item. Raises NotFound."""
        item, owner, _ = self._items.get(item_id, (None, "", ""))
        if item is None or not by.sees_what_is_of(owner):
            raise NotFound(f"Item with id '{item_id[:80]}' not found.", param=param)
        return item

    def delete(self, response_id: str, by: Caller = ANYBODY) -> None:
        """Forgets a response. Raises NotFound."""
        self.get(response_id, by)
        self._forget(response_id)

    def _forget(self, response_id: str) -> None:
        stored = self._responses.pop(response_id)
        line = self._lines[stored.owner]
        del line[response_id]
        if not line:
            del self._lines[stored.owner]
        for item in stored.said:
            self._items.pop(item["id"], None)
        self._let_go(stored)


@dataclass(slots=True)
class _Held:
    """What a response takes, and for how many reasons it is held."""

    size: int  # bytes, without what it continues
    reasons: int = 1


def _size(stored: Stored) -> int:
    said = [item["id"] for item in stored.said]  # they stand in the response as well
    try:
        return len(orjson.dumps((stored.response, stored.asked, said)))
    except TypeError:  # halves of emojis, or deeper than orjson writes
        return size_of([stored.response, list(stored.asked), said])
