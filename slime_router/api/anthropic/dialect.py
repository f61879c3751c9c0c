"""Anthropic's messages: `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from slime_router.api.anthropic.reply import ANTHROPIC_ERRORS, PING, MessageBody, MessageStream
from slime_router.api.anthropic.request import MessagesRequest, read_messages_request
from slime_router.api.context import EndpointContext
from slime_router.api.dialect import Dialect
from slime_router.api.endpoint import PromptLength, count_prompt
from slime_router.api.known.names import MESSAGES_FIELDS
from slime_router.api.media.media_pass import is_free_of_media
from slime_router.api.request import reply_headers
from slime_router.template.heard import Spoken
from slime_router.types import GenerateCall

PATH = "/v1/messages"
COUNT_PATH = f"{PATH}/count_tokens"


async def count_tokens(
    context: EndpointContext, prompt_len: PromptLength, request: web.Request
) -> web.StreamResponse:
    """How many tokens the prompt of a request would have: `{"input_tokens": n}`.

    Raises:
        RouterError: as for a request that generates.
    """
    headers = reply_headers(request, ANTHROPIC_ERRORS.id_headers)

    def read(body: dict[str, Any]) -> GenerateCall:
        return _read(body, request, context, is_counted=True).call

    count = await count_prompt(context, prompt_len, request, COUNT_PATH, headers, read)
    if isinstance(count, web.StreamResponse):
        return count
    return web.json_response({"input_tokens": count}, headers=headers)


def _read(
    body: dict[str, Any],
    request: web.Request,
    context: EndpointContext,
    *,
    is_counted: bool = False,
) -> MessagesRequest:
    return read_messages_request(body, request, context.chat_settings, is_counted=is_counted)


def _write(asked: MessagesRequest, _: EndpointContext) -> MessageBody:
    return MessageBody(asked.style)


def _stream(asked: MessagesRequest, _: EndpointContext, request_id: str) -> MessageStream:
    return MessageStream(asked.style, request_id)


ANTHROPIC = Dialect(
    read=_read,
    write=_write,
    stream=_stream,
    fields=MESSAGES_FIELDS,
    errors=ANTHROPIC_ERRORS,
    ending=b"",
    sign_of_life=PING,
    media_path=PATH,
    spoken=Spoken("messages", is_free_of_media),
)
