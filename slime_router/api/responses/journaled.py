"""Stored responses that outlive the router: each is written to its journal, and read at start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol

from slime_router.api.responses.store import ResponseStore, Stored

TABLE: Final = "responses"


class Shelf(Protocol):
    """Where things are kept by name; `slime_router.journal` is one."""

    def put(self, table: Any, name: str, pack: Callable[[], bytes]) -> None:
        """Keep something by name; packed later, so it must hold still."""

    def drop(self, table: Any, name: str) -> None:
        """It is gone."""


class JournaledResponses(ResponseStore):
    """Responses as `ResponseStore` has them, written down."""

    def __init__(self, shelf: Shelf, max_stored: int) -> None:
        super().__init__(max_stored)
        self._shelf = shelf

    def put(self, stored: Stored) -> None:
        """As `ResponseStore.put`."""
        self._write(stored, is_named=True)
        super().put(stored)  # which may forget it again

    def _forget(self, response_id: str) -> None:
        step: Stored | None = self._responses[response_id]
        super()._forget(response_id)
        if response_id in self._held:  # what continues it needs it
            assert step is not None
            self._write(step, is_named=False)
        while step is not None and step.response["id"] not in self._held:
            self._shelf.drop(TABLE, step.response["id"])
            step = step.previous

    def _write(self, stored: Stored, *, is_named: bool) -> None:
        self._shelf.put(TABLE, stored.response["id"], partial(_packed, stored, is_named))

    def bring_back(self, packed: Iterable[tuple[str, bytes]]) -> None:
        """What was written before a restart, or elsewhere, the oldest first."""
        found: dict[str, Stored] = {}
        for name, data in packed:
            if name in self._responses:  # it stays as it is
                found[name] = self._responses[name]
                continue
            known = json.loads(data)
            stored = found[name] = Stored(
                known["response"],
                tuple(known["asked"]),
                tuple(known["said"]),
                found.get(known["previous"]),
                known["owner"],
            )
            if known["is_named"]:
                super().put(stored)

    # In another process of the router

    def holds(self, name: str) -> bool:
        """Whether a response, or an output item, of this id is here."""
        return name in self._responses or name in self._items

    def line_of(self, name: str) -> list[tuple[str, bytes]]:
        """The response of this id, or with this output item, and all that it continues.

        The oldest comes first, as `bring_back` takes them; nothing where it is not here.
        """
        stored = self._responses.get(name)
        if stored is None and name in self._items:
            kept = self._responses.values()
            stored = next(s for s in kept if any(item["id"] == name for item in s.said))
        if stored is None:
            return []
        return [(step.response["id"], _packed(step, step is stored)) for step in stored.steps()]

    def forget_here(self, response_id: str) -> None:
        """It was deleted elsewhere."""
        if response_id in self._responses:
            super()._forget(response_id)


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
