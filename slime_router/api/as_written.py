"""What models write that orjson does not read: half of a surrogate pair, a number without bounds.

`"\\ud83d"` is JSON, and not a character; `1E400` is JSON, and more than a double holds. Both are
refused, but for one place: the input of a tool call comes back as the model wrote it.
"""

from __future__ import annotations

import json
from math import isinf
from typing import Any

from slime_router.errors import BadRequest

MAX_DEPTH = 250  # orjson's, which writes what is read here
MAX_LEN = 2**25  # bytes: Python's parser lets nothing else run


class Beyond:
    """A number that no double holds, as it was written; no dataclass, which orjson would write."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"<Beyond {self.text[:40]}>"


_READ = (str, list, dict, Beyond)  # what has to be looked at


def load_as_written(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`; inputs of `tool_use` blocks may hold halves and `Beyond`.

    Raises:
        BadRequest: anything else does, with its path; or it is not JSON, or nested too deeply; or
            it is longer than `MAX_LEN`.
    """
    if len(raw) > MAX_LEN:
        raise BadRequest(
            "The request body holds a lone surrogate or a number that no double holds, and more"
            f" than {MAX_LEN} bytes.",
            code="invalid_json",
        )
    try:
        body = json.loads(
            raw.decode(), parse_float=_number, parse_int=_integer, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as exc:
        raise BadRequest("The request body is not valid JSON.", code="invalid_json") from exc
    if type(body) is not dict:
        raise BadRequest("The request body must be a JSON object.", code="invalid_json")
    _check(body)
    return body


def write_as_read(value: Any) -> str:
    """The JSON text of what was read here."""
    if isinstance(value, Beyond):
        return value.text
    if isinstance(value, dict):
        pairs = (f"{json.dumps(name)}: {write_as_read(item)}" for name, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(write_as_read, value))}]"
    return json.dumps(value)


def _number(text: str) -> float | Beyond:
    number = float(text)
    return Beyond(text) if isinf(number) else number


def _integer(text: str) -> int | float | Beyond:
    number = _number(text)
    if isinstance(number, Beyond) or not -(2.0**63) <= number < 2.0**64:
        return number  # a double, as orjson has it
    return int(text)


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _check(body: dict[str, Any]) -> None:
    left: list[tuple[Any, int, bool, str]] = [(body, 1, False, "")]
    while left:
        value, depth, is_input, path = left.pop()
        if depth > MAX_DEPTH:
            raise BadRequest("The request body is nested too deeply.", code="invalid_json")
        if isinstance(value, str):
            if not is_input:
                _check_text(value, path)
        elif isinstance(value, Beyond):
            if not is_input:
                raise BadRequest(
                    f"'{path}' is a number that no double holds: {value.text[:40]}",
                    param=path,
                    code="invalid_json",
                )
        elif isinstance(value, list):
            left += [
                (item, depth + 1, is_input, f"{path}[{i}]")
                for i, item in enumerate(value)
                if type(item) in _READ
            ]
        elif isinstance(value, dict):
            is_call = value.get("type") == "tool_use"
            for name, item in value.items():
                if not is_input:
                    _check_text(name, path)
                within = f"{path}.{name}" if path else name
                left.append((item, depth + 1, is_input or (is_call and name == "input"), within))


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        place = f"'{path}'" if path else "The request body"
        raise BadRequest(
            f"{place} holds a lone surrogate, which is not a character: {exc}",
            param=path or None,
            code="invalid_json",
        ) from exc
