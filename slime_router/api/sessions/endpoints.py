"""The session doors: a session is opened, looked at, closed, rewarded and deleted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Protocol
from urllib.parse import quote

import orjson
from aiohttp import web

from slime_router.api.request import read_object
from slime_router.api.sessions.request import read_close, read_filters, read_reward, read_spec
from slime_router.api.token_ids import Vocabulary
from slime_router.auth.caller import caller
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn

_SLICE = 1_000  # sessions listed in one go before other tasks get their turn


class Flights(Protocol):
    """Knows what runs in each session; `slime_router.generation.sessions` does."""

    async def close(self, session_id: str, *, cancel: bool, timeout_s: float) -> Session:
        """Freezes a session once nothing runs in it."""

    async def delete(self, session_id: str) -> None:
        """Forgets a session and ends what runs in it."""


class SessionDoor:
    """Serves `/sessions` and `/sessions/{session}`, its `/close` and its `/reward`."""

    def __init__(
        self,
        store: TrajectoryStore,
        flights: Flights,
        vocabulary: Vocabulary,
        *,
        default_max_turns: int | None = None,
    ) -> None:
        self._default_max_turns = default_max_turns
        self._store = store
        self._flights = flights
        self._vocabulary = vocabulary

    async def open(self, request: web.Request) -> web.Response:
        """`POST /sessions`: a new session; 201 with its summary."""
        body = await read_object(request) if request.body_exists else {}
        spec = read_spec(body, self._vocabulary)
        max_turns = self._default_max_turns if spec.max_turns is None else spec.max_turns
        spec = replace(spec, id=caller(request).own(spec.id), max_turns=max_turns)
        session = self._store.open_session(spec)
        return _reply(summary(session, request), status=201)

    async def list(self, request: web.Request) -> web.Response:
        """`GET /sessions?group_id=&rollout_id=&state=`: the summaries of those that fit.

        They are the caller's own, or everybody's where it may see all.
        """
        listed, by = self._store.sessions.list(**read_filters(request.query)), caller(request)
        found = [session for session in listed if by.sees(session.id)]
        summaries: list[dict[str, Any]] = []
        for start in range(0, len(found), _SLICE):
            summaries += [summary(each, request) for each in found[start : start + _SLICE]]
            await asyncio.sleep(0)
        return _reply({"sessions": summaries, "total": len(summaries)})

    async def show(self, request: web.Request) -> web.Response:
        """`GET /sessions/{session}`: the summary and the turns still held, oldest first."""
        session = self._store.sessions.get(session_in_path(request))
        turns = (self._store.get(turn_id) for turn_id in session.turns)
        listed = [_turn(turn, self._store.is_delivered(turn.id)) for turn in turns if turn]
        return _reply({**summary(session, request), "turn_list": listed})

    async def delete(self, request: web.Request) -> web.Response:
        """`DELETE /sessions/{session}`: forgotten, with its turns."""
        session_id = session_in_path(request)
        await self._flights.delete(session_id)
        return _reply({"session_id": request.match_info["session"], "deleted": True})

    async def close(self, request: web.Request) -> web.Response:
        """`POST /sessions/{session}/close`: no new turns; the summary once nothing runs."""
        wanted = await read_close(request)
        session = await self._flights.close(
            session_in_path(request), cancel=wanted.cancel, timeout_s=wanted.timeout_s
        )
        return _reply(summary(session, request))

    async def reward(self, request: web.Request) -> web.Response:
        """`POST /sessions/{session}/reward`: what its rollout has earned."""
        reward = read_reward(await read_object(request))
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
        "turns": len(session.turns),
        "recorded_turns": session.recorded_turns,
        "sampled_tokens": session.sampled_tokens,
        "dropped_turns": session.dropped_turns,
        "running": session.running,
    }


def _turn(turn: Turn, is_delivered: bool) -> dict[str, Any]:
    return {
        "turn_id": turn.id,
        "seq": turn.seq,
        "base": turn.base,
        "base_len": turn.base_len,
        "prompt_tokens": turn.base_len + len(turn.prompt_ids),
        "output_tokens": len(turn.output_ids),
        "finish_reason": turn.finish.type,
        "matched": turn.finish.matched,
        "is_delivered": is_delivered,
        "weight_versions": turn.weight_versions,
        "request_id": turn.request_id,
        "receipt": turn.receipt.to_dict() if turn.receipt is not None else None,
    }


def _reply(body: dict[str, Any], *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
