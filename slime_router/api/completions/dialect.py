"""OpenAI's text completions: `POST /v1/completions`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from slime_router.api.completions.reply import CompletionBody, CompletionStream
from slime_router.api.completions.request import CompletionRequest, read_completion_request
from slime_router.api.context import EndpointContext
from slime_router.api.dialect import Dialect
from slime_router.api.known.names import COMPLETION_FIELDS


def _read(
    body: dict[str, Any], request: web.Request, context: EndpointContext
) -> CompletionRequest:
    return read_completion_request(body, request, context.vocabulary, context.models.default)


def _write(asked: CompletionRequest, context: EndpointContext) -> CompletionBody:
    return CompletionBody(asked.style, context.token_names(asked.style.tokens_as_ids), asked.calls)


def _stream(asked: CompletionRequest, context: EndpointContext, _: str) -> CompletionStream:
    return CompletionStream(
        asked.style, context.token_names(asked.style.tokens_as_ids), asked.calls
    )


COMPLETIONS = Dialect(
    read=_read,
    write=_write,
    stream=_stream,
    prompt_field="prompt",
    fields=COMPLETION_FIELDS,
)
