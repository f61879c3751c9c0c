"""OpenAI's chat completions: `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from slime_router.api.chat.reply import ChatBody, ChatStream
from slime_router.api.chat.request import ChatRequest, read_chat_request
from slime_router.api.context import EndpointContext
from slime_router.api.dialect import Dialect
from slime_router.api.known.names import CHAT_FIELDS
from slime_router.template.heard import Spoken, is_text


def _read(body: dict[str, Any], request: web.Request, context: EndpointContext) -> ChatRequest:
    return read_chat_request(body, request, context.chat_settings)


def _write(asked: ChatRequest, context: EndpointContext) -> ChatBody:
    names = context.token_names(asked.style.tokens_as_ids)
    return ChatBody(asked.style, asked.id, asked.created, names, len(asked.calls))


def _stream(asked: ChatRequest, context: EndpointContext, _: str) -> ChatStream:
    names = context.token_names(asked.style.tokens_as_ids)
    return ChatStream(asked.style, asked.id, asked.created, names)


CHAT = Dialect(
    read=_read,
    write=_write,
    stream=_stream,
    fields=CHAT_FIELDS,
    media_path="/v1/chat/completions",  # a worker's own; the router's may be another
    spoken=Spoken("messages", is_text),
)
