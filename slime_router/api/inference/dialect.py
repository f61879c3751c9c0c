"""vLLM's token API, which verifiers and prime-rl speak: `POST /inference/v1/generate`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from slime_router.api.context import EndpointContext
from slime_router.api.dialect import Dialect
from slime_router.api.inference.reply import TokenBody, TokenStream
from slime_router.api.inference.request import TokenRequest, read_token_request
from slime_router.api.known.names import TOKEN_FIELDS


def _read(body: dict[str, Any], request: web.Request, context: EndpointContext) -> TokenRequest:
    return read_token_request(body, request, context.vocabulary, context.models.default)


def _write(asked: TokenRequest, context: EndpointContext) -> TokenBody:
    return TokenBody(asked, context.experts_shape)


def _stream(asked: TokenRequest, context: EndpointContext, _: str) -> TokenStream:
    return TokenStream(asked, context.experts_shape)


INFERENCE = Dialect(
    read=_read,
    write=_write,
    stream=_stream,
    prompt_field="token_ids",
    fields=TOKEN_FIELDS,
    ids_field="token_ids",
)
