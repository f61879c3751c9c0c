"""The door for SGLang's `/generate`."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from slime_router.doors.body import read_object, request_id
from slime_router.doors.delivery import answered, deliver_stream, deliver_whole
from slime_router.doors.generate_reply import ItemBody, ItemStream
from slime_router.doors.generate_request import read_generate_request
from slime_router.doors.replies import native_error
from slime_router.doors.vocabulary import Vocabulary
from slime_router.router import Router


class GenerateDoor:
    """Serves `POST /generate` and `PUT /generate`."""

    def __init__(self, router: Router, vocabulary: Vocabulary) -> None:
        self._router = router
        self._vocabulary = vocabulary

    def __repr__(self) -> str:
        return "<GenerateDoor>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, to the end of its reply."""
        headers = {"x-request-id": request_id(request.headers)}
        return await answered(self._serve(request, headers), native_error, headers)

    async def _serve(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
        body = await read_object(request)
        asked = read_generate_request(body, request.headers, self._vocabulary)
        calls = asked.calls
        if asked.stream:
            stream = ItemStream(calls, is_array=asked.is_array)
            return await deliver_stream(request, self._router, calls, stream, headers)
        whole = ItemBody(calls, is_array=asked.is_array)
        return await deliver_whole(request, self._router, calls, whole, headers)
