"""What there is under `/v1/responses/{id}`: stored responses are shown, listed and forgotten."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from slime_router.api.responses.listing import listing, read_page
from slime_router.api.responses.store import ResponseStore, Stored
from slime_router.auth.caller import caller
from slime_router.errors import BadRequest


async def show(kept: ResponseStore, request: web.Request) -> web.Response:
    """`GET /v1/responses/{id}`: a stored response; 404 where it is not, or no longer, here."""
    return _json(_stored(kept, request).response)


async def list_items(kept: ResponseStore, request: web.Request) -> web.Response:
    """`GET /v1/responses/{id}/input_items`: a page of what a stored response answers."""
    return _json(listing(_stored(kept, request), read_page(request.query)))


async def cancel(kept: ResponseStore, request: web.Request) -> web.Response:
    """`POST /v1/responses/{id}/cancel`: none that is stored still runs."""
    _stored(kept, request)
    raise BadRequest("Only a response that was made in the background can be cancelled.")


async def delete(kept: ResponseStore, request: web.Request) -> web.Response:
    """`DELETE /v1/responses/{id}`: forgets a stored response."""
    response_id = request.match_info["id"]
    kept.delete(response_id, caller(request))
    return _json({"id": response_id, "object": "response", "deleted": True})


def _stored(kept: ResponseStore, request: web.Request) -> Stored:
    return kept.get(request.match_info["id"], caller(request))


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")
