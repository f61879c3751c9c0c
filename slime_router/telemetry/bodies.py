"""Bodies in the log, where `--log-requests` wants them: bounded, and without what opens doors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_BODY_LEN = 4_096  # characters of one body
MAX_TEXT_LEN = 1_024  # of one text in it
MAX_LEVELS = 12
MAX_ITEMS = 64  # of a list or an object
HIDDEN = "***"

_SECRET = re.compile(r"key|secret|token$|password|authorization|credential|cookie|headers", re.I)
_HARMLESS = frozenset({"prompt_cache_key", "extra_key", "reasoning_key"})


class BodyLine:
    """A request's body as a message of the log: it becomes text only where text is asked for."""

    __slots__ = ("_body",)
    EVENT = "body"

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    @property
    def fields(self) -> dict[str, Any]:
        """The body by name, as JSON text."""
        return {"body": bounded(self._body)}

    def __str__(self) -> str:
        return f"body {bounded(self._body)}"


def bounded(body: Mapping[str, Any]) -> str:
    """JSON of a body: what names a secret is hidden, and what is long is cut."""
    text = json.dumps(_shown(body, MAX_LEVELS), separators=(",", ":"), default=str)
    return text if len(text) <= MAX_BODY_LEN else f"{text[:MAX_BODY_LEN]}..."


def _shown(value: Any, levels: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT_LEN else f"{value[:MAX_TEXT_LEN]}..."
    if isinstance(value, Mapping):
        if not levels:
            return "..."
        few = list(value.items())[:MAX_ITEMS]
        return {name[:100]: _of_field(name, each, levels - 1) for name, each in few}
    if isinstance(value, list):
        if not levels:
            return "..."
        few = [_shown(each, levels - 1) for each in value[:MAX_ITEMS]]
        return few if len(value) <= MAX_ITEMS else [*few, f"... {len(value)} in all"]
    return value


def _of_field(name: str, value: Any, levels: int) -> Any:
    is_secret = _SECRET.search(name) is not None and name not in _HARMLESS
    return HIDDEN if is_secret and value is not None else _shown(value, levels)
