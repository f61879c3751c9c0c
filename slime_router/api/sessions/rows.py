"""The rows doors: the turns of sessions as rows that are ready to train on.

The rows of one session are a snapshot: nothing that arrives meanwhile is half included.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from aiohttp import web

from slime_router.api.errors import openai_error_object, our_fault
from slime_router.api.request import read_object, require
from slime_router.api.sessions import row_formats as rows_reply
from slime_router.api.sessions.endpoints import session_in_path
from slime_router.api.sessions.request import Body, check_known, read_count, read_query
from slime_router.aside import INLINE_SIZE, Aside
from slime_router.auth.caller import Caller, caller, shown
from slime_router.errors import BadRequest, NotFound, RouterError
from slime_router.journal.fetching import Fetch
from slime_router.json_text import one_line
from slime_router.rows.rows import TAG, RowOptions, RowSet, build_rows
from slime_router.rows.snapshot import TURN_SIZE, Snapshot
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore

logger = logging.getLogger(__name__)

MAX_SESSIONS = 100_000  # in one request

ROW_OPTIONS = ("realign_threshold", "max_len", "retries", "leave_out")
_KINDS = ("retry", "subagent", "compaction")  # that can be left out
SELECTORS = ("session_ids", "group_id", "rollout_id")
_BY_NAME_ONLY = ("slime", "tree")  # formats that are JSON, but not the usual one
_MAX_DIGITS = 18  # int() of an arbitrarily long string would burn CPU
_FORMATS_BY_MEDIA_TYPE = {
    form.media_type: name for name, form in rows_reply.FORMATS.items() if name not in _BY_NAME_ONLY
}


class RowsDoor:
    """Serves `GET /sessions/{session}/rows` and `POST /rows`."""

    def __init__(
        self,
        store: TrajectoryStore,
        fetch: Fetch,
        realign_threshold: int,
        on_left_out: Callable[[Mapping[str, int]], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._on_left_out = on_left_out  # with tokens by reason, at each export
        self._realign_threshold = realign_threshold
        self._aside = Aside()

    @property
    def options(self) -> RowOptions:
        """The options of a request that names none."""
        return self._options({})

    async def of_session(self, request: web.Request) -> web.Response:
        """The rows of one session, in the format that the query or `Accept` names."""
        query = read_query(request.query, ("format", "exported", *ROW_OPTIONS))
        exported = query.get("exported", "true")
        require(exported in ("true", "false"), "exported", "true or false")
        form = rows_reply.FORMATS[_format(query, request.headers.get("accept", ""))]
        options = self._options({name: _number(text) for name, text in query.items()})
        session, rowset = await self._export(
            session_in_path(request), options, is_export=exported == "true"
        )
        written = await self.written(form, session, rowset)
        return web.Response(body=written, content_type=form.media_type)

    async def of_many(self, request: web.Request) -> web.StreamResponse:
        """The rows of many sessions, line by line; a session that is not there has an error line.

        A client that leaves ends it.
        """
        body = await read_object(request)
        check_known(body, (*SELECTORS, *ROW_OPTIONS))
        options = self._options(body)
        session_ids = await self._selected(body, caller(request))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            for session_id in session_ids:
                async for line in self._lines(session_id, options):
                    await response.write(line)
                await asyncio.sleep(0)  # a series of exports must not keep other tasks waiting
            await response.write_eof()
        except ConnectionError:
            pass  # the client left: there is nobody to report to
        return response

    async def preview(self, session_id: str, given: Mapping[str, Any]) -> tuple[Session, RowSet]:
        """The session and its rows, made with the options in `given`; it is not exported thereby.

        Raises:
            NotFound: there is no such session.
        """
        options = self._options(given)
        with await self._fetch.of_session(session_id):
            session = self._store.sessions.get(session_id)
            return session, await self._made(session, options)

    async def export(self, session_id: str, given: Mapping[str, Any]) -> tuple[Session, RowSet]:
        """The session as it is now and its rows, made with the options in `given`.

        Raises:
            NotFound: there is no such session.
        """
        return await self._export(session_id, self._options(given))

    async def written(self, form: rows_reply.RowFormat, session: Session, rowset: RowSet) -> bytes:
        """The rows in a format; they are written in a thread where they are long."""
        size = sum(len(row.tokens) + TURN_SIZE * len(row.turns) for row in rowset.rows)
        size = max(size, INLINE_SIZE) if form.is_long else size
        return await self._aside.run(size, form.encode, session, rowset)

    async def _lines(self, session_id: str, options: RowOptions) -> AsyncIterator[bytes]:
        """The status line is out: a failure becomes a line, and the next session has its turn."""
        try:
            for line in rows_reply.lines(*await self._export(session_id, options)):
                yield line
        except RouterError as exc:
            yield _error_line(session_id, exc)
        except Exception:  # the edge of a request, reported in a line
            logger.exception("rows of session %r failed", session_id)
            yield _error_line(session_id, our_fault())

    async def _export(
        self, session_id: str, options: RowOptions, *, is_export: bool = True
    ) -> tuple[Session, RowSet]:
        """The session as it is now and its rows."""
        with await self._fetch.of_session(session_id):
            session = copy.copy(self._store.sessions.get(session_id))
            session_before = session.state, tuple(session.turns)
            rowset = await self._made(session, options)
            now = self._store.sessions.find(session_id)
            # What has come meanwhile, nobody has yet.
            if is_export and now is not None and (now.state, tuple(now.turns)) == session_before:
                self._store.mark_exported(session_id)
        left_out = rowset.stats.left_out
        self._on_left_out({reason: each.tokens for reason, each in left_out.items()})
        return session, rowset

    async def _made(self, session: Session, options: RowOptions) -> RowSet:
        """The rows of the turns that it has now."""
        turn_ids = tuple(session.turns)
        turns, options = Snapshot(self._store, turn_ids), replace(options, wanted=session.wanted)
        return await self._aside.run(turns.size, build_rows, turns, turn_ids, options)

    def _options(self, given: Mapping[str, Any]) -> RowOptions:
        threshold = read_count(given, "realign_threshold", least=0)
        retries = given.get("retries")
        require(retries in (None, "drop", "keep"), "retries", "'drop' or 'keep'")
        return RowOptions(
            realign_threshold=self._realign_threshold if threshold is None else threshold,
            max_len=read_count(given, "max_len"),
            keeps_retries=retries == "keep",
            leave_out=_read_rules(given.get("leave_out")),
        )

    async def _selected(self, body: Body, by: Caller) -> Sequence[str]:
        """The sessions that are asked for in one of the three ways, as the router knows them."""
        given = [name for name in SELECTORS if body.get(name) is not None]
        if len(given) != 1:
            raise BadRequest(
                f"Exactly one of {', '.join(SELECTORS)} must be given.", param=SELECTORS[0]
            )
        [selector] = given
        if selector == "session_ids":
            return [by.own(session_id) for session_id in _checked_ids(body[selector])]
        name = body[selector]
        name = str(name) if type(name) is int else name
        require(isinstance(name, str), selector, "a string")
        sessions = await self._fetch.of_sessions()
        listed = self._store.sessions.list(**{selector: name}, among=sessions)
        found = [session.id for session in listed if by.sees(session.id)]
        if not found:
            raise NotFound(f"No session has the {selector} '{name:.100}'.", param=selector)
        return found


def _read_rules(given: Any) -> frozenset[str]:
    """`retry,subagent,tag:draft`, or a list of the same.

    Raises:
        BadRequest: one is not a rule.
    """
    if given is None:
        return frozenset()
    rules = given.split(",") if isinstance(given, str) else given
    what = f"a list of {', '.join(_KINDS)} and {TAG}NAME"
    is_list = type(rules) is list and all(isinstance(rule, str) for rule in rules)
    require(is_list, "leave_out", what)
    for rule in rules:
        is_rule = rule in _KINDS or (rule.startswith(TAG) and len(rule) > len(TAG))
        require(is_rule, "leave_out", what)
    return frozenset(rules)


def _checked_ids(ids: Any) -> Sequence[str]:
    """One session twice would be trained on twice."""
    require(isinstance(ids, list) and bool(ids), "session_ids", "a list of session ids")
    require(len(ids) <= MAX_SESSIONS, "session_ids", f"a list of at most {MAX_SESSIONS} ids")
    seen: set[str] = set()
    for index, session_id in enumerate(ids):
        path = f"session_ids[{index}]"
        require(isinstance(session_id, str), path, "a string")
        if session_id in seen:
            raise BadRequest(f"'{path}' is a session that was named before.", param=path)
        seen.add(session_id)
    return list(ids)


def _format(query: Mapping[str, str], accept: str) -> str:
    """The format by name, or the first one that the client says it accepts, or JSON."""
    if (name := query.get("format")) is not None:
        require(name in rows_reply.FORMATS, "format", f"one of {', '.join(rows_reply.FORMATS)}")
        return name
    accepted = (part.partition(";")[0].strip().lower() for part in accept.split(","))
    names = (_FORMATS_BY_MEDIA_TYPE.get(media_type) for media_type in accepted)
    return next((name for name in names if name is not None), "json")


def _number(text: str) -> int | str:
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else text


def _error_line(session_id: str, exc: RouterError) -> bytes:
    line = {"session_id": shown(session_id), **openai_error_object(exc)}
    return one_line(orjson.dumps(line)) + b"\n"
