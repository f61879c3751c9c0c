"""The door for OpenAI chat completions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from aiohttp import web

from slime_router.chat.parse import ReplyParsers
from slime_router.doors.body import read_object, request_id
from slime_router.doors.chat_reply import ChatBody, ChatStream
from slime_router.doors.chat_request import read_chat_request
from slime_router.doors.delivery import Admission, answered, deliver_stream, deliver_whole
from slime_router.doors.joining import Joiner
from slime_router.doors.media import MediaPass
from slime_router.doors.models import ModelNames
from slime_router.doors.replies import openai_error
from slime_router.doors.vocabulary import Vocabulary
from slime_router.router import Router

PATH = "/v1/chat/completions"  # a worker's own; ours may be another


class ChatDoor:
    """Serves `POST /v1/chat/completions`."""

    def __init__(
        self,
        router: Router,
        vocabulary: Vocabulary,
        *,
        model_name: str,
        default_model: str | None,
        admission: Admission,
        parsers: ReplyParsers,
        joiner: Joiner | None = None,
        models: ModelNames | None = None,
        media: MediaPass | None = None,
        has_two_reasonings: bool = False,
    ) -> None:
        """With `has_two_reasonings`, reasoning stands under both of its names."""
        self._models = models or ModelNames()
        self._media = media or MediaPass.off()
        self._has_two_reasonings = has_two_reasonings
        self._parsers = parsers
        self._joiner = joiner or Joiner.off(router)
        self._vocabulary = vocabulary
        self._default_model = default_model or model_name
        self._admission = admission

    def __repr__(self) -> str:
        return f"<ChatDoor {self._default_model!r} {self._admission!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, to the end of its reply."""
        headers = {"x-request-id": request_id(request.headers)}
        return await answered(self._serve(request, headers), openai_error, headers)

    async def _serve(self, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        with self._admission:
            body = await read_object(request)
            self._models.check(body)
            passed = await self._media.take(request, body, PATH, headers)
            if passed is not None:
                return passed
            asked = read_chat_request(
                body, request, self._vocabulary, self._default_model, self._parsers
            )
            style = asked.style
            if self._has_two_reasonings:
                style = replace(style, two_reasonings=True)
            if asked.stream:
                stream = partial(ChatStream, style, self._vocabulary)
                return await deliver_stream(request, self._joiner, asked.calls, stream, headers)
            whole = ChatBody(style, self._vocabulary, len(asked.calls))
            return await deliver_whole(request, self._joiner, asked.calls, whole, headers)
