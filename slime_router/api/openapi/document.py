"""The description of the API in the words of OpenAPI 3.1, made from the routes and the models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from slime_router import __version__
from slime_router.api.chat.fields import ChatFields
from slime_router.api.openapi.bodies import ANY_OBJECT, BODIES, CHAT_PATH
from slime_router.auth.access import IN_SESSION
from slime_router.auth.surface import served_at


class Route(NamedTuple):
    """A route of the table: `path` as aiohttp names it, `about` the first line of its handler."""

    method: str
    path: str
    about: str


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
            "schemas": {**_ERRORS, **definitions},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}, {}],
    }


def _object(**properties: Any) -> dict[str, Any]:
    """The schema of an object that has all of these."""
    return {"type": "object", "required": list(properties), "properties": properties}


_STRING, _MAYBE = {"type": "string"}, {"type": ["string", "null"]}
_ERRORS = {  # by the API whose clients read them
    "Error": _object(
        error=_object(
            message=_STRING,
            type=_STRING,
            param={**_MAYBE, "description": "the field at fault"},
            code=_MAYBE,
        )
    ),
    "NativeError": _object(error=_object(message=_STRING)),
    "MessagesError": _object(
        type={"const": "error"},
        error=_object(type=_STRING, message=_STRING),
        request_id=_STRING,
    ),
    "WorkerError": {"description": "the worker's own, or an Error"},
}


def _error_of(path: str) -> str:
    """The name of the errors that a path answers with."""
    if path == "/generate":
        return "NativeError"
    if path.startswith("/v1/messages"):
        return "MessagesError"
    served = served_at(path)
    is_worker_s = served is not None and (served.how == "control" or served.who == "admin")
    return "WorkerError" if is_worker_s else "Error"


def _operation(route: Route, chat_path: str, scalars: Mapping[str, Any]) -> dict[str, Any]:
    body = BODIES.get(CHAT_PATH if route.path == chat_path else route.path)
    if route.method not in ("POST", "PUT", "PATCH"):
        body = None
    schema = {"$ref": f"#/components/schemas/{_error_of(route.path)}"}
    error = {"application/json": {"schema": schema}}
    about = (body.about if body is not None else "") or route.about
    operation: dict[str, Any] = {
        "summary": _title(about) or f"{route.method} {route.path}",
        "operationId": _identifier(route),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _STRING}
            for name in re.findall(r"\{(\w+)\}", route.path)
        ],
        "responses": {
            "2XX": {"description": "done"},
            "4XX": {"description": "refused: nothing has changed", "content": error},
            "5XX": {"description": "failed", "content": error},
        },
    }
    if body is not None:
        content = {"application/json": {"schema": body.schema(scalars)}}
        operation["requestBody"] = {"required": not body.may_lack, "content": content}
    elif route.method in ("POST", "PUT", "PATCH"):
        operation["requestBody"] = {"content": {"application/json": {"schema": ANY_OBJECT}}}
    return operation


def _title(about: str) -> str:
    """As titles are written, whether the words were a handler's or a body's."""
    return about[:1].upper() + about[1:].removesuffix(".")


def _identifier(route: Route) -> str:
    words = re.findall(r"\w+", route.path)
    return "_".join([route.method.lower(), *words])


def _canonical(path: str) -> str:
    return path or "/"
