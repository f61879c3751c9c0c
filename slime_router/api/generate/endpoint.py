"""The door for SGLang's `/generate`."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from slime_router.api.delivery import deliver_stream, deliver_whole
from slime_router.api.generate.reply import ItemBody, ItemStream
from slime_router.api.generate.request import read_generate_request
from slime_router.api.request import read_object, reply_headers
from slime_router.api.retries import Joiner
from slime_router.api.token_ids import Vocabulary


class GenerateDoor:
    """Serves `POST /generate` and `PUT /generate`."""

    def __init__(self, joiner: Joiner, vocabulary: Vocabulary) -> None:
        self._joiner = joiner
        self._vocabulary = vocabulary

    def __repr__(self) -> str:
        return "<GenerateDoor>"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, to the end of its reply."""
        headers = reply_headers(request)
        body = await read_object(request)
        asked = read_generate_request(body, request, self._vocabulary)
        calls = asked.calls
        if asked.stream:
            stream = partial(ItemStream, calls, is_array=asked.is_array)
            return await deliver_stream(request, self._joiner, calls, stream, headers)
        whole = ItemBody(calls, is_array=asked.is_array)
        return await deliver_whole(request, self._joiner, calls, whole, headers)
