"""JSON objects in text that comes in pieces."""

from __future__ import annotations


class Braces:
    """Finds where a JSON object ends in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def end(self, text: str) -> int:
        """The index behind the last brace; -1 where the object goes on."""
        for index, letter in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif letter == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                self._is_escaped = letter == "\\"
            elif letter in "{}":
                self._depth += 1 if letter == "{" else -1
                if not self._depth:
                    return index + 1
        return -1
