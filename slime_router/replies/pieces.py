"""Text cut into pieces that SGLang's parsers can read, however it came.

Some of them lose text when a piece holds more than one thing (text and the mark of a call, the end
of one call and the beginning of the next); others miss a mark that comes in two pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_ATOM = r"<[|｜][^<>]*[|｜]>|\w+|\s+|[^\w\s]"
_PLAIN = re.compile(_ATOM)


class Marks:
    """What a format does not let pass as text.

    `is_in(text)` finds a mark; `begins(text)` one, or the beginning of one at the very end, and so
    does `begins_in(utf_8)`. They return a match, or None.
    """

    __slots__ = ("begins", "begins_in", "is_in", "whole")

    def __init__(self, marks: Iterable[str]) -> None:
        self.whole = whole = [*marks]
        heads = {mark[:length] for mark in whole for length in range(1, len(mark))}
        is_in = "|".join(map(re.escape, whole))
        begins = rf"{is_in}|(?:{'|'.join(map(re.escape, heads))})\Z"
        self.is_in = re.compile(is_in).search
        self.begins = re.compile(begins).search
        self.begins_in = re.compile(begins.encode()).search


class Pieces:
    """Cuts one reply. `marks` are given whole; their beginning waits for the rest."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = marks
        self.waiting = ""
        if not marks:
            self._pattern = _PLAIN
            return
        whole = sorted(map(re.escape, marks), key=len, reverse=True)
        self._pattern = re.compile("|".join([*whole, _ATOM]))
        self._heads = {mark[:length] for mark in marks for length in range(1, len(mark))}
        self._longest = max(map(len, marks))

    def cut(self, text: str, *, is_last: bool) -> list[str]:
        """The pieces that are complete with `text`; all of them at the end."""
        if self.waiting:
            text, self.waiting = self.waiting + text, ""
        if self._marks and not is_last:
            text, self.waiting = self._split(text)
        return self._pattern.findall(text)

    def _split(self, text: str) -> tuple[str, str]:
        """The text, and its end that may be the beginning of a mark."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if text[-length:] in self._heads:
                return text[:-length], text[-length:]
        return text, ""
