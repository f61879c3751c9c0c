"""OpenAI's chat completions: `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from slime_router.api.chat.reply import ChatBody, ChatStream
from slime_router.api.chat.request import ChatRequest, read_chat_request
from slime_router.api.context import EndpointContext
from slime_router.api.dialect import Dialect
from slime_router.api.known.names import CHAT_FIELDS
from slime_router.values import replace


def _read(body: dict[str, Any], request: web.Request, context: EndpointContext) -> ChatRequest:
    asked = read_chat_request(
        body, request, context.vocabulary, context.default_model, context.parsers
    )
    if not context.has_two_reasonings:
        return asked
    return replace(asked, style=replace(asked.style, two_reasonings=True))


def _write(asked: ChatRequest, context: EndpointContext) -> ChatBody:
    return ChatBody(asked.style, context.token_names(asked.style.tokens_as_ids), len(asked.calls))


def _stream(asked: ChatRequest, context: EndpointContext, _: str) -> ChatStream:
    return ChatStream(asked.style, context.token_names(asked.style.tokens_as_ids))


CHAT = Dialect(
    read=_read,
    write=_write,
    stream=_stream,
    fields=CHAT_FIELDS,
    media_path="/v1/chat/completions",  # a worker's own; the router's may be another
    takes_written=True,
)
