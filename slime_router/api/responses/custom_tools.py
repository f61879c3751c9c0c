"""Custom tools, which take free text: functions of one string to the model, as SGLang has them."""

from __future__ import annotations

import json
from typing import Any

import orjson
from pydantic_core import from_json

from slime_router.api.request import require
from slime_router.json_text import StringControls, escaped_halves

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
    """The input in a call's arguments, or as much of it as was written.

    The arguments themselves where they are not an object that holds a text.
    """
    try:
        value = json.loads(arguments, strict=False)  # models write line ends as they are
    except (ValueError, RecursionError):
        begun = _object_so_far(arguments)
        return arguments if begun is None else _text_in(begun) or ""
    found = _text_in(value) if isinstance(value, dict) else None
    return arguments if found is None else escaped_halves(found)


def input_so_far(arguments: str) -> str:
    """The beginning of the input in arguments that are not whole yet."""
    text = (_object_so_far(arguments) or {}).get(_KEY)
    return text if isinstance(text, str) else ""


def _object_so_far(arguments: str) -> dict[str, Any] | None:
    """What arguments that break off hold; None where they do not begin as an object."""
    try:
        written = StringControls().escaped(arguments)
        value = from_json(written, allow_partial="trailing-strings")
    except ValueError:  # half of an escaped emoji, or no JSON
        return None
    return value if isinstance(value, dict) else None


def _text_in(value: dict[str, Any]) -> str | None:
    """The input under its name, or what a model that named it otherwise wrote first."""
    texts = [value.get(_KEY), *value.values()][:2]
    return next((text for text in texts if isinstance(text, str)), None)
