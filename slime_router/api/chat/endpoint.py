"""The door for OpenAI chat completions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from aiohttp import web

from slime_router.api.chat.reply import ChatBody, ChatStream
from slime_router.api.chat.request import read_chat_request
from slime_router.api.delivery import deliver_stream, deliver_whole
from slime_router.api.frame import Frame
from slime_router.api.request import read_object, reply_headers

PATH = "/v1/chat/completions"  # a worker's own; ours may be another


class ChatDoor:
    """Serves `POST /v1/chat/completions`."""

    def __init__(self, frame: Frame, *, has_two_reasonings: bool = False) -> None:
        """With `has_two_reasonings`, reasoning stands under both of its names."""
        self._frame = frame
        self._has_two_reasonings = has_two_reasonings

    def __repr__(self) -> str:
        return f"<ChatDoor {self._frame.default_model!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, to the end of its reply."""
        headers = reply_headers(request)
        frame = self._frame
        with frame.admission:
            body = await read_object(request)
            frame.models.check(body)
            passed = await frame.media.take(request, body, PATH, headers)
            if passed is not None:
                return passed
            asked = read_chat_request(
                body, request, frame.vocabulary, frame.default_model, frame.parsers
            )
            style = asked.style
            if self._has_two_reasonings:
                style = replace(style, two_reasonings=True)
            if asked.stream:
                stream = partial(ChatStream, style, frame.vocabulary)
                return await deliver_stream(request, frame.joiner, asked.calls, stream, headers)
            whole = ChatBody(style, frame.vocabulary, len(asked.calls))
            return await deliver_whole(request, frame.joiner, asked.calls, whole, headers)
