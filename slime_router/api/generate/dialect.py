"""SGLang's own API: `POST /generate` and `PUT /generate`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from slime_router.api.context import EndpointContext
from slime_router.api.dialect import Dialect
from slime_router.api.errors import NATIVE_ERRORS
from slime_router.api.generate.reply import ItemBody, ItemStream
from slime_router.api.generate.request import GenerateRequest, read_generate_request


def _read(body: dict[str, Any], request: web.Request, context: EndpointContext) -> GenerateRequest:
    return read_generate_request(body, request, context.vocabulary)


def _write(asked: GenerateRequest, _: EndpointContext) -> ItemBody:
    return ItemBody(asked.calls, is_array=asked.is_array, tag=asked.tag)


def _stream(asked: GenerateRequest, _: EndpointContext, __: str) -> ItemStream:
    return ItemStream(asked.calls, is_array=asked.is_array, tag=asked.tag)


GENERATE = Dialect(
    read=_read,
    write=_write,
    stream=_stream,
    errors=NATIVE_ERRORS,
    is_limited=False,
    ids_field="input_ids",
)
