"""The session doors: a session is opened, looked at, closed, rewarded and deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import web

from slime_router.api.request import read_object, require
from slime_router.api.sessions.listing import list_sessions, page_body, read_listing
from slime_router.api.sessions.request import check_known, read_close, read_reward, read_spec
from slime_router.api.sessions.turns import turn_body
from slime_router.api.token_ids import Vocabulary
from slime_router.auth.caller import caller
from slime_router.generation.sessions import Sessions
from slime_router.journal.fetching import Fetch
from slime_router.rows.revision import revision_of
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore
from slime_router.values import replace

_SLICE = 1_000  # sessions listed in one go before other tasks get their turn


class SessionDoor:
    """Serves `/sessions` and `/sessions/{session}`, its `/close` and its `/reward`."""

    def __init__(
        self,
        store: TrajectoryStore,
        flights: Sessions,
        vocabulary: Vocabulary,
        fetch: Fetch,
        *,
        default_max_turns: int | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._default_max_turns = default_max_turns
        self._store = store
        self._flights = flights
        self._vocabulary = vocabulary
        self._fetch = fetch

    async def open(self, request: web.Request) -> web.Response:
        """`POST /sessions`: a new session; 201 with its summary."""
        body = await read_object(request) if request.body_exists else {}
        spec = read_spec(body, self._vocabulary)
        max_turns = self._default_max_turns if spec.max_turns is None else spec.max_turns
        spec = replace(spec, id=caller(request).own(spec.id), max_turns=max_turns)
        await self._fetch.know_sessions()  # they count
        with await self._fetch.of_session(spec.id):
            session = self._store.open_session(spec, at=self._now())
            await self._fetch.confirm_opened(session)
        return _reply(summary(session, request), status=201)

    async def list(self, request: web.Request) -> web.Response:
        """`GET /sessions?limit=&cursor=...`: the summaries of those that fit, or a page of them.

        They are the caller's own, or everybody's where it may see all.
        """
        wanted, by = read_listing(request.query), caller(request)
        summaries: list[dict[str, Any]] = []
        named = await self._fetch.of_turn(wanted.search) if wanted.search else nullcontext()
        with named:  # it is found in memory
            sessions = await self._fetch.of_sessions()
            found, total, cursor = await list_sessions(self._store, wanted, by, sessions)
        for start in range(0, len(found), _SLICE):
            summaries += [summary(each, request) for each in found[start : start + _SLICE]]
            await asyncio.sleep(0)
        if wanted.has_revisions:
            for each, said in zip(found, summaries, strict=True):
                said |= {"revision": await self._revision(each.id), "exported": each.was_exported}
        return _reply(page_body(summaries, total, cursor))

    async def _revision(self, session_id: str) -> str | None:
        """The revision of a session; None if it was deleted in the meantime."""
        with await self._fetch.of_session(session_id):
            session = self._store.sessions.find(session_id)
            return None if session is None else revision_of(self._store, session)

    async def show(self, request: web.Request) -> web.Response:
        """`GET /sessions/{session}`: the summary and the turns still held, oldest first."""
        with await self._fetch.of_session(session_in_path(request)):
            session = self._store.sessions.get(session_in_path(request))
            turns = (self._store.get(turn_id) for turn_id in session.turns)
            listed = [
                turn_body(turn, caller(request), is_delivered=self._store.is_delivered(turn.id))
                for turn in turns
                if turn
            ]
        return _reply({**summary(session, request), "turn_list": listed})

    async def delete(self, request: web.Request) -> web.Response:
        """`DELETE /sessions/{session}`: forgotten, with its turns."""
        session_id = session_in_path(request)
        with await self._fetch.of_session(session_id):
            await self._flights.delete(session_id)
        return _reply({"session_id": request.match_info["session"], "deleted": True})

    async def close(self, request: web.Request) -> web.Response:
        """`POST /sessions/{session}/close`: no new turns; the summary once nothing runs."""
        wanted = await read_close(request)
        session_id = session_in_path(request)
        await self._fetch.know_sessions()  # one that nobody opened takes a place
        with await self._fetch.of_session(session_id):
            session = await self._flights.close(
                session_id, cancel=wanted.cancel, timeout_s=wanted.timeout_s
            )
        return _reply(summary(session, request))

    async def exported(self, request: web.Request) -> web.Response:
        """`POST /sessions/{session}/exported`: the rows of that `revision` are safe elsewhere."""
        body = await read_object(request)
        check_known(body, ("revision",))
        revision = body.get("revision")
        require(isinstance(revision, str), "revision", "one that the list of sessions gave")
        with await self._fetch.of_session(session_in_path(request)):
            session = self._store.sessions.get(session_in_path(request))
            if revision_of(self._store, session) == revision:
                self._store.mark_exported(session.id)
        return _reply({"session_id": session.name, "exported": session.was_exported})

    async def reward(self, request: web.Request) -> web.Response:
        """`POST /sessions/{session}/reward`: what its rollout has earned."""
        reward = read_reward(await read_object(request))
        with await self._fetch.of_rollout(session_in_path(request)):
            session = self._store.sessions.set_reward(session_in_path(request), reward)
        return _reply(summary(session, request))


def session_in_path(request: web.Request) -> str:
    """The caller's session that the path names, as the router knows it."""
    return caller(request).own(request.match_info["session"])


def summary(session: Session, request: web.Request) -> dict[str, Any]:
    """What every reply says about a session; its URL is on the host this request was sent to.

    `owner` is there where the session belongs to a named key.
    """
    url = f"{request.scheme}://{request.host}/sessions/{quote(session.name, safe='')}"
    return {
        "session_id": session.name,
        **({"owner": session.owner} if session.owner else {}),
        "url": url,
        "base_url": f"{url}/v1",
        "state": session.state,
        "group_id": session.group_id,
        "rollout_id": session.rollout_id,
        "metadata": session.metadata,
        "max_turns": session.max_turns,
        "max_tokens": session.max_tokens,
        "return_routed_experts": session.return_routed_experts,
        "reward": session.reward,
        "turns": session.turn_count,
        "recorded_turns": session.recorded_turns,
        "sampled_tokens": session.sampled_tokens,
        "dropped_turns": session.dropped_turns,
        "running": session.running,
        "started": session.started,
        "last_active": session.last_active,
    }


def _reply(body: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
