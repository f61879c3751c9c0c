"""Stored responses that outlive the router: each is written to its journal, and read at start.

Where routers share what is kept, none knows what others continue. So nothing is dropped there: one
that is deleted stays, without its name, which tells the others; and those that nothing needs any
more are dropped at the next start. A store with a time to live drops them by itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

from slime_router.api.responses.store import ResponseStore, Stored
from slime_router.archive.shared import SharedArchive
from slime_router.auth.caller import ANYBODY, Caller

TABLE: Final = "responses"
_NAMES = frozenset({"response", "asked", "said", "previous", "owner", "is_named"})
MAX_DELETED = 10_000  # that others may not know of yet

logger = logging.getLogger(__name__)


class JournaledResponses(ResponseStore):
    """Responses as `ResponseStore` has them, written down."""

    def __init__(self, archive: SharedArchive, max_stored: int) -> None:
        super().__init__(max_stored)
        self._archive = archive

    def put(self, stored: Stored) -> None:
        """See `ResponseStore.put`."""
        self._write(stored, is_named=True)
        super().put(stored)  # which may forget it again

    def delete(self, response_id: str, by: Caller = ANYBODY) -> None:
        """See `ResponseStore.delete`; other routers notice when they look."""
        stored = self.get(response_id, by)
        super().delete(response_id, by)
        if self._archive.is_shared:
            self._write(stored, is_named=False)

    def _forget(self, response_id: str) -> None:
        step: Stored | None = self._responses[response_id]
        super()._forget(response_id)
        if self._archive.is_shared:
            return
        if response_id in self._held:  # what continues it needs it
            assert step is not None
            self._write(step, is_named=False)
        while step is not None and step.response["id"] not in self._held:
            self._archive.drop(TABLE, step.response["id"])
            step = step.previous

    def _write(self, stored: Stored, *, is_named: bool) -> None:
        self._archive.put(TABLE, stored.response["id"], partial(_packed, stored, is_named))

    def bring_back_all(self, packed: Iterable[tuple[str, bytes]]) -> None:
        """What was written before the start, the oldest first; drops what nothing needs."""
        deleted: dict[str, None] = {}
        others: list[str] = []
        for name, is_named in self.bring_back(packed).items():
            if not is_named:
                deleted[name] = None
            else:
                others.append(name)
        room = MAX_DELETED if self._archive.is_shared else 0
        for name in (*others, *list(deleted)[: max(len(deleted) - room, 0)]):
            if name not in self._held:
                self._archive.drop(TABLE, name)

    def bring_back(self, packed: Iterable[tuple[str, bytes]]) -> Mapping[str, bool]:
        """What was written before the start, or elsewhere, the oldest first.

        Returns the names, and whether they are those of responses that were not deleted.
        """
        found: dict[str, Stored] = {}
        names: dict[str, bool] = {}
        for name, data in packed:
            if name in self._responses:  # it stays as it is
                found[name] = self._responses[name]
                continue
            if not is_packed(data):
                logger.error("response %.80s cannot be read: it is not as it was written", name)
                continue
            known = json.loads(data)
            names[name] = known["is_named"]
            if known["previous"] is not None and known["previous"] not in found:
                logger.warning("response %.80s is lost: what it continues is not there", name)
                continue
            stored = found[name] = Stored(
                known["response"],
                tuple(known["asked"]),
                tuple(known["said"]),
                found.get(known["previous"]),
                known["owner"],
            )
            if known["is_named"]:
                super().put(stored)
        return names

    # In another process of the router

    def holds(self, name: str) -> bool:
        """Whether a response, or an output item, of this id is here."""
        return name in self._responses or name in self._items

    def line_of(self, name: str) -> list[tuple[str, bytes]]:
        """The response of this id, or with this output item, and all that it continues.

        The oldest comes first, as `bring_back` takes them; nothing where it is not here.
        """
        if (response_id := self.response_of(name)) is None:
            return []
        stored = self._responses[response_id]
        return [(step.response["id"], _packed(step, step is stored)) for step in stored.steps()]

    def response_of(self, name: str) -> str | None:
        """The response of this id, or with this output item, that is here; None where none is."""
        if name in self._responses:
            return name
        return self._items[name][2] if name in self._items else None

    def forget_here(self, response_id: str) -> None:
        """Forget a response that was deleted at another router."""
        if response_id in self._responses:
            super()._forget(response_id)


def is_packed(data: bytes) -> bool:
    """Whether this was written here: others may have access to the same store."""
    try:
        known = json.loads(data)
    except (ValueError, TypeError):
        return False
    if not isinstance(known, dict) or not known.keys() >= _NAMES:
        return False
    texts = (known["asked"], known["said"])
    return isinstance(known["response"], dict) and all(isinstance(each, list) for each in texts)


def is_deleted(packed: bytes) -> bool:
    """Whether a response was deleted; what continues it may still need it."""
    return not json.loads(packed)["is_named"]


def _packed(stored: Stored, is_named: bool) -> bytes:
    previous = None if stored.previous is None else stored.previous.response["id"]
    known = {
        "response": stored.response,
        "asked": stored.asked,
        "said": stored.said,
        "previous": previous,
        "owner": stored.owner,
        "is_named": is_named,
    }
    return json.dumps(known, separators=(",", ":")).encode()
