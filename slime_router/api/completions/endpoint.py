"""The door for OpenAI text completions."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from slime_router.api.completions.reply import CompletionBody, CompletionStream
from slime_router.api.completions.request import read_completion_request
from slime_router.api.delivery import deliver_stream, deliver_whole
from slime_router.api.frame import Frame
from slime_router.api.request import read_object, reply_headers


class CompletionsDoor:
    """Serves `POST /v1/completions`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def __repr__(self) -> str:
        return f"<CompletionsDoor {self._frame.default_model!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, to the end of its reply."""
        headers = reply_headers(request)
        frame = self._frame
        with frame.admission:
            body = await read_object(request)
            frame.models.check(body)
            asked = read_completion_request(body, request, frame.vocabulary, frame.default_model)
            calls = asked.calls
            if asked.stream:
                stream = partial(CompletionStream, asked.style, frame.vocabulary, calls)
                return await deliver_stream(request, frame.joiner, calls, stream, headers)
            whole = CompletionBody(asked.style, frame.vocabulary, calls)
            return await deliver_whole(request, frame.joiner, calls, whole, headers)
