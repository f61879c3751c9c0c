"""What a trainer says of single turns: their rewards and tags."""

from __future__ import annotations

import math

import orjson
from aiohttp import web

from slime_router.api.request import missing, read_object, require
from slime_router.api.sessions.request import Body, check_known
from slime_router.api.sessions.row_turns import marks_of
from slime_router.api.sessions.turns import is_seen
from slime_router.auth.caller import caller, shown
from slime_router.auth.session_ids import is_label
from slime_router.errors import BadRequest, NotFound
from slime_router.journal.fetching import Fetch
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn

MAX_TAGS = 32
MAX_TAG_LEN = 128


class MarksDoor:
    """Serves `POST /turns/{turn}/reward` and `POST /turns/{turn}/tags`."""

    def __init__(self, store: TrajectoryStore, fetch: Fetch) -> None:
        self._store = store
        self._fetch = fetch

    async def reward(self, request: web.Request) -> web.Response:
        """What this turn alone has earned; null takes it back."""
        body = await read_object(request)
        with await self._fetch.of_turn(request.match_info["turn"]):
            return _reply(self._store.mark(self._turn(request), reward=read_turn_reward(body)))

    async def tags(self, request: web.Request) -> web.Response:
        """The tags of a turn, in place of those that it had."""
        body = await read_object(request)
        with await self._fetch.of_turn(request.match_info["turn"]):
            return _reply(self._store.mark(self._turn(request), tags=read_tags(body)))

    def _turn(self, request: web.Request) -> str:
        """The id of the turn in the path.

        Raises:
            NotFound: there is no such turn, or it is another owner's.
        """
        turn = self._store.get(request.match_info["turn"])
        if turn is None or not is_seen(turn, caller(request)):
            raise NotFound(
                f"There is no turn '{request.match_info['turn']:.100}'.", code="turn_not_found"
            )
        return turn.id


def read_turn_reward(body: Body) -> float | None:
    """`{"reward"}`: a finite number, or null.

    Raises:
        BadRequest: with the name of the field at fault.
    """
    check_known(body, ("reward",))
    if "reward" not in body:
        raise missing("reward")
    reward = body["reward"]
    if reward is None:
        return None
    is_number = type(reward) in (int, float) and math.isfinite(reward)
    require(is_number, "reward", "a finite number or null")
    return float(reward)


def read_tags(body: Body) -> tuple[str, ...]:
    """`{"tags"}`: a list of short texts, each kept once.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    check_known(body, ("tags",))
    if "tags" not in body:
        raise missing("tags")
    tags = body["tags"]
    require(type(tags) is list, "tags", "a list of strings")
    if len(tags) > MAX_TAGS:
        raise BadRequest(f"A turn has at most {MAX_TAGS} tags; {len(tags)} came.", param="tags")
    what = f"a string of 1 to {MAX_TAG_LEN} printable characters without a comma"
    for index, tag in enumerate(tags):
        is_tag = is_label(tag, MAX_TAG_LEN) and "," not in tag
        require(is_tag, f"tags[{index}]", what)
    return tuple(dict.fromkeys(tags))


def _reply(turn: Turn) -> web.Response:
    body = {
        "turn_id": turn.id,
        "session_id": None if turn.session_id is None else shown(turn.session_id),
        **marks_of(turn),
    }
    return web.Response(body=orjson.dumps(body), content_type="application/json")
