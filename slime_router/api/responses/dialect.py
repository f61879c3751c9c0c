"""OpenAI's responses: `POST /v1/responses`. What is stored of them: `stored`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

from slime_router.api.context import EndpointContext
from slime_router.api.dialect import Dialect
from slime_router.api.endpoint import PromptLength, count_prompt
from slime_router.api.known.names import RESPONSES_FIELDS
from slime_router.api.media.media_pass import is_free_of_media
from slime_router.api.media.pictures import Pictured
from slime_router.api.request import reply_headers
from slime_router.api.responses.items import is_reference
from slime_router.api.responses.reply import RESPONSES_ERRORS, ResponseBody, ResponseStream
from slime_router.api.responses.request import ResponsesRequest, read_responses_request
from slime_router.api.responses.store import ResponseStore, Stored
from slime_router.template.heard import Spoken
from slime_router.types import GenerateCall

PATH = "/v1/responses"


def _is_usual(item: Any) -> bool:
    """Whether an item says itself what it is, and is text."""
    return isinstance(item, dict) and not is_reference(item) and is_free_of_media(item)


SPOKEN = Spoken("input", _is_usual)


def responses(
    kept: ResponseStore, settled: Callable[[], Awaitable[object]] | None = None
) -> Dialect[ResponsesRequest]:
    """The dialect of requests that may refer to what is `kept`, and add to it.

    `settled` waits until that outlives the router, where it is to.
    """

    def read(
        body: dict[str, Any], request: web.Request, context: EndpointContext
    ) -> ResponsesRequest:
        return _read(body, request, context, kept)

    def write(asked: ResponsesRequest, _: EndpointContext) -> ResponseBody:
        return ResponseBody(asked.style, partial(_keep, kept, asked))

    def stream(asked: ResponsesRequest, _: EndpointContext, __: str) -> ResponseStream:
        return ResponseStream(asked.style, partial(_keep, kept, asked))

    return Dialect(
        read=read,
        write=write,
        stream=stream,
        fields=RESPONSES_FIELDS,
        errors=RESPONSES_ERRORS,
        ending=b"",
        settled=settled,
        media_path=PATH,
        spoken=SPOKEN,
    )


def _read(
    body: dict[str, Any], request: web.Request, context: EndpointContext, kept: ResponseStore
) -> ResponsesRequest:
    reader, take = context.chat_settings, context.pictures.taken
    if isinstance(body, Pictured):  # what is stored is what came
        take = partial(take, known=body.digest_of)
        body = dict(body.as_it_came)
    return read_responses_request(body, request, reader, kept, context.token_names, take)


async def count_input(
    context: EndpointContext, prompt_len: PromptLength, kept: ResponseStore, request: web.Request
) -> web.StreamResponse:
    """How many tokens the prompt of a request would have.

    Raises:
        RouterError: as for a request that generates.
    """
    headers = reply_headers(request)

    def read(body: dict[str, Any]) -> GenerateCall:
        return _read(body, request, context, kept).call

    count = await count_prompt(context, prompt_len, request, "", headers, read)
    reply = {"object": "response.input_tokens", "input_tokens": count}
    return web.json_response(reply, headers=headers)


def _keep(
    kept: ResponseStore, asked: ResponsesRequest, response: dict[str, Any], turn: str
) -> None:
    """Before the client can ask for what continues it."""
    if asked.store:
        said = tuple({**item, "turn": turn} for item in response["output"])
        kept.put(Stored(response, asked.asked, said, asked.previous, asked.owner))
