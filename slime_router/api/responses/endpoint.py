"""The door for OpenAI responses."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
from aiohttp import web

from slime_router.api.delivery import deliver_stream, deliver_whole
from slime_router.api.frame import Frame
from slime_router.api.request import read_object, reply_headers
from slime_router.api.responses.listing import listing, read_page
from slime_router.api.responses.reply import ResponseBody, ResponseStream
from slime_router.api.responses.request import ResponsesRequest, read_responses_request
from slime_router.api.responses.store import ResponseStore, Stored
from slime_router.auth.caller import caller
from slime_router.errors import BadRequest

PATH = "/v1/responses"


class ResponsesDoor:
    """Serves `POST /v1/responses`, and what there is under `/v1/responses/{id}`."""

    def __init__(self, frame: Frame, *, max_stored: int = 1000) -> None:
        self._frame = frame
        self._kept = ResponseStore(max_stored)

    def __repr__(self) -> str:
        return f"<ResponsesDoor {self._frame.default_model!r} {self._kept!r}>"

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
            asked = read_responses_request(
                body,
                request,
                frame.vocabulary,
                frame.default_model,
                frame.parsers,
                self._kept,
            )
            keep = partial(self._keep, asked, caller(request).owner)
            if asked.stream:
                stream = partial(ResponseStream, asked.style, keep)
                return await deliver_stream(
                    request, frame.joiner, [asked.call], stream, headers, ending=b""
                )
            whole = ResponseBody(asked.style, keep)
            return await deliver_whole(request, frame.joiner, [asked.call], whole, headers)

    def _stored(self, request: web.Request) -> Stored:
        return self._kept.get(request.match_info["id"], caller(request))

    async def show(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/responses/{id}`: a stored response; 404 where it is not, or no longer, here."""
        return _json(self._stored(request).response)

    async def items(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/responses/{id}/input_items`: a page of what a stored response answers."""
        return _json(listing(self._stored(request), read_page(request.query)))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/responses/{id}/cancel`: none that is stored still runs."""
        self._stored(request)
        raise BadRequest("Only a response that was made in the background can be cancelled.")

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """`DELETE /v1/responses/{id}`: forgets a stored response."""
        response_id = request.match_info["id"]
        self._kept.delete(response_id, caller(request))
        return _json({"id": response_id, "object": "response", "deleted": True})

    def _keep(
        self, asked: ResponsesRequest, owner: str, response: dict[str, Any], turn: str
    ) -> None:
        """Before the client can ask for what continues it."""
        if asked.store:
            said = tuple({**item, "turn": turn} for item in response["output"])
            self._kept.put(Stored(response, asked.asked, said, asked.previous, owner))


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")
