"""The one endpoint that generates: it serves every dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from slime_router.api.context import EndpointContext
from slime_router.api.delivery import deliver_stream, deliver_whole
from slime_router.api.dialect import Dialect
from slime_router.api.request import A, read_object, reply_headers
from slime_router.errors import NotFound


async def serve(
    dialect: Dialect[A], context: EndpointContext, request: web.Request
) -> web.StreamResponse:
    """One request, to the end of its reply.

    Raises:
        RouterError: before anything was sent. Later errors are events of the stream.
    """
    headers = reply_headers(request, dialect.errors.id_headers)
    if not dialect.is_limited:
        return await _deliver(dialect, context, request, await read_object(request), headers)
    with context.admission:
        body = await read_text(context, request, dialect.media_path, headers)
        if isinstance(body, web.StreamResponse):
            return body
        return await _deliver(dialect, context, request, body, headers)


async def read_text(
    context: EndpointContext, request: web.Request, media_path: str, headers: Mapping[str, str]
) -> dict[str, Any] | web.StreamResponse:
    """The request's body; if it has media, instead the answer from a worker's `media_path`.

    Raises:
        RouterError: the body is not a JSON object or names another model, or no worker took it.
    """
    body = await read_object(request)
    _check_model(context.served_names, body)
    passed = None
    if media_path:
        passed = await context.media.take(request, body, media_path, headers)
    return body if passed is None else passed


async def _deliver(
    dialect: Dialect[A],
    context: EndpointContext,
    request: web.Request,
    body: dict[str, Any],
    headers: dict[str, str],
) -> web.StreamResponse:
    asked = dialect.read(body, request, context)
    deliver = deliver_stream if asked.stream else deliver_whole
    return await deliver(dialect, context, request, asked, headers)


def _check_model(served: frozenset[str] | None, body: Mapping[str, Any]) -> None:
    """Accepts a request that names the model, an adapter of it (`base:adapter`), or nothing."""
    name = body.get("model")
    if served is None or not isinstance(name, str):  # other types are for the dialect to refuse
        return
    if name not in served and name.rpartition(":")[0] not in served:
        raise NotFound(f"The model '{name}' does not exist.", param="model", code="model_not_found")
