"""What is served of sessions, their rows and their turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from aiohttp.typedefs import Handler

from slime_router.api.sessions import samples
from slime_router.api.sessions.endpoints import SessionDoor
from slime_router.api.sessions.marks import MarksDoor
from slime_router.api.sessions.rows import RowsDoor
from slime_router.api.sessions.score import Groups, ScoreDoor
from slime_router.api.sessions.tokens import LookDoor
from slime_router.api.sessions.turns import TurnDoor
from slime_router.auth.access import IN_SESSION
from slime_router.generation.sessions import Sessions
from slime_router.journal.fetching import Fetch
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import TrajectoryStore

Route: TypeAlias = tuple[str, str, Handler]  # method, path, and who answers


def session_routes(
    store: TrajectoryStore,
    admitted: Sessions,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    fetch: Fetch,
    groups: Groups,
    *,
    default_max_turns: int | None,
    realign_threshold: int,
    on_left_out: Callable[[Mapping[str, int]], None],
) -> list[Route]:
    """The routes of sessions, rows and turns."""
    sessions = SessionDoor(store, admitted, tokenizer, fetch, default_max_turns=default_max_turns)
    rows, marks = RowsDoor(store, fetch, realign_threshold, on_left_out), MarksDoor(store, fetch)
    return [
        ("POST", "/sessions", sessions.open),
        ("GET", "/sessions", sessions.list),
        ("GET", IN_SESSION, sessions.show),
        ("DELETE", IN_SESSION, sessions.delete),
        ("POST", f"{IN_SESSION}/close", sessions.close),
        ("POST", f"{IN_SESSION}/reward", sessions.reward),
        ("POST", f"{IN_SESSION}/exported", sessions.exported),
        ("GET", f"{IN_SESSION}/rows", rows.of_session),
        ("POST", f"{IN_SESSION}/samples", partial(samples.collect, rows, tokenizer)),
        ("POST", "/rows", rows.of_many),
        ("POST", f"{IN_SESSION}/score", ScoreDoor(store, fetch, rows, groups).score),
        *LookDoor(store, fetch, tokenizer, template, rows.options).routes(),
        ("GET", "/turns/{id}", TurnDoor(store, tokenizer, fetch).show),
        ("POST", "/turns/{turn}/reward", marks.reward),
        ("POST", "/turns/{turn}/tags", marks.tags),
    ]
