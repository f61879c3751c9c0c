"""A session as the router describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from slime_router.client.errors import BadReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A session at one moment.

    `turns` are held and can be exported; `recorded_turns` and `sampled_tokens` count from the
    start, `dropped_turns` are those that the router had to drop, `running` those in progress.
    """

    session_id: str
    state: str
    group_id: str | None
    rollout_id: str
    metadata: Mapping[str, Any]
    max_turns: int | None
    max_tokens: int | None
    return_routed_experts: bool
    reward: float | Mapping[str, Any] | None
    turns: int
    recorded_turns: int
    sampled_tokens: int
    dropped_turns: int
    running: int


def read_summary(body: bytes) -> Summary:
    """The summary in the router's answer.

    Raises:
        BadReply: it is not one.
    """
    try:
        return _summary(json.loads(body))
    except (ValueError, LookupError, TypeError) as error:
        raise BadReply(f"The answer describes no session: {error!r}") from error


def read_summaries(body: bytes) -> tuple[Summary, ...]:
    """The summaries in the router's list of sessions.

    Raises:
        BadReply: it is not such a list.
    """
    try:
        return tuple(_summary(fields) for fields in json.loads(body)["sessions"])
    except (ValueError, LookupError, TypeError) as error:
        raise BadReply(f"The answer lists no sessions: {error!r}") from error


def _summary(values: Mapping[str, Any]) -> Summary:
    return Summary(**{field.name: values[field.name] for field in fields(Summary)})
