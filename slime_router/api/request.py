"""What every endpoint reads off an HTTP request, and the 400s that name the field at fault."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import urandom
from typing import Any, Protocol, TypeVar, cast

import orjson
from aiohttp import web
from multidict import MultiMapping

from slime_router.api.as_written import load_as_written
from slime_router.auth.access import OVERRIDE_PREFIX, TARGET_HEADER
from slime_router.auth.caller import caller, visit
from slime_router.auth.keys import SESSION_KEY_PREFIX, sent_keys
from slime_router.auth.session_ids import MAX_SESSION_ID_LEN, is_label, is_session_id
from slime_router.edge.bodies import read_body
from slime_router.edge.lengths import MAX_PARTS, check_containers, check_lengths, check_parts
from slime_router.engine.rules import parting
from slime_router.errors import BadRequest
from slime_router.json_text import brackets, without_mark
from slime_router.tokens.written.id_text import LONG_LEN, IdTexts
from slime_router.types import GenerateCall, Sampling, TurnKind
from slime_router.values import replace

SESSION_HEADERS = (  # slime's, agents', gateways'
    "x-smg-routing-key",
    "x-session-id",
    "x-session-affinity",
    "session-id",
    "thread-id",
    "x-claude-code-session-id",
    "x-litellm-session-id",
)
MAX_REQUEST_ID_LEN = 128
KIND_HEADER = "x-slime-kind"  # what a turn is, where an agent knows it: see `TurnKind`
SUBAGENT_HEADER = "x-openai-subagent"  # Codex: `compact`, or what else the sub-agent is for

_FORWARDED_HEADERS = frozenset({"x-smg-routing-key", TARGET_HEADER, "x-data-parallel-rank"})
_HANDED_ON = (*sorted(_FORWARDED_HEADERS), OVERRIDE_PREFIX, "traceparent")
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]{0,200})?")
_AS_WRITTEN_SIGNS = ("surrogate in string", "number is infinity")
_TIME_LEN = 12  # hex digits, of milliseconds since 1970
_TIME_MASK = (1 << 4 * _TIME_LEN) - 1
_SHALLOW_BRACKETS = 200  # below orjson's depth limit, so the text cannot nest too deeply


class Asked(Protocol):
    """What a request asks for."""

    @property
    def calls(self) -> Sequence[GenerateCall]:
        """One per generation."""

    @property
    def stream(self) -> bool:
        """Whether the reply is a stream of events."""


A = TypeVar("A", bound=Asked)


class ClientTimeout(BadRequest, TimeoutError):
    """No data of the body arrived for `--client-timeout-secs`.

    Whoever reads the body gets it. It is a TimeoutError so that the server, which reads the rest of
    a body, takes that to have ended.
    """

    status = 408
    code = "request_timeout"


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object in the body, whatever its Content-Type says.

    Raises:
        BadRequest: it is corrupt, not JSON, not an object, or cannot be written back as JSON; or
            a field is longer than `slime_router.edge.lengths` says.
        PayloadTooLarge: it is over the server's limit, as sent or unpacked.
        UnsupportedCoding: it is packed in a way that is not read.
        ClientTimeout: the client stopped sending it.
    """
    return await object_in(await read_body(request))


async def object_in(raw: bytes) -> dict[str, Any]:
    """The same of a body that has been read."""
    raw = without_mark(raw)
    check_containers(raw)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        if any(sign in exc.msg for sign in _AS_WRITTEN_SIGNS):
            written = await asyncio.to_thread(load_as_written, raw)
            check_parts(written)
            check_lengths(written)
            return written
        raise BadRequest(f"The request body is not valid JSON: {exc}", code="invalid_json") from exc
    if type(body) is not dict:
        raise BadRequest("The request body must be a JSON object.", code="invalid_json")
    check_read(raw, body)
    return body


def with_ids(
    raw: bytes, request: web.Request, field: str, id_texts: IdTexts
) -> dict[str, Any] | None:
    """The object in a body, where `field` has very many token ids, which are read as `WrittenIds`.

    None for the usual way, which also says what is wrong where anything is.
    """
    if len(raw) < LONG_LEN:
        return None
    hint = next((name for name in _hints(request.headers, {}) if name is not None), None)
    lifted = id_texts.lifted(raw, field, (caller(request).owner, hint))
    if lifted is None:
        return None
    rest, ids = lifted
    check_containers(rest)
    try:
        body = orjson.loads(rest)
    except orjson.JSONDecodeError:
        return None
    if type(body) is not dict or body.get(field) != []:
        return None
    check_read(rest, body)
    body[field] = ids
    return body


def of_sample(sampling: Sampling, index: int) -> Sampling:
    """How one of several samples is drawn."""
    if sampling.seed is None or not index:
        return sampling
    return replace(sampling, seed=seed_of_sample(sampling.seed, index))


def seed_of_sample(seed: int, index: int) -> int:
    """As in vLLM, each of several samples has its own: with one for all, they would be equal.

    After 2**63 - 1 comes -2**63. A seed out of range stays as it is: the worker refuses it.
    """
    if not -(2**63) <= seed < 2**63:
        return seed
    return (seed + index + 2**63) % 2**64 - 2**63


def session_id(request: web.Request, body: Mapping[str, Any]) -> str | None:
    """The session that the client names: in the path, else in headers, else in the body.

    Invalid names in headers or the body are ignored. The session is the caller's own of that name;
    the name inside the router is returned.

    Raises:
        BadRequest: the path has a name that no session can have.
    """
    named = request.match_info.get("session")
    if named is not None:
        return caller(request).own(checked_session_id(named))
    for hint in filter(None, _hints(request.headers, body)):
        if is_session_id(hint):
            return caller(request).own(hint)
    return None


