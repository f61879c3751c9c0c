"""The calls that the router understands, as values: what is sent, and how long to wait. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict
from urllib.parse import quote, urlencode

import numpy as np

from slime_router.client.errors import BadReply

InFlight: TypeAlias = Literal["wait", "cancel"]
Reward: TypeAlias = float | Mapping[str, Any]

NPZ = "application/x-npz"
NDJSON = "application/x-ndjson"
JSON = "application/json"
TRIES = 3  # of a call that only reads
SCORE_TIMEOUT_S = 3600.0


class SessionOptions(TypedDict, total=False):
    """What a session is opened with. The router chooses whatever is not given.

    `sampling` has OpenAI's field names; its values are defaults for the requests, and those of
    `sampling_pins` hold whatever a request says.
    `max_tokens` limits the tokens sampled in all. A `rollout_id` shared by several sessions makes
    them one rollout, with one reward.
    """

    session_id: str | None
    group_id: str | None
    rollout_id: str | None
    metadata: Mapping[str, Any] | None
    sampling: Mapping[str, Any] | None
    sampling_pins: Mapping[str, Any] | None
    lora_path: str | None
    extra_key: str | None
    priority: int | None
    max_turns: int | None
    max_tokens: int | None
    return_routed_experts: bool | None
    return_indexer_topk: bool | None
    top_logprobs: int | None


class RowOptions(TypedDict, total=False):
    """How rows are cut.

    Drift of fewer than `realign_threshold` tokens is masked; longer drift begins a new row. A row
    has at most `max_len` tokens. `retries`: what happens to replies that a later try replaced.
    `leave_out`: kinds of turns (`subagent,compaction`) and tags (`tag:draft`) that are not trained.
    """

    realign_threshold: int | None
    max_len: int | None
    retries: Literal["drop", "keep"] | None
    leave_out: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One HTTP request. The router may be silent for `wait_s` longer than usual."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    accept: str = JSON
    wait_s: float = 0.0

    @property
    def is_repeatable(self) -> bool:
        """Whether sending it twice has the same effect as sending it once."""
        return self.method == "GET"

    @property
    def payload(self) -> bytes | None:
        """The body as JSON.

        Raises:
            ValueError: a number in it is not finite.
            TypeError: something in it has no JSON form.
        """
        if self.body is None:
            return None
        return json.dumps(self.body, default=_plain, allow_nan=False).encode()

    @property
    def headers(self) -> dict[str, str]:
        """The header fields that belong to it."""
        kind = {} if self.body is None else {"Content-Type": JSON}
        return {"Accept": self.accept, **kind}


def session_path(session_id: str) -> str:
    """The path of a session, whatever characters its id has."""
    return f"/sessions/{quote(session_id, safe='')}"


def open_session(options: SessionOptions) -> Call:
    """Open a session."""
    return Call(method="POST", path="/sessions", body=_given(options))


def read_session(session_id: str) -> Call:
    """Read a session's state."""
    return Call(method="GET", path=session_path(session_id))


def list_sessions(*, group_id: str | None, rollout_id: str | None, state: str | None) -> Call:
    """List the sessions of a group, of a rollout, in a state."""
    return _get("/sessions", {"group_id": group_id, "rollout_id": rollout_id, "state": state})


def close_session(session_id: str, *, in_flight: InFlight, timeout_s: float) -> Call:
    """Close a session; the router answers when nothing is in flight, or after `timeout_s`."""
    body = {"in_flight": in_flight, "timeout_secs": timeout_s}
    path = f"{session_path(session_id)}/close"
    return Call(method="POST", path=path, body=body, wait_s=timeout_s)


def reward_session(session_id: str, reward: Reward) -> Call:
    """Reward a session."""
    return Call(method="POST", path=f"{session_path(session_id)}/reward", body={"reward": reward})


def reward_turn(turn_id: str, reward: float | None) -> Call:
    """Reward one turn; None takes it back."""
    return Call(method="POST", path=f"{turn_path(turn_id)}/reward", body={"reward": reward})


def tag_turn(turn_id: str, tags: Sequence[str]) -> Call:
    """Give one turn these tags, in place of others."""
    return Call(method="POST", path=f"{turn_path(turn_id)}/tags", body={"tags": list(tags)})


def turn_path(turn_id: str) -> str:
    """The path of a turn."""
    return f"/turns/{quote(turn_id, safe='')}"


def score_session(
    session_id: str, worker_group: str, *, top_logprobs: int, options: RowOptions
) -> Call:
    """Have a worker group score a session's rows; the router answers when it has them all."""
    body = {"worker_group": worker_group, "top_logprobs": top_logprobs, **options}
    path, wait_s = f"{session_path(session_id)}/score", SCORE_TIMEOUT_S
    return Call(method="POST", path=path, body=_given(body), wait_s=wait_s)


def delete_session(session_id: str) -> Call:
    """Delete a session."""
    return Call(method="DELETE", path=session_path(session_id))


def session_rows(session_id: str, options: RowOptions) -> Call:
    """Read a session's rows, as arrays."""
    return _get(f"{session_path(session_id)}/rows", {"format": "npz", **options}, accept=NPZ)


def session_tree(session_id: str, options: RowOptions) -> Call:
    """Read a session's rows as one tree."""
    return _get(f"{session_path(session_id)}/rows", {"format": "tree", **options})


def many_rows(
    *,
    session_ids: Sequence[str] | None,
    group_id: str | None,
    rollout_id: str | None,
    options: RowOptions,
) -> Call:
    """Read the rows of many sessions.

    Raises:
        ValueError: not exactly one of the three names is given.
    """
    names = {
        "session_ids": None if session_ids is None else list(session_ids),
        "group_id": group_id,
        "rollout_id": rollout_id,
    }
    if sum(name is not None for name in names.values()) != 1:
        raise ValueError("Give one of session_ids, group_id and rollout_id.")
    return Call(method="POST", path="/rows", body=_given({**names, **options}), accept=NDJSON)


def detokenize(tokens: Sequence[int], *, skip_special_tokens: bool) -> Call:
    """Read tokens as text."""
    body = {"tokens": list(tokens), "skip_special_tokens": skip_special_tokens}
    return Call(method="POST", path="/detokenize", body=body)


def read_text(data: bytes) -> str:
    """The text that the router wrote.

    Raises:
        BadReply: it wrote something else.
    """
    try:
        return str(json.loads(data)["text"])
    except (ValueError, LookupError, TypeError) as error:
        raise BadReply(f"The text is unreadable: {error!r}") from error


def _get(path: str, query: Mapping[str, Any], *, accept: str = JSON) -> Call:
    text = urlencode(_given(query))
    return Call(method="GET", path=f"{path}?{text}" if text else path, accept=accept)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):  # rewards are often computed with numpy
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
