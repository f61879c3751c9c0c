"""Bodies with half of a surrogate pair in them: `"\\ud83d"` is JSON, and not a character.

They are refused, but for one place: the input of a tool call comes back as the model wrote it.
"""

from __future__ import annotations

import json
from typing import Any

from slime_router.errors import BadRequest

MAX_DEPTH = 250  # orjson's, which writes what is read here
MAX_LEN = 2**25  # bytes: Python's parser lets nothing else run
_READ = (str, list, dict)  # what halves can be in


def load_with_halves(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`; only inputs of `tool_use` blocks may hold halves.

    Raises:
        BadRequest: another string does, or it is not JSON, or nested too deeply; or it is longer
            than `MAX_LEN`.
    """
    if len(raw) > MAX_LEN:
        raise BadRequest(
            f"The request body holds a lone surrogate, and more than {MAX_LEN} bytes.",
            code="invalid_json",
        )
    try:
        body = json.loads(raw.decode())
    except (ValueError, RecursionError) as exc:
        raise BadRequest("The request body is not valid JSON.", code="invalid_json") from exc
    if type(body) is not dict:
        raise BadRequest("The request body must be a JSON object.", code="invalid_json")
    _check(body)
    return body


def _check(body: dict[str, Any]) -> None:
    left: list[tuple[Any, int, bool]] = [(body, 1, False)]
    while left:
        value, depth, is_input = left.pop()
        if depth > MAX_DEPTH:
            raise BadRequest("The request body is nested too deeply.", code="invalid_json")
        if isinstance(value, str):
            if not is_input:
                _check_text(value)
        elif isinstance(value, list):
            left += [(item, depth + 1, is_input) for item in value if type(item) in _READ]
        elif isinstance(value, dict):
            is_call = value.get("type") == "tool_use"
            for name, item in value.items():
                if not is_input:
                    _check_text(name)
                left.append((item, depth + 1, is_input or (is_call and name == "input")))


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise BadRequest(
            f"The request body holds a lone surrogate, which is not a character: {exc}",
            code="invalid_json",
        ) from exc
