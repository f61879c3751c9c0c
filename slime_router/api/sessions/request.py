"""The bodies and queries of the session doors, checked before anything happens.

These doors are our own, so unknown fields are refused: a misspelled `max_turn` would otherwise be a
limit that is never enforced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson
from aiohttp import web
from multidict import MultiMapping

from slime_router.api.chat.fields import SAMPLING_FIELDS, read_fields, sampling
from slime_router.api.chat.grammar import grammar
from slime_router.api.request import fresh_hex, missing, read_object, require
from slime_router.api.sessions.row_formats import OUR_METADATA_KEY
from slime_router.api.token_ids import Vocabulary
from slime_router.auth.session_ids import MAX_SESSION_ID_LEN, is_dots, is_label
from slime_router.engine.top_logprobs import MAX_KEPT
from slime_router.errors import BadRequest
from slime_router.trajectory.session import Reward, SessionSpec
from slime_router.types import Pins, Sampling

MAX_OBJECT_BYTES = 64 * 2**10  # of metadata, and of a reward
MAX_LIMIT = 2**63 - 1
MAX_PATH_LEN = 4096  # bytes
MAX_KEY_LEN = 512  # bytes
DEFAULT_CLOSE_TIMEOUT_S = 30.0
MAX_CLOSE_TIMEOUT_S = 86_400.0
A_NAME = f"a string of 1 to {MAX_SESSION_ID_LEN} printable characters"
STATES = ("implicit", "open", "closing", "closed")

SPEC_FIELDS = (
    "session_id",
    "group_id",
    "rollout_id",
    "metadata",
    "sampling",
    "max_turns",
    "max_tokens",
    "return_routed_experts",
    "return_indexer_topk",
    "top_logprobs",
    "sampling_pins",
    "lora_path",
    "extra_key",
    "priority",
)
_LISTING_LEVELS = 8  # an object is written deeper inside a reply than it stood in the request

Body: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CloseRequest:
    """What to do with running generations, and how long to wait for them."""

    cancel: bool
    timeout_s: float


def read_spec(body: Body, vocabulary: Vocabulary) -> SessionSpec:
    """The session that `POST /sessions` opens.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    check_known(body, SPEC_FIELDS)
    return SessionSpec(
        id=_read_session_id(body),
        group_id=_read_name(body, "group_id"),
        rollout_id=_read_name(body, "rollout_id"),
        metadata=_read_metadata(body),
        sampling=_read_sampling(body.get("sampling"), "sampling", vocabulary),
        sampling_pins=read_pins(body.get("sampling_pins"), vocabulary),
        lora_path=_read_text(body, "lora_path", MAX_PATH_LEN),
        extra_key=_read_text(body, "extra_key", MAX_KEY_LEN),
        priority=_read_priority(body),
        return_routed_experts=_read_flag(body, "return_routed_experts"),
        return_indexer_topk=_read_flag(body, "return_indexer_topk"),
        top_logprobs=_read_tops(body, vocabulary),
        max_turns=read_count(body, "max_turns"),
        max_tokens=read_count(body, "max_tokens"),
    )


def read_pins(wanted: Any, vocabulary: Vocabulary) -> Pins:
    """`sampling_pins`: sampling that holds whatever a request says. Null pins a field to nothing.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    sampling = _read_sampling(wanted, "sampling_pins", vocabulary)
    names = dict.fromkeys(SAMPLING_FIELDS[name] for name in wanted or ())
    return Pins(names=tuple(names), sampling=sampling)


def _read_flag(body: Body, name: str) -> bool:
    value = body.get(name)
    require(value is None or type(value) is bool, name, "true or false")
    return bool(value)


def _read_tops(body: Body, vocabulary: Vocabulary) -> int | None:
    count, most = body.get("top_logprobs"), min(MAX_KEPT, vocabulary.vocab_size)
    is_count = count is None or (type(count) is int and 0 <= count <= most)
    require(is_count, "top_logprobs", f"an integer from 0 to {most}")
    return count


def _read_text(body: Body, name: str, longest: int) -> str | None:
    value = body.get(name)
    is_text = value is None or (isinstance(value, str) and 0 < len(value.encode()) <= longest)
    require(is_text, name, f"a string of 1 to {longest} bytes")
    return value


def _read_priority(body: Body) -> int | None:
    priority = body.get("priority")
    is_priority = priority is None or (type(priority) is int and abs(priority) < 2**31)
    require(is_priority, "priority", "a 32-bit integer")
    return priority


async def read_close(request: web.Request) -> CloseRequest:
    """`{"in_flight", "timeout_secs"}`; no body is an empty one.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    body = await read_object(request) if request.body_exists else {}
    check_known(body, ("in_flight", "timeout_secs"))
    in_flight = body.get("in_flight", "wait")
    require(in_flight in ("wait", "cancel"), "in_flight", "'wait' or 'cancel'")
    timeout_s = body.get("timeout_secs", DEFAULT_CLOSE_TIMEOUT_S)
    is_time = type(timeout_s) in (int, float) and 0 <= timeout_s <= MAX_CLOSE_TIMEOUT_S
    require(is_time, "timeout_secs", f"a number from 0 to {MAX_CLOSE_TIMEOUT_S:.0f}")
    return CloseRequest(cancel=in_flight == "cancel", timeout_s=float(timeout_s))


