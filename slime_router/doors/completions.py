"""The door for OpenAI text completions."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from slime_router.doors.body import read_object, request_id
from slime_router.doors.completions_reply import CompletionBody, CompletionStream
from slime_router.doors.completions_request import read_completion_request
from slime_router.doors.delivery import Admission, answered, deliver_stream, deliver_whole
from slime_router.doors.joining import Joiner
from slime_router.doors.models import ModelNames
from slime_router.doors.replies import openai_error
from slime_router.doors.vocabulary import Vocabulary


class CompletionsDoor:
    """Serves `POST /v1/completions`."""

    def __init__(
        self,
        joiner: Joiner,
        vocabulary: Vocabulary,
        *,
        default_model: str,
        admission: Admission,
        models: ModelNames | None = None,
    ) -> None:
        self._models = models or ModelNames()
        self._admission = admission
        self._joiner = joiner
        self._vocabulary = vocabulary
        self._default_model = default_model

    def __repr__(self) -> str:
        return f"<CompletionsDoor {self._default_model!r}>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, to the end of its reply."""
        headers = {"x-request-id": request_id(request.headers)}
        return await answered(self._serve(request, headers), openai_error, headers)

    async def _serve(self, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        with self._admission:
            body = await read_object(request)
            self._models.check(body)
            asked = read_completion_request(body, request, self._vocabulary, self._default_model)
            calls = asked.calls
            if asked.stream:
                stream = partial(CompletionStream, asked.style, self._vocabulary, calls)
                return await deliver_stream(request, self._joiner, calls, stream, headers)
            whole = CompletionBody(asked.style, self._vocabulary, calls)
            return await deliver_whole(request, self._joiner, calls, whole, headers)
