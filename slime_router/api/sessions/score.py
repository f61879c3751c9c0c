"""`POST /sessions/{session}/score`: what a worker group thinks of the rows of a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import orjson
from aiohttp import web

from slime_router.api.request import missing, read_object, require
from slime_router.api.sessions.endpoints import session_in_path
from slime_router.api.sessions.request import check_known
from slime_router.api.sessions.rows import ROW_OPTIONS, RowsDoor
from slime_router.errors import Conflict, NotFound
from slime_router.failover.scoring import Scored
from slime_router.journal.fetching import Fetch
from slime_router.trajectory.measures.scores import TeacherScore, nbytes, rescored
from slime_router.trajectory.store import TrajectoryStore

MAX_TOP = 128  # likeliest tokens at each position


class Groups(Protocol):
    """The worker groups; `slime_router.server.fleet` has them."""

    async def score(
        self, group: str, rows: Mapping[str, Scored], *, top: int
    ) -> dict[str, TeacherScore]:
        """The scores of the rows, by their names. Raises NotFound where there is no such group."""


class ScoreDoor:
    """Serves the route. Scores stay with the last turns of rows, which have them from then on."""

    def __init__(
        self, store: TrajectoryStore, fetch: Fetch, rows: RowsDoor, groups: Groups
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._rows = rows
        self._groups = groups

    async def score(self, request: web.Request) -> web.Response:
        """`{"worker_group", "top_logprobs"}` and the options of rows; how much was scored."""
        body = await read_object(request)
        check_known(body, ("worker_group", "top_logprobs", *ROW_OPTIONS))
        group, top = _group(body), body.get("top_logprobs")
        top = 0 if top is None else top
        require(type(top) is int and 0 <= top <= MAX_TOP, "top_logprobs", f"from 0 to {MAX_TOP}")
        session_id = session_in_path(request)
        session, rowset = await self._rows.preview(session_id, body)
        if any(row.pictures for row in rowset.rows):
            raise Conflict("Rows with pictures cannot be scored: pictures are not kept.")
        wanted = {
            row.row_id: Scored(row.tokens, len(row.tokens) - row.response_length)
            for row in rowset.rows
        }
        scores = await self._groups.score(group, wanted, top=top)
        with await self._fetch.of_session(session_id):
            self._keep(session_id, group, scores)
        reply = {
            "session_id": session.name,
            "worker_group": group,
            "rows": len(scores),
            "tokens": sum(row.response_length for row in rowset.rows),
            "weight_versions": sorted({str(score.version) for score in scores.values()}),
        }
        return web.Response(body=orjson.dumps(reply), content_type="application/json")

    def _keep(self, session_id: str, group: str, scores: Mapping[str, TeacherScore]) -> None:
        """The scores of its rows, all of them or none.

        Raises:
            NotFound: the session was deleted meanwhile.
            StorageFull: there is no room for them.
        """
        session = self._store.sessions.get(session_id)
        turns = [turn for name in session.turns if (turn := self._store.get(name)) is not None]
        before = {turn.id: turn.scores for turn in turns}
        if scores.keys() - before.keys():  # another one has its name now, or turns were dropped
            name = session.name
            raise NotFound(f"The session '{name}' was deleted.", code="session_not_found")
        changed = rescored(before, group, scores)
        more = sum(nbytes(after) - nbytes(before[name]) for name, after in changed.items())
        if more > 0:
            self._store.sessions.check_bytes(session.owner, more)
        for name, after in changed.items():
            self._store.mark(name, scores=after)


def _group(body: Mapping[str, Any]) -> str:
    group = body.get("worker_group")
    if group is None:
        raise missing("worker_group")
    require(isinstance(group, str), "worker_group", "a string")
    return str(group)
