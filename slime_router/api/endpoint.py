"""The one endpoint that generates: it serves every dialect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from aiohttp import web

from slime_router.api.context import EndpointContext
from slime_router.api.delivery import deliver_stream, deliver_whole
from slime_router.api.dialect import Dialect
from slime_router.api.media.pictures import Pictured
from slime_router.api.request import A, check_read, object_in, reply_headers, said_kind, with_ids
from slime_router.auth.caller import Caller, caller
from slime_router.edge.bodies import read_body
from slime_router.edge.lengths import MAX_MEMBERS, MAX_MESSAGES
from slime_router.edge.owned_calls import own_call
from slime_router.errors import BadRequest, ContextLengthExceeded, RouterError
from slime_router.telemetry.request_record import keeps_body, note_body
from slime_router.template import heard
from slime_router.types import GenerateCall
from slime_router.values import replace

PromptLength: TypeAlias = Callable[[GenerateCall], Awaitable[int]]  # in tokens; runs nothing


async def serve(
    dialect: Dialect[A], context: EndpointContext, request: web.Request
) -> web.StreamResponse:
    """One request, to the end of its reply.

    Raises:
        RouterError: before anything was sent. Later errors are events of the stream.
    """
    headers, who = reply_headers(request, dialect.errors.id_headers), caller(request)
    if not dialect.is_limited:
        given = await read_allowed(
            context,
            request,
            await read_body(request),  # it has no name here: it would stay until the reply is out
            dialect.ids_field,
        )
        return await _deliver(dialect, context, request, given, headers, who)
    with context.admission.of(who.owner):
        body = await read_text(
            context,
            request,
            dialect.media_path,
            headers,
            ids_field=dialect.ids_field,
            spoken=dialect.spoken,
        )
        if isinstance(body, web.StreamResponse):
            return body
        try:
            return await _deliver(dialect, context, request, body, headers, who)
        except RouterError as exc:
            if exc.code == ContextLengthExceeded.code and exc.param is None:  # a worker found it
                exc.param = dialect.prompt_field
            raise


async def count_prompt(
    context: EndpointContext,
    prompt_len: PromptLength,
    request: web.Request,
    media_path: str,
    headers: Mapping[str, str],
    read: Callable[[dict[str, Any]], GenerateCall],
) -> int | web.StreamResponse:
    """How many tokens the prompt of a request has; nothing runs, and nothing is kept.

    `read` makes the call; for media it is a worker's answer, as in `read_text`.

    Raises:
        RouterError: as for a request that generates.
    """
    with context.admission.of(caller(request).owner):
        body = await read_text(context, request, media_path, headers)
        if isinstance(body, web.StreamResponse):
            return body
        return await prompt_len(read(body))


async def read_text(
    context: EndpointContext,
    request: web.Request,
    media_path: str,
    headers: Mapping[str, str],
    *,
    ids_field: str = "",
    spoken: heard.Spoken | None = None,
) -> dict[str, Any] | web.StreamResponse:
    """The request's body; if it has media, instead the answer from a worker's `media_path`.

    Raises:
        RouterError: the body is not a JSON object or names another model, or no worker took it.
    """
    raw, body = await read_body(request), None
    if spoken is not None and len(raw) >= heard.LONG_LEN:
        body = _read_written(context, raw, (media_path, caller(request).owner), spoken)
    if body is None:
        body = await read_allowed(context, request, raw, ids_field)
    body = context.models.checked(body)
    if media_path and context.media.is_on:
        pictured = None if spoken is None else await context.pictures.take(body, len(raw))
        if pictured is not None:
            return pictured
        passed = await context.media.take(request, body, media_path, headers)
        if passed is not None:
            return passed
    return body


def _read_written(
    context: EndpointContext, raw: bytes, owner: heard.Owner, spoken: heard.Spoken
) -> dict[str, Any] | None:
    """`read_allowed`, where the messages are `Written`.

    None for the usual way, which also says what is wrong where anything is.
    """
    if keeps_body():
        return None
    found = context.message_texts.read(raw, owner, spoken, MAX_MEMBERS, MAX_MESSAGES)
    if found is None:
        return None
    body, text = found
    written = body[spoken.field]
    shown = {**body, spoken.field: written.new}
    try:
        check_read(text, shown)
        context.allowances.check(shown)
    except BadRequest:
        return None
    return body


async def read_allowed(
    context: EndpointContext, request: web.Request, raw: bytes, ids_field: str = ""
) -> dict[str, Any]:
    """The object in the request's body, in which nothing is that flags would have to allow.

    Raises:
        BadRequest: it is not a JSON object, or has something of that kind.
    """
    body = with_ids(raw, request, ids_field, context.id_texts) if ids_field else None
    if body is None:
        body = await object_in(raw)
    note_body(body)
    context.allowances.check(body)
    return body


def _deliver(
    dialect: Dialect[A],
    context: EndpointContext,
    request: web.Request,
    body: dict[str, Any],
    headers: dict[str, str],
    who: Caller,
) -> Awaitable[web.StreamResponse]:
    context.strictness.check(body, dialect.fields, headers)
    asked = dialect.read(body, request, context)
    if who.tag or (context.isolates_owners and who.owner):
        calls = (own_call(c, who, is_isolated=context.isolates_owners) for c in asked.calls)
        asked = replace(asked, calls=tuple(calls))  # type: ignore[type-var]  # it is a dataclass
    if (kind := said_kind(request.headers)) is not None:
        kinds = (replace(call, kind=kind) for call in asked.calls)
        asked = replace(asked, calls=tuple(kinds))  # type: ignore[type-var]  # it is a dataclass
    if isinstance(body, Pictured) and not asked.calls[0].pictures:
        pictured = tuple(map(body.on, asked.calls))
        asked = replace(asked, calls=pictured)  # type: ignore[type-var]  # it is a dataclass
    deliver = deliver_stream if asked.stream else deliver_whole
    return deliver(dialect, context, request, asked, headers)
