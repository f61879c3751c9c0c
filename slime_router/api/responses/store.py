"""The responses that a client may refer to: `previous_response_id`, item references, `GET`.

They live in memory only, and the least recently used goes first. A response that continues another
holds on to it, so a conversation stays whole when the id of its first response goes, and each item
is held once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from slime_router.auth.caller import ANYBODY, Caller
from slime_router.errors import BadRequest, NotFound

Item: TypeAlias = dict[str, Any]


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
    """At most `max_stored` responses, by id. What another owner stored is not visible."""

    def __init__(self, max_stored: int) -> None:
        self._max_stored = max_stored
        self._responses: OrderedDict[str, Stored] = OrderedDict()
        self._items: dict[str, tuple[Item, str]] = {}  # and whose it is

    def __repr__(self) -> str:
        return f"<ResponseStore {len(self)}/{self._max_stored}>"

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, stored: Stored) -> None:
        """Keeps a response; those over the limit are forgotten."""
        self._responses[stored.response["id"]] = stored
        self._items.update({item["id"]: (item, stored.owner) for item in stored.said})
        while len(self._responses) > self._max_stored:
            self._forget(next(iter(self._responses)))

    def get(self, response_id: str, by: Caller = ANYBODY) -> Stored:
        """Raises NotFound where it was never kept, is forgotten, or is not the caller's."""
        stored = self._responses.get(response_id)
        if stored is None or not by.sees_what_is_of(stored.owner):
            raise NotFound(f"Response with id '{response_id[:80]}' not found.", param="id")
        self._responses.move_to_end(response_id)
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
        item, owner = self._items.get(item_id, (None, ""))
        if item is None or not by.sees_what_is_of(owner):
            raise NotFound(f"Item with id '{item_id[:80]}' not found.", param=param)
        return item

    def delete(self, response_id: str, by: Caller = ANYBODY) -> None:
        """Forgets a response. Raises NotFound."""
        self.get(response_id, by)
        self._forget(response_id)

    def _forget(self, response_id: str) -> None:
        for item in self._responses.pop(response_id).said:
            self._items.pop(item["id"], None)
