"""The input of a tool: arguments that a model wrote, as the JSON object that Anthropic's API has.

Arguments that are no object become `{"_raw": "<as the model wrote them>"}`, and that becomes them
again when the agent sends it back.
"""

from __future__ import annotations

from typing import Any

import orjson
from pydantic_core import from_json

RAW = "_raw"


def input_json(arguments: str) -> str:
    """The input as JSON text; an object is left as the model spelled it."""
    if not arguments.strip():
        return "{}"
    return arguments if _is_object(arguments) else orjson.dumps({RAW: arguments}).decode()


def arguments_of(given: dict[str, Any]) -> dict[str, Any] | str:
    """The arguments that became this input."""
    raw = given.get(RAW)
    if len(given) == 1 and isinstance(raw, str) and raw.strip() and not _is_object(raw):
        return raw
    return given


def begins_object(text: str) -> bool:
    """Whether more text can make it a JSON object."""
    try:
        return isinstance(from_json(text, allow_partial=True), dict)
    except ValueError:
        return False


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