def _hints(headers: MultiMapping[str], body: Mapping[str, Any]) -> Sequence[Any]:
    """What clients are known to identify their conversation by, most reliable first."""
    metadata = body.get("metadata")
    within = metadata if isinstance(metadata, dict) else {}
    return (
        *map(headers.get, SESSION_HEADERS),
        *map(body.get, ("session_id", "prompt_cache_key")),
        *map(within.get, ("session_id", "user_id")),
        body.get("user"),
        _session_in_key(headers),
    )


def _session_in_key(headers: MultiMapping[str]) -> str | None:
    """The session that a key names, for agents that can set only a key; None for real keys."""
    named = (key for key in sent_keys(headers) if key.startswith(SESSION_KEY_PREFIX))
    return next(named, "").removeprefix(SESSION_KEY_PREFIX) or None


def checked_session_id(name: object) -> str:
    """`name`, if it can name a session.

    Raises:
        BadRequest: it cannot.
    """
    if not is_session_id(name):
        raise BadRequest(
            f"'session_id' must be 1 to {MAX_SESSION_ID_LEN} printable characters, not dots alone.",
            param="session_id",
        )
    return str(name)


def fresh_hex(length: int) -> str:
    """A new id of `length` hex digits (even, at least 24): the time, then random ones.

    The first 48 bits are milliseconds, as in UUIDv7 of RFC 9562: an index of such ids grows at its
    end, where a few pages take all that comes, and not everywhere at once. No order depends on it.
    """
    now_ms = time.time_ns() // 1_000_000 & _TIME_MASK
    return f"{now_ms:012x}{urandom((length - _TIME_LEN) // 2).hex()}"


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own `x-request-id` if it is safe to send back, else a new one."""
    given = headers.get("x-request-id")
    if given is not None and given.isascii() and is_label(given, MAX_REQUEST_ID_LEN):
        return given
    return f"req_{fresh_hex(32)}"


def reply_headers(
    request: web.Request, id_headers: tuple[str, ...] = ("x-request-id",)
) -> dict[str, str]:
    """The headers of every reply to `request`, errors included: its id, under each of these names.

    A request has one such dict, made on first use. Whoever answers may add to it.
    """
    known = visit(request)
    if known.headers is None:
        known.headers = dict.fromkeys(id_headers, request_id(request.headers))
    return known.headers


def forwarded_headers(request: web.Request) -> dict[str, str]:
    """The request headers that are meant for the worker; `Access` let them in.

    The request's id goes with them, so that the logs of both sides can be put together.
    """
    headers, own_id = request.headers, reply_headers(request)["x-request-id"]
    names = "\n".join(headers).lower()
    if not any(map(names.__contains__, _HANDED_ON)):  # as mostly
        return {"x-request-id": own_id}
    given = {
        name: value
        for name, value in headers.items()
        if (lower := name.lower()) in _FORWARDED_HEADERS or lower.startswith(OVERRIDE_PREFIX)
    }
    trace = headers.get("traceparent")
    if trace is not None and _TRACE.fullmatch(trace) is not None:
        given["traceparent"] = trace
    return {**given, "x-request-id": own_id}


def said_kind(headers: Mapping[str, str]) -> TurnKind | None:
    """What the agent says that this turn is; None where it says nothing.

    Raises:
        BadRequest: `x-slime-kind` is not a kind that an agent can know.
    """
    said = headers.get(KIND_HEADER)
    if said is not None:
        if said in ("main", "subagent", "compaction"):
            return cast("TurnKind", said)
        raise wrong_type(KIND_HEADER, "'main', 'subagent' or 'compaction'")
    purpose = headers.get(SUBAGENT_HEADER)
    if not purpose:
        return None
    return "compaction" if purpose == "compact" else "subagent"


def scope(request: web.Request, body: Mapping[str, Any]) -> str:
    """A name for what separates the caches: the caller, and what `parting` returns. Mostly ""."""
    return caller(request).own(parting(body))


def new_turn_id() -> str:
    """A fresh turn id, `turn_<24 hex>`."""
    return f"turn_{fresh_hex(24)}"


def check_read(raw: bytes, body: dict[str, Any]) -> None:
    """Raises BadRequest if `body`, which was read from `raw`, goes too deep or has a long field."""
    count = brackets(raw)
    if count > MAX_PARTS:
        check_parts(body)
    check_lengths(body)
    if count > _SHALLOW_BRACKETS:
        _check_depth(body)


def _check_depth(body: dict[str, Any]) -> None:
    """Parsed JSON must also be writable: the writer's depth limit is below the reader's."""
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError as exc:
        raise BadRequest("The request body is nested too deeply.", code="invalid_json") from exc


@contextmanager
def named_as(names: Iterable[tuple[str, str]]) -> Iterator[None]:
    """For the block, complaints name fields as the client does.

    `names` are pairs of our name and the client's; the first that fits wins.
    """
    try:
        yield
    except BadRequest as fault:
        for ours, theirs in names:
            if fault.say_as(ours, theirs):
                break
        raise


def require(holds: bool, param: str, what: str) -> None:
    """Raises BadRequest unless the field is `what` it must be."""
    if not holds:
        raise wrong_type(param, what)


def wrong_type(param: str, what: str) -> BadRequest:
    """The field is not `what` it must be."""
    return BadRequest(f"'{param}' must be {what}.", param=param, code="invalid_type")


def missing(param: str) -> BadRequest:
    """The field must be there."""
    return BadRequest(f"'{param}' is required.", param=param, code="missing_required_parameter")
