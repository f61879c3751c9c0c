"""What every endpoint reads off an HTTP request, and the 400s that name the field at fault."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import orjson
from aiohttp import web

from slime_router.auth.caller import caller
from slime_router.auth.keys import session_in_key
from slime_router.auth.session_ids import MAX_SESSION_ID_LEN, is_label, is_session_id
from slime_router.errors import BadRequest
from slime_router.types import GenerateCall

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

# Older versions of aiohttp lack typed keys; newer ones warn about any other kind.
_HEADERS: Any = getattr(web, "RequestKey", lambda name, _: name)("slime_router.headers", dict)

_FORWARDED_HEADERS = frozenset({"x-smg-routing-key", "x-smg-target-worker", "x-data-parallel-rank"})
_FORWARDED_PREFIX = "x-override-"
_SCOPE_FIELDS = ("lora_path", "extra_key", "cache_salt")
_SURROGATE_SIGNS = ("surrogate in string",)
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


class PayloadTooLarge(BadRequest):
    """The body is longer than `--max-payload-size`."""

    status = 413
    code = "request_too_large"


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
        BadRequest: it is not JSON, not an object, or cannot be written back as JSON.
        PayloadTooLarge: it is over the server's limit, as sent or decompressed.
        ClientTimeout: the client stopped sending it.
    """
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise PayloadTooLarge(exc.text or "The request body is too large.") from exc
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise BadRequest(_not_json(exc), code="invalid_json") from exc
    if type(body) is not dict:
        raise BadRequest("The request body must be a JSON object.", code="invalid_json")
    _check_depth(raw, body)
    return body


def session_id(request: web.Request, body: Mapping[str, Any]) -> str | None:
    """The session that the client names: in the path, else in headers, else in the body.

    Invalid names in headers or the body are ignored. The session is the caller's own of that name;
    the name inside the router is returned.

    Raises:
        BadRequest: the path has a name that no session can have.
    """
    named = request.match_info.get("session")
    if named is not None:
        return own_session_id(request, named)
    hints = _hints(request.headers, body)
    hint = next((n for n in hints if n is not None and is_session_id(n)), None)
    return None if hint is None else caller(request).own(hint)


def own_session_id(request: web.Request, name: object) -> str:
    """The caller's session of this name, as the router knows it.

    Raises:
        BadRequest: no session can have that name.
    """
    return caller(request).own(checked_session_id(name, "session_id"))


def _hints(headers: Mapping[str, str], body: Mapping[str, Any]) -> Iterator[Any]:
    """The places where clients are known to identify their conversation, most reliable first."""
    yield from (headers.get(name) for name in SESSION_HEADERS)
    metadata = body.get("metadata")
    within = metadata if isinstance(metadata, dict) else {}
    yield body.get("session_id")
    yield body.get("prompt_cache_key")
    yield within.get("session_id")
    yield within.get("user_id")
    yield body.get("user")
    yield session_in_key(headers)


def checked_session_id(name: object, param: str) -> str:
    """`name`, if it can name a session.

    Raises:
        BadRequest: it cannot.
    """
    if not is_session_id(name):
        raise BadRequest(
            f"'{param}' must be 1 to {MAX_SESSION_ID_LEN} printable characters, not dots alone.",
            param=param,
        )
    return str(name)


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own `x-request-id` if it is safe to send back, else a new one."""
    given = headers.get("x-request-id")
    if given is not None and given.isascii() and is_label(given, MAX_REQUEST_ID_LEN):
        return given
    return f"req_{secrets.token_hex(16)}"


def reply_headers(
    request: web.Request, id_headers: tuple[str, ...] = ("x-request-id",)
) -> dict[str, str]:
    """The headers of every reply to `request`, errors included: its id, under each of these names.

    A request has one such dict, made on first use. Whoever answers may add to it.
    """
    headers: dict[str, str] | None = request.get(_HEADERS)
    if headers is None:
        headers = request[_HEADERS] = dict.fromkeys(id_headers, request_id(request.headers))
    return headers


def forwarded_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The request headers that are meant for the worker."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() in _FORWARDED_HEADERS or name.lower().startswith(_FORWARDED_PREFIX)
    }


def scope(request: web.Request, body: Mapping[str, Any]) -> str:
    """A name for what separates the caches: the caller, and what `parting` returns. Mostly ""."""
    return caller(request).own(parting(body))


def parting(body: Mapping[str, Any]) -> str:
    """A name for the adapter, extra key and cache salt; "" for plain requests."""
    values = [body.get(name) or None for name in _SCOPE_FIELDS]
    return orjson.dumps(values).decode() if any(values) else ""


def new_turn_id() -> str:
    """A fresh turn id, `turn_<24 hex>`."""
    return f"turn_{secrets.token_hex(12)}"


def _not_json(exc: orjson.JSONDecodeError) -> str:
    if any(sign in exc.msg for sign in _SURROGATE_SIGNS):
        return f"The request body holds a lone surrogate, which is not a character: {exc}"
    return f"The request body is not valid JSON: {exc}"


def _check_depth(raw: bytes, body: dict[str, Any]) -> None:
    """Parsed JSON must also be writable: the writer's depth limit is below the reader's."""
    if raw.count(b"[") + raw.count(b"{") <= _SHALLOW_BRACKETS:
        return
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError as exc:
        raise BadRequest("The request body is nested too deeply.", code="invalid_json") from exc


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
