"""The patterns at which a reply stops: whether a worker takes them, and at what price.

SGLang matches with Python's `re`; a pattern that does not compile becomes a 500 there, which tells
the client nothing. Compiling takes time, here and in the worker, during which nothing else runs:
a class of all characters takes ten milliseconds where case is ignored. So a request has a budget,
whatever the number of its prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

MAX_BYTES = 256  # of one pattern; SGLang's

# The price of compiling, in characters of a class: 65,536 of them take ten milliseconds at most.
BUDGET = 2**18  # for all different patterns of a request: about 40 ms
_BYTE_PRICE = 30
_CLASS_PRICE = 2**11
_MAX_RANGE_PRICE = 2**16  # wider ranges take no longer

# What is escaped, or a class. In a comment it may be neither, but no class is hidden by one.
_CLASSES = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]?", re.DOTALL)
_MEMBERS = re.compile(
    r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\N\{[^}]*\}|\\[0-7]{1,3}|\\.|.",
    re.DOTALL,
)
_LAST_CHARACTER = 0x10FFFF


def regex_fault(patterns: Iterable[str]) -> str | None:
    """What is wrong with the patterns of a request; None if a worker takes them all."""
    different = dict.fromkeys(patterns)
    left = BUDGET
    for pattern in different:  # all are looked at before the first is compiled
        if len(pattern) > MAX_BYTES or len(pattern.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            return f"at most {MAX_BYTES} bytes each"
        left -= _price(pattern)
        if left < 0:
            return "together they take too long to compile: fewer, or narrower ranges"
    for pattern in different:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError):
            return "not a regular expression"
    return None


def _price(pattern: str) -> int:
    """An upper bound of what it takes to compile."""
    found = [text for text in _CLASSES.findall(pattern) if text[0] == "["]
    ranges = sum(min(width, _MAX_RANGE_PRICE) for text in found for width in _ranges(text[1:]))
    return _BYTE_PRICE * len(pattern) + _CLASS_PRICE * len(found) + ranges


def _ranges(members: str) -> Iterator[int]:
    """How many characters each range of a class has, at most."""
    parts = _MEMBERS.findall(members)
    for first, dash, last in zip(parts, parts[1:], parts[2:], strict=False):
        if dash == "-":
            yield abs(_code(last, _LAST_CHARACTER) - _code(first, 0)) + 1


def _code(member: str, unknown: int) -> int:
    """The character's number; `unknown` where the name of the character would have to be found."""
    if member[0] != "\\":
        return ord(member)
    if member[1] in "xuU":
        return int(member[2:], 16) if len(member) > 2 else unknown
    if member[1:].isdigit():
        return int(member[1:], 8) if set(member[1:]) <= set("01234567") else unknown
    return unknown if member[1] == "N" or member[1].isalpha() else ord(member[1])
