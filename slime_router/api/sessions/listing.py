"""The list of sessions: which of them fit, and a page of those."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from multidict import MultiMapping

from slime_router.api.request import require
from slime_router.api.sessions.request import STATES, read_query
from slime_router.auth.caller import Caller
from slime_router.errors import BadRequest
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore

MAX_LIMIT = 1_000
ORDERS = ("asc", "desc")
MAX_SEARCH_LEN = 512
_FILTERS = (
    "group_id", "rollout_id", "state", "since", "until", "search", "limit", "cursor", "order",
    "revisions",
)  # fmt: skip
_SLICE = 1_000  # sessions looked at in one go before other tasks get their turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a caller asks for: None is for all. Times are Unix time.

    `after` is the number of the last session of the page before.
    """

    group_id: str | None = None
    rollout_id: str | None = None
    state: str | None = None
    since: float | None = None
    until: float | None = None
    search: str = ""
    limit: int | None = None
    after: int | None = None
    newest_first: bool = False
    has_revisions: bool = False

    def fits(self, session: Session) -> bool:
        """Whether it is one of these, the search apart."""
        return (
            self.group_id in (None, session.group_id)
            and self.rollout_id in (None, session.rollout_id)
            and self.state in (None, session.state)
            and self._is_in_time(session)
        )

    def _is_in_time(self, session: Session) -> bool:
        """Whether anything may have happened in it from `since` on and before `until`."""
        if self.since is None and self.until is None:
            return True
        if session.started is None or session.last_active is None:
            return False
        return (self.since is None or session.last_active >= self.since) and (
            self.until is None or session.started < self.until
        )

    def comes_later(self, number: int) -> bool:
        """Whether the session of that number is on this page or one after it."""
        if self.after is None:
            return True
        return number < self.after if self.newest_first else number > self.after


def read_listing(query: MultiMapping[str]) -> Listing:
    """The query of `GET /sessions`.

    Raises:
        BadRequest: with the name of the parameter at fault.
    """
    given = read_query(query, _FILTERS)
    require(given.get("state", STATES[0]) in STATES, "state", f"one of {', '.join(STATES)}")
    require(given.get("order", ORDERS[0]) in ORDERS, "order", f"one of {', '.join(ORDERS)}")
    require(given.get("revisions", "true") in ("true", "false"), "revisions", "true or false")
    search = given.get("search", "")
    require(len(search) <= MAX_SEARCH_LEN, "search", f"at most {MAX_SEARCH_LEN} characters")
    limit = _read_number(given, "limit")
    require(limit is None or 0 < limit <= MAX_LIMIT, "limit", f"an integer from 1 to {MAX_LIMIT}")
    return Listing(
        group_id=given.get("group_id"),
        rollout_id=given.get("rollout_id"),
        state=given.get("state"),
        since=_read_time(given, "since"),
        until=_read_time(given, "until"),
        search=search,
        limit=limit,
        after=_read_number(given, "cursor"),
        newest_first=given.get("order") == "desc",
        has_revisions=given.get("revisions") == "true",
    )


def _read_number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    is_number = text.isascii() and text.isdecimal() and len(text) < 19
    require(is_number, name, "an integer" if name == "limit" else "one that a reply gave")
    return int(text)


def _read_time(given: Mapping[str, str], name: str) -> float | None:
    """Unix time, or a date and time of ISO 8601; without a zone it is UTC."""
    text = given.get(name)
    if text is None:
        return None
    try:
        return float(text) if _is_float(text) else _iso(text)
    except (ValueError, OverflowError):
        what = "a Unix time in seconds or a time of ISO 8601"
        raise BadRequest(f"'{name}' must be {what}.", param=name, code="invalid_type") from None


def _is_float(text: str) -> bool:
    return text.isascii() and text.replace(".", "", 1).isdecimal()


def _iso(text: str) -> float:
    moment = datetime.fromisoformat(text.replace(" ", "+"))  # a + in a query reads as a space
    if moment.tzinfo is None:
        moment = datetime.fromisoformat(f"{moment.isoformat()}+00:00")
    return moment.timestamp()


async def list_sessions(
    store: TrajectoryStore,
    wanted: Listing,
    by: Caller,
    sessions: Sequence[Session] | None = None,
) -> tuple[list[Session], int, int | None]:
    """The sessions of one page, how many fit in all, and the cursor of the next page, if any.

    `sessions`: all that there are, where that is more than what the store has.
    """
    found = _searched(store, wanted.search)
    sessions = tuple(store.sessions) if sessions is None else sessions
    if wanted.newest_first:
        sessions = sessions[::-1]
    page: list[Session] = []
    total, has_more = 0, False
    for index, session in enumerate(sessions):
        if index % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        if not (by.sees(session.id) and wanted.fits(session) and found.has(session)):
            continue
        total += 1
        if not wanted.comes_later(_number(session, by)):
            continue
        if wanted.limit is not None and len(page) == wanted.limit:
            has_more = True
        else:
            page.append(session)
    return page, total, _number(page[-1], by) if has_more else None


def _number(session: Session, by: Caller) -> int:
    return session.number if by.sees_all else session.own_number


@dataclass(frozen=True, slots=True)
class _Search:
    """What is looked for: a part of a name, or whatever has led to these sessions."""

    text: str
    ids: frozenset[str] = frozenset()

    def has(self, session: Session) -> bool:
        if not self.text or session.id in self.ids:
            return True
        names = (session.name, session.rollout_id, session.group_id or "")
        return any(self.text in name.casefold() for name in names)


def _searched(store: TrajectoryStore, text: str) -> _Search:
    """The sessions that hold a turn of that id, or of a request or tool call of that id."""
    named = [store.get(turn_id) for turn_id in (text, *store.ledger.find(text))]
    ids = (turn.session_id for turn in named if turn is not None and turn.session_id is not None)
    return _Search(text.casefold(), frozenset(ids))


def page_body(summaries: list[dict[str, Any]], total: int, cursor: int | None) -> dict[str, Any]:
    """The reply: `next_cursor` is null on the last page."""
    return {
        "sessions": summaries,
        "total": total,
        "next_cursor": None if cursor is None else str(cursor),
    }
