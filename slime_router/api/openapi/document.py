"""The description of the API in the words of OpenAPI 3.1, made from the routes and the models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from slime_router import __version__
from slime_router.api.chat.fields import ChatFields
from slime_router.api.known.names import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    MESSAGES_FIELDS,
    RESPONSES_FIELDS,
    TOKEN_FIELDS,
)
from slime_router.api.sessions.request import SPEC_FIELDS
from slime_router.auth.access import IN_SESSION

CHAT_PATH = "/v1/chat/completions"

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_SHAPES: dict[str, dict[str, Any]] = {  # of fields that are not scalars, where it is simple
    "messages": {"type": "array", "items": _ANY_OBJECT},
    "tools": {"type": "array", "items": _ANY_OBJECT},
    "metadata": _ANY_OBJECT,
    "sampling_params": _ANY_OBJECT,
    "response_format": _ANY_OBJECT,
    "token_ids": {"type": "array", "items": {"type": "integer"}},
    "input_ids": {"type": "array", "items": {"type": "integer"}},
    "instructions": {"type": ["string", "null"]},
    "session_id": {"type": "string"},
    "group_id": {"type": ["string", "integer", "null"]},
    "url": {"type": "string"},
}


class Route(NamedTuple):
    """A route of the table: `path` as aiohttp names it, `about` the first line of its handler."""

    method: str
    path: str
    about: str


class Body(NamedTuple):
    """What is sent to a path: the fields, those that must be there, and what the path does."""

    about: str
    fields: frozenset[str]
    required: tuple[str, ...] = ()


BODIES: Mapping[str, Body] = {
    CHAT_PATH: Body("OpenAI's chat completions, streamed or not", CHAT_FIELDS, ("messages",)),
    "/v1/completions": Body("OpenAI's completions, streamed or not", COMPLETION_FIELDS),
    "/v1/responses": Body("OpenAI's Responses, streamed or not", RESPONSES_FIELDS),
    "/v1/responses/input_tokens": Body("How many tokens a prompt has", RESPONSES_FIELDS),
    "/v1/messages": Body(
        "Anthropic's Messages, streamed or not", MESSAGES_FIELDS, ("messages", "max_tokens")
    ),
    "/v1/messages/count_tokens": Body(
        "How many tokens a prompt has", MESSAGES_FIELDS, ("messages",)
    ),
    "/inference/v1/generate": Body(
        "vLLM's token API: ids in, ids out", TOKEN_FIELDS, ("token_ids",)
    ),
    "/generate": Body(
        "SGLang's own API; its fields are the worker's",
        frozenset(("text", "input_ids", "sampling_params", "return_logprob", "stream", "rid")),
    ),
    "/sessions": Body("Opens a session", frozenset(SPEC_FIELDS)),
    "/workers": Body(
        "Registers a worker",
        frozenset(
            ("url", "worker_type", "bootstrap_port", "api_key", "priority", "cost", "labels")
        ),
        ("url",),
    ),
}


def document(routes: Iterable[Route], *, chat_path: str) -> dict[str, Any]:
    """The whole description. Routes below a session's path are those of the paths after it."""
    scalars = ChatFields.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = scalars.pop("$defs", {})
    paths: dict[str, dict[str, Any]] = {}
    known = list(routes)
    plain = {(route.method, route.path) for route in known}
    for route in known:
        below = route.path.removeprefix(IN_SESSION)
        if below != route.path and (route.method, below) in plain:
            continue
        path = paths.setdefault(_canonical(route.path), {})
        path[route.method.lower()] = _operation(route, chat_path, scalars["properties"])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "slime_router",
            "version": __version__,
            "description": (
                "A token-exact gateway to SGLang workers. Routes that generate, or only "
                f"read, are served also below `{IN_SESSION}`, in that session."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR, **definitions},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}, {}],
    }


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field at fault"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _operation(route: Route, chat_path: str, scalars: Mapping[str, Any]) -> dict[str, Any]:
    body = BODIES.get(CHAT_PATH if route.path in (chat_path, "/invocations") else route.path)
    body = body if route.method in ("POST", "PUT") else None
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "summary": body.about
        if body is not None
        else route.about or f"{route.method} {route.path}",
        "operationId": _identifier(route),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", route.path)
        ],
        "responses": {
            "2XX": {"description": "done"},
            "4XX": {"description": "refused: nothing has changed", "content": error},
            "5XX": {"description": "failed", "content": error},
        },
    }
    if body is not None:
        schema = {
            "type": "object",
            "required": list(body.required),
            "properties": {name: _shape(name, scalars) for name in sorted(body.fields)},
        }
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    elif route.method in ("POST", "PUT", "PATCH"):
        operation["requestBody"] = {"content": {"application/json": {"schema": _ANY_OBJECT}}}
    return operation


def _shape(name: str, scalars: Mapping[str, Any]) -> dict[str, Any]:
    shape: dict[str, Any] = dict(_SHAPES.get(name) or scalars.get(name) or {})
    shape.pop("title", None)
    return shape


def _identifier(route: Route) -> str:
    words = re.findall(r"\w+", route.path)
    return "_".join([route.method.lower(), *words])


def _canonical(path: str) -> str:
    return path or "/"