def read_reward(body: Body) -> Reward:
    """`{"reward"}`: a number or an object. JSON has no number that is not finite.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    check_known(body, ("reward",))
    if "reward" not in body:
        raise missing("reward")
    reward = body["reward"]
    if isinstance(reward, dict):
        return _checked_object(reward, "reward")
    require(type(reward) in (int, float), "reward", "a number or an object")
    return float(reward)


def read_query(query: MultiMapping[str], known: Collection[str]) -> dict[str, str]:
    """The parameters of a query, each given once.

    Raises:
        BadRequest: with the name of the parameter at fault.
    """
    check_known(query, known)
    for name in query:
        if len(query.getall(name)) > 1:
            raise BadRequest(f"'{name}' is given more than once.", param=name)
    return dict(query)


def check_known(names: Iterable[str], known: Collection[str], within: str = "") -> None:
    """Raises BadRequest at the first name that is not `known`."""
    for name in names:
        if name not in known:
            path = f"{within}{name[:100]}"
            raise BadRequest(
                f"Unknown field '{path}'; known are {', '.join(sorted(known))}.",
                param=path,
                code="unknown_parameter",
            )


def read_count(body: Mapping[str, Any], name: str, *, least: int = 1) -> int | None:
    """An integer of at least `least`; None where it is null or absent.

    Raises:
        BadRequest: it is something else.
    """
    count = body.get(name)
    is_count = count is None or (type(count) is int and least <= count <= MAX_LIMIT)
    require(is_count, name, f"an integer from {least}")
    return count


def _read_session_id(body: Body) -> str:
    name = body.get("session_id")
    if name is None:
        return f"sess_{fresh_hex(24)}"
    require(is_label(name), "session_id", A_NAME)
    require(not is_dots(name), "session_id", "another name than '.' and '..'")
    return str(name)


def _read_name(body: Body, field: str) -> str | None:
    name = body.get(field)
    if name is None:
        return None
    name = str(name) if type(name) is int else name
    require(is_label(name), field, f"{A_NAME}, or an integer")
    return str(name)


def _read_metadata(body: Body) -> dict[str, Any]:
    metadata = body.get("metadata")
    if metadata is None:
        return {}
    require(isinstance(metadata, dict), "metadata", "an object")
    if OUR_METADATA_KEY in metadata:
        path = f"metadata.{OUR_METADATA_KEY}"
        raise BadRequest(f"'{path}' is the router's own.", param=path)
    return _checked_object(metadata, "metadata")


def _checked_object(value: Body, field: str) -> Body:
    """An object that fits, and that can be written wherever the router returns it."""
    nested: Any = value
    for _ in range(_LISTING_LEVELS):
        nested = [nested]
    try:
        size = len(orjson.dumps(nested)) - 2 * _LISTING_LEVELS
    except orjson.JSONEncodeError as exc:
        raise BadRequest(f"'{field}' is nested too deeply.", param=field) from exc
    if size > MAX_OBJECT_BYTES:
        message = f"'{field}' can have at most {MAX_OBJECT_BYTES} bytes of JSON; it has {size}."
        raise BadRequest(message, param=field)
    return value


def _read_sampling(wanted: Any, field: str, vocabulary: Vocabulary) -> Sampling:
    if wanted is None:
        return Sampling()
    require(isinstance(wanted, dict), field, "an object")
    check_known(wanted, SAMPLING_FIELDS, f"{field}.")
    try:
        chat = read_fields(wanted, vocabulary)
        constraint = grammar(wanted.get("response_format"), regex=chat.regex, ebnf=chat.ebnf)
    except BadRequest as exc:
        path = f"{field}.{exc.param}"
        raise BadRequest(f"In '{field}': {exc.message}", param=path, code=exc.code) from exc
    return sampling(chat, constraint)
