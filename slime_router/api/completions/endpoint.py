"""The door for OpenAI text completions."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from slime_router.api.completions.reply import CompletionBody, CompletionStream
from slime_router.api.completions.request import read_completion_request
from slime_router.api.delivery import answered, deliver_stream, deliver_whole
from slime_router.api.errors import openai_error
from slime_router.api.frame import Frame
from slime_router.api.request import read_object, request_id


class CompletionsDoor:
    """Serves `POST /v1/completions`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def __repr__(self) -> str:
        return f"<CompletionsDoor {self._frame.default_model!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, to the end of its reply."""
        headers = {"x-request-id": request_id(request.headers)}
        return await answered(self._serve(request, headers), openai_error, headers)

    async def _serve(self, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
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
