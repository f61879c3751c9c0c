"""What a session is made of, for people: `GET /sessions/{session}/tree` and `/tokens`.

Both look only: a session that was looked at does not count as exported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import orjson
from aiohttp import web
from numpy.typing import NDArray

from slime_router.api.request import require
from slime_router.api.sessions.endpoints import session_in_path
from slime_router.api.sessions.request import read_query
from slime_router.aside import Aside
from slime_router.auth.access import IN_SESSION
from slime_router.errors import BadRequest, NotFound
from slime_router.journal.fetching import Fetch
from slime_router.rows.outline import Outline, Place, RowOutline, outline
from slime_router.rows.rows import RowOptions, build_row
from slime_router.rows.snapshot import Snapshot
from slime_router.template.chat_template import ChatTemplate
from slime_router.template.scaffold import MAX_TEXT_BYTES, Scaffold
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Trace, Turn

SOURCES = ("template", "message", "sampled")
MAX_TOKENS = 20_000  # in one reply
_MAX_DIGITS = 18

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.Response]]


class LookDoor:
    """Serves the tree of a session's turns, and their tokens."""

    def __init__(
        self,
        store: TrajectoryStore,
        fetch: Fetch,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        options: RowOptions,
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._tokenizer = tokenizer
        self._template = template
        self._options = options
        self._aside = Aside()

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of both."""
        return [
            ("GET", f"{IN_SESSION}/tree", self.tree),
            ("GET", f"{IN_SESSION}/tokens", self.tokens),
        ]

    async def tree(self, request: web.Request) -> web.Response:
        """`GET /sessions/{session}/tree`: the turns, each with its cause, and the rows."""
        read_query(request.query, ())
        with await self._fetch.of_session(session_in_path(request)):
            session = self._store.sessions.get(session_in_path(request))
            turn_ids = tuple(session.turns)
            turns = Snapshot(self._store, turn_ids)
            name = session.name
            found = await self._aside.run(turns.size, outline, turns, turn_ids, self._options)
        return await self._aside.run(turns.size, _tree_reply, name, found)

    async def tokens(self, request: web.Request) -> web.Response:
        """`GET /sessions/{session}/tokens?turn=|row=&offset=&limit=`: tokens, column by column.

        With `row` the mask is what the trainer gets, else it is 1 where a token was sampled.
        """
        query = read_query(request.query, ("turn", "row", "offset", "limit"))
        with await self._fetch.of_session(session_in_path(request)):
            session = self._store.sessions.get(session_in_path(request))
            turn_ids, name = tuple(session.turns), session.name
            turns = Snapshot(self._store, turn_ids)
        return await self._aside.run(turns.size, self._tokens, name, turns, turn_ids, query)

    def _tokens(
        self, session: str, turns: Snapshot, turn_ids: Sequence[str], query: Mapping[str, str]
    ) -> web.Response:
        turn_id, row_id = query.get("turn"), query.get("row")
        if (turn_id is None) == (row_id is None):
            raise BadRequest("Exactly one of 'turn' and 'row' must be given.", param="turn")
        offset = _count(query, "offset", 0, 0, 2**62)
        limit = _count(query, "limit", MAX_TOKENS, 1, MAX_TOKENS)
        named = str(turn_id if row_id is None else row_id)
        turn = turns.get(named)
        if turn is None or named not in turn_ids:
            name = "turn" if row_id is None else "row"
            raise NotFound(f"The session has no {name} '{named:.80}'.", param=name)
        mask = None
        if row_id is not None:
            row = build_row(turns, turn_ids, row_id, self._options)
            if row is None:
                raise NotFound(f"The session has no row '{row_id:.80}'.", param="row")
            mask = row.loss_mask
        body = {"session_id": session, "turn": turn_id, "row": row_id}
        return _reply({**body, **self._columns(turns, turn, mask, offset, offset + limit)})

    def _columns(
        self, source: Snapshot, turn: Turn, mask: NDArray[np.int8] | None, start: int, end: int
    ) -> dict[str, Any]:
        trace = source.trace(turn.id)
        total = len(trace.ids)
        start, end = min(start, total), min(end, total)
        turns, turn_of = _owners(source, turn, start, end)
        versions = list(dict.fromkeys(v for v in trace.weight_versions[start:end] if v is not None))
        place = {version: index for index, version in enumerate(versions)}
        pieces, raw = self._pieces(trace.ids[start:end].tolist())
        return {
            "total": total,
            "offset": start,
            "source_names": SOURCES,
            "turns": turns,
            "versions": versions,
            "ids": trace.ids[start:end],
            "pieces": pieces,
            "bytes": raw,
            "sources": self._sources(trace, start, end),
            "loss_mask": (trace.loss_mask if mask is None else mask)[start:end],
            "logprobs": trace.logprobs[start:end],
            "turn_of": turn_of,
            "version_of": [
                -1 if version is None else place[version]
                for version in trace.weight_versions[start:end]
            ],
        }

    def _sources(self, trace: Trace, start: int, end: int) -> NDArray[np.int8]:
        """Indexes into `SOURCES`."""
        before = max(start - MAX_TEXT_BYTES, 0)  # what the template wrote may begin earlier
        marks = self._scaffold.marks(trace.ids[before : end + MAX_TEXT_BYTES])
        is_template = marks[start - before : end - before]
        return np.where(trace.loss_mask[start:end] == 1, 2, np.where(is_template, 0, 1)).astype(
            np.int8
        )

    def _pieces(self, ids: list[int]) -> tuple[list[str], dict[str, str]]:
        """The text of each token, and the bytes in hex of those that are not UTF-8 alone."""
        pieces, raw = [], {}
        known: dict[int, tuple[str, str | None]] = {}
        for index, token_id in enumerate(ids):
            if token_id not in known:
                spelled = self._tokenizer.token_bytes(token_id)
                text = spelled.decode(errors="replace")
                known[token_id] = text, None if text.encode() == spelled else spelled.hex()
            text, hexed = known[token_id]
            pieces.append(text)
            if hexed is not None:
                raw[str(index)] = hexed
        return pieces, raw

    @cached_property
    def _scaffold(self) -> Scaffold:
        return Scaffold(self._template.try_render, self._tokenizer)


def _owners(
    source: Snapshot, turn: Turn, start: int, end: int
) -> tuple[list[str], NDArray[np.int32]]:
    """The turns that brought these tokens, and for each token which of them."""
    turns: list[str] = []
    owner_of = np.zeros(end - start, np.int32)
    owner: Turn | None = turn
    until = end
    while owner is not None and until > start:
        if until > owner.base_len:
            begin = max(owner.base_len, start)
            owner_of[begin - start : until - start] = len(turns)
            turns.append(owner.id)
            until = begin
        owner = source.get(owner.base) if owner.base is not None else None
    return turns, owner_of


def _tree_reply(name: str, found: Outline) -> web.Response:
    return _reply(
        {
            "session_id": name,
            "turns": [_place(place) for place in found.places],
            "rows": [_row(row) for row in found.rows],
            "stats": asdict(found.stats),
        }
    )


def _place(place: Place) -> dict[str, Any]:
    turn = place.turn
    prompt_tokens = turn.base_len + len(turn.prompt_ids)
    return {
        "turn_id": turn.id,
        "seq": turn.seq,
        "parent": place.parent,
        "cause": place.cause,
        "of": place.of,
        "departs_at": place.departs_at,
        "left_out": place.left_out,
        "prompt_tokens": prompt_tokens,
        "output_tokens": len(turn.output_ids),
        "finish_reason": turn.finish.type,
        "request_id": turn.request_id,
        "receipt": turn.receipt.to_dict() if turn.receipt is not None else None,
    }


def _row(row: RowOutline) -> dict[str, Any]:
    return {
        "row_id": row.row_id,
        "tokens": row.tokens,
        "trained_tokens": row.trained,
        "spans": [
            {
                "turn_id": span.turn.id,
                "start": span.start,
                "end": span.end,
                "is_trained": span.is_trained,
            }
            for span in row.spans
        ],
    }


def _count(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    value = int(text) if is_number else -1
    require(low <= value <= high, name, f"a whole number from {low} to {high}")
    return value


def _reply(body: dict[str, Any]) -> web.Response:
    data = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return web.Response(body=data, content_type="application/json")
