"""From the body of a chat request to the call it asks for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from slime_router.api import request as http
from slime_router.api.chat.aliases import said_in_headers
from slime_router.api.chat.fields import read_fields
from slime_router.api.chat.messages import is_continued, read_messages
from slime_router.api.chat.reply import ChatStyle
from slime_router.api.chat.settings import Settings, SettingsReader
from slime_router.api.request import fresh_hex
from slime_router.api.token_ids import Vocabulary, checked_ids
from slime_router.auth.caller import caller
from slime_router.errors import BadRequest
from slime_router.shortcut.shortcut import Shortcut
from slime_router.types import GenerateCall, Message, TemplateOptions, TokenIds
from slime_router.values import replace, value

_ID_FIELDS = ("input_ids", "prompt_token_ids")  # SGLang's name and vLLM's
_PREFIX = "required_prefix_token_ids"  # NeMo-RL's
_NAMES = ("rid", "routing_key")  # that a worker is given, and that differ between requests
# What differs between the requests of one client; see `settings`.
_OWN = frozenset(
    (
        *("messages", "session_id", "metadata", "prompt_cache_key", "user", "safety_identifier"),
        *(*_ID_FIELDS, *_NAMES, _PREFIX),
    )
)


@value(frozen=True, slots=True)
class ChatRequest:
    """What a client asks for: `calls`, one for each choice, and how it wants the reply.

    `id` and `created`, in seconds of Unix time, are the reply's.
    """

    calls: tuple[GenerateCall, ...]
    style: ChatStyle
    stream: bool
    id: str
    created: int


def read_chat_request(
    body: Mapping[str, Any], request: web.Request, reader: SettingsReader
) -> ChatRequest:
    """Checks every field and makes the calls.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    asked = {**body, **said_in_headers(request.headers)}
    own = {name: asked.pop(name) for name in asked.keys() & _OWN}
    settings = reader.read(asked)
    rid, worker_fields = _named(own, settings, reader.vocabulary)
    ids = _ids(own, _ID_FIELDS, reader.vocabulary.vocab_size)
    messages = None
    if ids is None or own.get("messages") not in (None, []):  # SDKs insist on the field
        messages = read_messages(own)
    fields = settings.fields
    stream, reply_id = bool(fields.stream), rid or f"chatcmpl-{fresh_hex(32)}"
    count = fields.n or 1
    call = GenerateCall(
        rid=reply_id,
        turn_id=http.new_turn_id(),
        messages=messages if ids is None else None,
        input_ids=ids,
        prefix_ids=_ids(own, (_PREFIX,), reader.vocabulary.vocab_size),
        template=_template(settings, messages or ()),
        reply=settings.reply,
        history=fields.history,
        session_id=http.session_id(request, own),
        scope=caller(request).own(settings.parting),
        sampling=settings.sampling,
        worker_fields=worker_fields,
        headers=http.forwarded_headers(request),
        stream=stream,
        top_logprobs=fields.top_logprobs or 0,
        request_id=f"chatcmpl-{fresh_hex(32)}" if rid else reply_id,
        samples=count,
        notes=settings.notes,
        shows_items=settings.style.meta_info,
        shortcut=Shortcut() if stream and count == 1 else None,
    )
    return ChatRequest(choices(call), settings.style, stream, reply_id, int(time.time()))


def _named(
    own: Mapping[str, Any], settings: Settings, vocabulary: Vocabulary
) -> tuple[str | None, Mapping[str, Any]]:
    """The client's own name of the request, and the fields for the worker."""
    if own.keys().isdisjoint(_NAMES):
        return None, settings.worker_fields
    names = read_fields({name: own.get(name) for name in _NAMES}, vocabulary)
    if names.routing_key is None:
        return names.rid, settings.worker_fields
    return names.rid, {**settings.worker_fields, "routing_key": names.routing_key}


def _ids(own: Mapping[str, Any], names: Sequence[str], vocab_size: int) -> TokenIds | None:
    for name in filter(own.__contains__, names):
        if own[name] is not None:
            return checked_ids(own[name], vocab_size, name)
    return None


def _template(settings: Settings, messages: tuple[Message, ...]) -> TemplateOptions:
    fields = settings.fields
    asked = bool(fields.continue_final_message)
    if not messages or not is_continued(messages, asked):
        return settings.template
    if fields.add_generation_prompt:
        raise BadRequest(
            "Cannot both continue the final message and set 'add_generation_prompt'.",
            param="continue_final_message" if asked else "add_generation_prompt",
        )
    return replace(settings.template, add_generation_prompt=False, continue_final_message=True)


def choices(call: GenerateCall) -> tuple[GenerateCall, ...]:
    """One call for each sample; the first carries the reply's own id, which a client may name."""
    if call.samples == 1:
        return (call,)
    others = (
        replace(
            call,
            rid=f"{index}-{call.rid}",  # none may begin with another, see `Stitch.next_call`
            asked_as=call.rid,
            turn_id=http.new_turn_id(),
            sampling=http.of_sample(call.sampling, index),
        )
        for index in range(1, call.samples)
    )
    return (call, *others)
