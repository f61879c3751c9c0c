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
# The same outside of strings. They end in their lines: a quote may be an apostrophe.
_BARE_BRACKETS = re.compile(
    r"""[\[\]]|'(?:[^'\\\n]|\\.)*(?:'|\\?\Z)|"(?:[^"\\\n]|\\.)*(?:"|\\?\Z)""", re.DOTALL
)
_MOST_LISTS = 16  # that are tried: each try takes time in proportion to the text


class CallList:
    """Finds a list of nothing but calls, as a pattern would.

    SGLang's pattern takes twice as long with each argument where none is found.
    """

    def search(self, text: str) -> re.Match[str] | None:
        """The first list in a text."""
        for begin in islice(_BEGIN.finditer(text), _MOST_LISTS):
            end = closing_bracket(text, begin.start()) + 1
            nodes = _elements(text[begin.start() : end])
            if nodes and all(isinstance(node, ast.Call) for node in nodes):
                return _ANY.match(text, begin.start(), end)
        return None


def closing_bracket(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`; -1 where none does.

    Those in strings are not counted where calls begin.
    """
    brackets = _BARE_BRACKETS if _BEGIN.match(text, start) else _BRACKETS
    depth = 0
    for found in brackets.finditer(text, start):
        depth += {"[": 1, "]": -1}.get(found.group(), 0)
        if not depth:
            return found.start()
    return -1


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
