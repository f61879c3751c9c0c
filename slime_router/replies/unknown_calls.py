"""Calls of tools that were not offered, which some of SGLang's parsers drop from among others.

Those parsers are made to return every call; calls of other tools are taken out here, as text.
"""

from __future__ import annotations

from typing import Any

import orjson

from slime_router.replies.detectors import CallDetector


class UnknownCalls:
    """Takes the calls of unknown tools out of what one parser gives."""

    def __init__(self, parser: CallDetector, tools: list[Any]) -> None:
        self._known = {tool.function.name for tool in tools}
        self._is_needed = parser.drops_unknown
        self.has_said = False  # whether text was among what it took last
        self._open: dict[str, str] | None = None  # name and arguments of the one that is read
        if self._is_needed:
            parser.take_any_tool(tools)

    def take(self, items: list[Any], *, is_last: bool) -> tuple[str, list[Any]]:
        """The unknown calls that have ended, as JSON, and the items of the others."""
        if not self._is_needed:
            return "", items
        text, known = "", []
        for item in items:
            if item.name:
                text += self._ended()
                if item.name not in self._known:
                    self._open = {"name": item.name, "arguments": ""}
            if self._open is None:
                known.append(item)
            else:
                self._open["arguments"] += item.parameters or ""
        text += self._ended() if is_last else ""
        self.has_said = bool(text)
        return text, known

    def _ended(self) -> str:
        call, self._open = self._open, None
        if call is None:
            return ""
        name = orjson.dumps(call["name"]).decode()
        return f'{{"name": {name}, "arguments": {call["arguments"].strip() or "{}"}}}'
