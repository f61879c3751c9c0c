"""A running router as the source of an export."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from slime_router.api.sessions.listing import Listing
from slime_router.client import ClientError
from slime_router.client.errors import Conflict, NotFound
from slime_router.export.manifest import Key
from slime_router.export.source import Found, Gone, Rows, SourceFailed, earns

PAGE = 500  # sessions listed at once


class Router(Protocol):
    """Answers with JSON; `slime_router.cli.terminal.remote` does."""

    def get(self, path: str, key: str, /, **query: Any) -> Any:
        """The JSON object of a route, in which `key` is. Raises ClientError."""

    def post(self, path: str, **body: Any) -> None:
        """Say something to a route. Raises ClientError."""


class RouterSource:
    """Asks page by page, and session by session.

    Args:
        query: what narrows the list, as `GET /sessions` takes it.
    """

    def __init__(self, router: Router, query: Mapping[str, str]) -> None:
        self._router = router
        self._query = dict(query)
        self._total: int | None = None
        self._unmarked: dict[Key, str] = {}  # revisions of those that do not count as exported
        self.skipped = 0

    def __repr__(self) -> str:
        return f"<RouterSource {self._router!r}>"

    def __len__(self) -> int:
        if self._total is None:
            self._total = int(self._page(limit=1)["total"])
        return self._total

    def sessions(self, _: Listing, min_reward: float | None) -> Iterator[Found]:
        """See `Source.sessions`; the router reads the query itself."""
        cursor: str | None = None
        while True:
            page = self._page(limit=PAGE, cursor=cursor, revisions="true")
            try:
                for each in page["sessions"]:
                    if earns(each["reward"], min_reward):
                        yield self._found(each)
                cursor = page["next_cursor"]
            except (KeyError, TypeError) as exc:
                raise SourceFailed("the router does not list sessions as this one does") from exc
            if cursor is None:
                return

    def exported(self, keys: Collection[Key]) -> None:
        """See `Source.exported`; a session that changed since it was listed is left out."""
        for key in keys:
            revision = self._unmarked.pop(key, None)
            if revision is None:
                continue
            try:
                self._router.post(f"{_path(key)}/exported", revision=revision)
            except NotFound:  # deleted since
                continue
            except ClientError as exc:
                raise SourceFailed(exc.message) from exc

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def _page(self, **more: Any) -> Any:
        try:
            return self._router.get("/sessions", "sessions", **self._query, **more)
        except ClientError as exc:
            raise SourceFailed(exc.message) from exc

    def _found(self, summary: Mapping[str, Any]) -> Found:
        key = Key(summary.get("owner", ""), summary["session_id"])
        revision = summary["revision"]
        if summary["state"] == "closed" and not summary["exported"]:
            self._unmarked[key] = revision
        return Found(key, revision, summary["dropped_turns"], lambda: self._rows(key))

    def _rows(self, key: Key) -> Rows:
        try:
            found = self._router.get(f"{_path(key)}/rows", "rows", format="json", exported="false")
            rows: Rows = found["rows"]
        except (NotFound, Conflict) as exc:  # deleted since, or only another key can fetch it
            raise Gone(exc.message) from exc
        except ClientError as exc:
            raise SourceFailed(exc.message) from exc
        if any(row.get("owner", "") != key.owner for row in rows):
            raise Gone("it belongs to another key")
        return rows


def _path(key: Key) -> str:
    return f"/sessions/{quote(key.session_id, safe='')}"
