"""Text that a format of calls lets pass, so that its detector need not be given it.

Most of a reply is such text, and SGLang's detectors take more time for each token of it than all
else that is done with one.
"""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from slime_router.replies.detectors import CallDetector
from slime_router.replies.pieces import Marks

logger = logging.getLogger(__name__)

# What no call begins with, unless a field of its detector says so; beyond ASCII that is all else.
_LETTERS = {*string.printable} - {*"<[{\r\v\f"}
_BEYOND = "é東🙂，“…"  # of all that is beyond
_SPACES = "\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # there
_ONLY_SPACE = r"\A\s*\Z"
_SPACE_LAST = r"\A\Z|\s\Z"


class PlainText:
    """Text without `others` and without what `ends` finds, which passes and leaves no trace.

    `untouched` are the fields of a detector before any text, and after such text.
    """

    def __init__(self, others: Iterable[str], ends: str, untouched: Mapping[str, Any]) -> None:
        self.untouched = untouched
        self._others = frozenset(others)
        self._ends = ends
        self._beside: dict[Marks | None, Marks] = {}

    def __repr__(self) -> str:
        return f"<PlainText without {''.join(sorted(self._others))!r}>"

    def beside(self, reasoning: Marks | None) -> Marks:
        """All other text, and the marks of `reasoning`, as marks."""
        if reasoning not in self._beside:
            begins = {mark[0] for mark in reasoning.whole} if reasoning is not None else set()
            others = [re.escape(each) for each in self._others | begins]
            marks = self._beside[reasoning] = Marks(())
            marks.is_in = re.compile(f"[{_SPACES}{''.join(others)}]|{self._ends}").search
            marks.begins = marks.is_in
            marks.begins_in = re.compile(f"{'|'.join(others)}|{self._ends}".encode()).search
        return self._beside[reasoning]


def plain_text(make: Callable[[], CallDetector], tools: list[Any]) -> PlainText | None:
    """What text passes, tried out on fresh detectors; None where none is known to."""
    texts = [text for text in make().texts if text.strip() and not text.strip().isidentifier()]
    begins = {text[:1] for said in texts for text in (said, said.strip())}
    letters = "".join(sorted(_LETTERS - begins)) + _BEYOND
    others = {chr(code) for code in range(128)}.union(*texts).difference(letters)
    for ends in (_ONLY_SPACE, _SPACE_LAST):  # some hold back spaces until more comes
        last = "" if ends == _ONLY_SPACE else "a"
        untouched = _untouched(make(), tools, [each + last for each in (*letters, letters[::-1])])
        if untouched is not None:
            return PlainText(others, ends, untouched)
    return None


def _untouched(
    detector: CallDetector, tools: list[Any], texts: Sequence[str]
) -> Mapping[str, Any] | None:
    """The fields of a detector, if all of the texts pass and leave them as they are."""
    try:
        untouched = deepcopy(detector.fields)
        for text in ("", *texts, ""):
            if detector.read(text, tools) != (text, []) or detector.fields != untouched:
                return None
        return untouched if detector.finish(tools) == ("", []) else None
    except Exception:  # SGLang's detectors may raise anything, also where they are copied
        logger.debug("no text is known to pass %r", detector, exc_info=True)
        return None
