"""The doors of a turn: `GET /turns/{id}`, and how a turn stands in its session."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web

from slime_router.api.sessions.request import read_query
from slime_router.api.sessions.row_turns import marks_of
from slime_router.auth.caller import Caller, caller, owner_of, shown
from slime_router.errors import BadRequest, NotFound
from slime_router.journal.fetching import Fetch
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Account, Turn
from slime_router.types import Message

INCLUDED = ("messages", "prompt", "reply")
_INLINE_TOKENS = 8_000  # fewer are decoded in some milliseconds: not worth a thread


class TurnDoor:
    """Serves `/turns/{id}`: by the turn's id, or by any that its client knows."""

    def __init__(self, store: TrajectoryStore, decoder: Tokenizer, fetch: Fetch) -> None:
        self._store = store
        self._fetch = fetch
        self._decoder = decoder

    async def show(self, request: web.Request) -> web.Response:
        """`GET /turns/{id}?include=messages,prompt,reply`: what is known of the turn.

        Raises:
            BadRequest: the query asks for an unknown part.
            NotFound: there is no such turn, or it is not the caller's.
        """
        wanted = _read_included(request)
        with await self._fetch.of_turn(request.match_info["id"]):
            body = await self._body(request, wanted)
        return web.Response(body=orjson.dumps(body), content_type="application/json")

    async def _body(self, request: web.Request, wanted: frozenset[str]) -> dict[str, Any]:
        by = caller(request)
        turn = self._found(request.match_info["id"], by)
        body = {
            **turn_body(turn, by, is_delivered=self._store.is_delivered(turn.id)),
            "session_id": None if turn.session_id is None else shown(turn.session_id),
            "turns_of_request": [each.id for each in self._named(turn.request_id, by)] or [turn.id],
        }
        if "messages" in wanted:
            body |= self._messages(turn)
        if "prompt" in wanted:
            prompt_len = turn.base_len + len(turn.prompt_ids)
            body["prompt"] = await self._text(self._store.held_ids(turn.id, prompt_len).tolist())
        if "reply" in wanted:
            said = None if turn.account is None else turn.account.said()[1]
            body["reply"] = {"text": await self._text(turn.output_ids.tolist()), "message": said}
        return body

    def _found(self, name: str, by: Caller) -> Turn:
        """The turn with that id, or the first of the newest request that is known by it.

        Raises:
            NotFound: there is none that the caller may see.
        """
        turn = self._store.get(name)
        if turn is not None and is_seen(turn, by):
            return turn
        turns = self._named(name, by)
        if not turns:
            raise NotFound(f"There is no turn '{name[:80]}'.", param="id", code="turn_not_found")
        return next(each for each in turns if each.request_id == turns[-1].request_id)

    def _named(self, name: str, by: Caller) -> list[Turn]:
        """The turns of the requests that are known by that name, oldest first."""
        turns = [self._store.get(turn_id) for turn_id in self._store.ledger.find(name)]
        return [t for t in turns if t is not None and is_seen(t, by)]

    def _messages(self, turn: Turn) -> dict[str, Any]:
        """The conversation up to its reply, and whether all of it is still known."""
        steps: list[list[Message]] = []
        step: Turn | None = turn
        is_whole = False
        while step is not None and step.account is not None and step.account.words is not None:
            messages, reply = step.account.said()
            steps.append(messages if step is turn or reply is None else [*messages, reply])
            if not step.account.goes_on:
                is_whole = True
                break
            step = None if step.base is None else self._store.get(step.base)
        messages = [message for each in reversed(steps) for message in each]
        return {"messages": messages, "has_all_messages": is_whole}

    async def _text(self, ids: list[int]) -> str:
        if len(ids) < _INLINE_TOKENS:
            return self._decoder.decode(ids, skip_special_tokens=False)
        return await asyncio.to_thread(self._decoder.decode, ids, skip_special_tokens=False)


def is_seen(turn: Turn, by: Caller) -> bool:
    """Whether the turn is the caller's, or the caller sees those of all."""
    return by.sees_what_is_of(owner_of(turn.scope) or owner_of(turn.session_id or ""))


def turn_body(turn: Turn, by: Caller, *, is_delivered: bool) -> dict[str, Any]:
    """What every reply says about a turn; what its account would say is null where it has none.

    The addresses of workers are for the admin.
    """
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
        **_account_body(turn.account, has_workers=by.is_admin),
        **marks_of(turn),
        **({"pictures": turn.pictures} if turn.pictures else {}),
    }


def _account_body(account: Account | None, *, has_workers: bool) -> dict[str, Any]:
    if account is None:
        return dict.fromkeys(_ACCOUNT_KEYS)
    values = (
        round(account.started, 6),
        round(account.duration_s, 6),
        None if account.first_token_s is None else round(account.first_token_s, 6),
        round(account.queued_s, 6),
        round(account.prompt_s, 6),
        account.workers if has_workers else None,
        account.door,
        account.key or None,
        account.request_id,
        account.rid,
        account.adapter or None,
    )
    return dict(zip(_ACCOUNT_KEYS, values, strict=True))


_ACCOUNT_KEYS = (
    "started",
    "duration_s",
    "first_token_s",
    "queued_s",
    "prompt_s",
    "workers",
    "door",
    "key",
    "x_request_id",
    "rid",
    "adapter",
)


def _read_included(request: web.Request) -> frozenset[str]:
    given = read_query(request.query, ("include",)).get("include", "")
    wanted = frozenset(filter(None, given.split(",")))
    for name in sorted(wanted):
        if name not in INCLUDED:
            known = ", ".join(INCLUDED)
            raise BadRequest(f"'include' can name {known}, not '{name[:80]}'.", param="include")
    return wanted
