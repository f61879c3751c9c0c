"""Lists of Python's calls, in what SGLang's detectors of them do not get right.

[get_weather(city='Paris'), search(query="a [b")]
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Container
from itertools import islice
from typing import Any

_BEGIN = re.compile(r"\[\s*[A-Za-z_]\w*\(")
_ANY = re.compile(".*", re.DOTALL)
_BRACKETS = re.compile(r"[\[\]]")
_BRACKETS_AND_QUOTES = re.compile(r"""[\[\]'"]""")
_REST_OF_STRING = {  # it ends in its line: a quote may be an apostrophe
    quote: re.compile(rf"(?:[^{quote}\\\n]|\\.)*", re.DOTALL) for quote in "'\""
}
_MOST_LISTS = 16  # that are tried: each try takes time in proportion to the text


class CallList:
    """Finds a list of nothing but calls, as a pattern would.

    SGLang's pattern takes twice as long with each argument where none is found.
    """

    def search(self, text: str) -> re.Match[str] | None:
        """The first list in a text."""
        for begin in islice(_BEGIN.finditer(text), _MOST_LISTS):
            end = ClosingBracket()(text, begin.start()) + 1
            nodes = _elements(text[begin.start() : end])
            if nodes and all(isinstance(node, ast.Call) for node in nodes):
                return _ANY.match(text, begin.start(), end)
        return None


class ClosingBracket:
    """Finds where a list ends; it goes on where it was in a text that only became longer.

    Brackets in strings are not counted where calls begin.
    """

    def __init__(self) -> None:
        self._forget("", 0)

    def _forget(self, text: str, start: int) -> None:
        self._read = ""
        self._start = self._at = start
        self._depth = 0
        self._string = -1  # where the one began that is open
        self._has_calls = _BEGIN.match(text, start) is not None

    def __call__(self, text: str, start: int) -> int:
        """The place of the bracket that closes the one at `start`; -1 where none does."""
        has_grown = start == self._start and self._read and text.startswith(self._read)
        if not has_grown or (not self._has_calls and _BEGIN.match(text, start)):
            self._forget(text, start)
        self._read = text
        marks = _BRACKETS_AND_QUOTES if self._has_calls else _BRACKETS
        while self._string < 0 or self._is_past_string(text):
            found = marks.search(text, self._at)
            if found is None:
                self._at = len(text)
                break
            self._at = found.end()
            if found[0] in _REST_OF_STRING:
                self._string = found.start()
                continue
            self._depth += 1 if found[0] == "[" else -1
            if not self._depth:
                self._read = ""
                return found.start()
        return -1

    def _is_past_string(self, text: str) -> bool:
        """Goes past the string that is open; False where it continues after the text."""
        quote = text[self._string]
        rest = _REST_OF_STRING[quote].match(text, self._at)
        self._at = rest.end() if rest is not None else self._at
        last = text[self._at : self._at + 2]
        if last in ("", "\\"):
            return False
        self._at = self._at + 1 if last[0] == quote else self._string + 1  # it was an apostrophe
        self._string = -1
        return True


def literal(node: ast.expr) -> Any:
    """The value of an argument; sets are lists, as JSON has none."""
    value = ast.literal_eval(node)
    return list(value) if isinstance(value, set) else value


def with_skipped(parse: Callable[[str, list[Any]], Any]) -> Callable[[str, list[Any]], Any]:
    """Reads a list of calls; those that are skipped among others are content."""

    def parse_all(text: str, tools: list[Any]) -> Any:
        result = parse(text, tools)
        if result.calls:
            read = {call.tool_index for call in result.calls}
            result.normal_text += _skipped(text, read)
        return result

    return parse_all


def _skipped(text: str, read: Container[int]) -> str:
    """The source of the calls in a list, without those already read, by their places."""
    source = text[text.find("[") : text.rfind("]") + 1]
    left = (node for index, node in enumerate(_elements(source)) if index not in read)
    return ", ".join(ast.get_source_segment(source, node) or "" for node in left)


def _elements(source: str) -> list[ast.expr]:
    """The elements of a list; none of what Python cannot read, which SGLang may mend."""
    try:
        found = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return found.elts if isinstance(found, ast.List) else []
