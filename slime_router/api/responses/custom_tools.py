"""Custom tools, which take free text: functions of one string to the model, as SGLang has them."""

from __future__ import annotations

import json
from typing import Any

import orjson
from pydantic_core import from_json

from slime_router.api.request import require
from slime_router.json_text import escaped_halves

_KEY = "input"


def as_function(tool: dict[str, Any], path: str) -> dict[str, Any]:
    """The function, flat, that a custom tool is to the model; a grammar is described to it.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    described, form = tool.get("description"), tool.get("format")
    require(described is None or isinstance(described, str), f"{path}.description", "a string")
    require(form is None or isinstance(form, dict), f"{path}.format", "an object")
    parts = [described] if described else []
    if form is not None and form.get("type") == "grammar":
        syntax, definition = form.get("syntax") or "lark", form.get("definition") or ""
        parts.append(f"The payload must conform to this {syntax} grammar:\n{definition}")
    text = {"type": "string", "description": "The freeform text payload for this tool."}
    parameters = {
        "type": "object",
        "properties": {_KEY: text},
        "required": [_KEY],
        "additionalProperties": False,
    }
    function = {"type": "function", "name": tool.get("name")}
    if parts:
        function["description"] = "\n\n".join(parts)
    return {**function, "parameters": parameters}


def encode_input(text: str) -> str:
    """The arguments of a call with this input, as JSON."""
    return orjson.dumps({_KEY: text}).decode()


def decode_input(arguments: str) -> str:
    """The input in a call's arguments; the arguments themselves where they hold none."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return input_so_far(arguments) or arguments
    texts = [value.get(_KEY), *value.values()] if isinstance(value, dict) else []
    found = next((text for text in texts[:2] if isinstance(text, str)), None)
    return arguments if found is None else escaped_halves(found)


def input_so_far(arguments: str) -> str:
    """The beginning of the input in arguments that are not whole yet."""
    try:
        value = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:  # half of an escaped emoji, or no JSON
        return ""
    text = value.get(_KEY) if isinstance(value, dict) else None
    return text if isinstance(text, str) else ""
