"""The door for Anthropic's messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from aiohttp import web

from slime_router.api.anthropic.reply import ANTHROPIC_ERRORS, MessageBody, MessageStream
from slime_router.api.anthropic.request import MessagesRequest, read_messages_request
from slime_router.api.delivery import deliver_stream, deliver_whole
from slime_router.api.frame import Frame
from slime_router.api.request import read_object, reply_headers
from slime_router.types import GenerateCall

PromptLength: TypeAlias = Callable[[GenerateCall], Awaitable[int]]  # in tokens; runs nothing


PATH = "/v1/messages"
COUNT_PATH = f"{PATH}/count_tokens"


class MessagesDoor:
    """Serves `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

    def __init__(self, frame: Frame, *, prompt_len: PromptLength) -> None:
        self._frame = frame
        self._prompt_len = prompt_len

    def __repr__(self) -> str:
        return f"<MessagesDoor {self._frame.default_model!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, to the end of its reply."""
        headers = reply_headers(request, ANTHROPIC_ERRORS.id_headers)
        frame = self._frame
        with frame.admission:
            body = await self._body(request)
            passed = await frame.media.take(request, body, PATH, headers)
            if passed is not None:
                return passed
            asked = self._read(body, request)
            if asked.stream:
                stream = partial(MessageStream, asked.style, headers["request-id"])
                return await deliver_stream(
                    request, frame.joiner, [asked.call], stream, headers, ending=b""
                )
            whole = MessageBody(asked.style)
            return await deliver_whole(request, frame.joiner, [asked.call], whole, headers)

    async def count(self, request: web.Request) -> web.StreamResponse:
        """How many tokens the prompt of a request would have: `{"input_tokens": n}`."""
        headers = reply_headers(request, ANTHROPIC_ERRORS.id_headers)
        frame = self._frame
        with frame.admission:
            body = await self._body(request)
            passed = await frame.media.take(request, body, COUNT_PATH, headers)
            if passed is not None:
                return passed
            asked = self._read(body, request, is_counted=True)
            length = await self._prompt_len(asked.call)
            return web.json_response({"input_tokens": length}, headers=headers)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        body = await read_object(request)
        self._frame.models.check(body)
        return body

    def _read(
        self, body: dict[str, Any], request: web.Request, *, is_counted: bool = False
    ) -> MessagesRequest:
        return read_messages_request(
            body,
            request,
            self._frame.vocabulary,
            self._frame.default_model,
            self._frame.parsers,
            is_counted=is_counted,
        )
