"""Text that a format of calls lets pass, so that its detector need not be given it.

Most of a reply is such text, and SGLang's detectors take more time for each token of it than all
else that is done with one.
"""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from slime_router.replies.detectors import CallDetector, Marks

logger = logging.getLogger(__name__)

# What no call begins with, unless a field of its detector says so.
_LETTERS = string.ascii_letters + string.digits + " .,!?;:'()-_*/#@%&+=\n"


class PlainText:
    """Text of `letters`, and not of spaces alone, that passes at once and leaves no trace.

    `untouched` are the fields of a detector before any text, and after such text.
    """

    def __init__(self, letters: str, untouched: Mapping[str, Any]) -> None:
        self.untouched = untouched
        self._letters = letters
        self._beside: dict[Marks | None, Marks] = {}

    def __repr__(self) -> str:
        return f"<PlainText of {len(self._letters)} letters>"

    def beside(self, reasoning: Marks | None) -> Marks:
        """All other text, and the marks of `reasoning`, as marks."""
        if reasoning not in self._beside:
            begins = {mark[0] for mark in reasoning.whole} if reasoning is not None else set()
            letters = "".join(letter for letter in self._letters if letter not in begins)
            other = rf"[^{re.escape(letters)}]|\A\s*\Z"
            marks = self._beside[reasoning] = Marks(())
            marks.is_in = marks.begins = re.compile(other).search
            marks.begins_in = re.compile(other.encode()).search
        return self._beside[reasoning]


def plain_text(detector: CallDetector, tools: list[Any]) -> PlainText | None:
    """What text passes, tried out on a fresh detector; None where none is known to."""
    begins = {text[:1] for said in detector.texts for text in (said, said.strip())}
    letters = "".join(each for each in _LETTERS if each not in begins)
    try:
        untouched = deepcopy(detector.fields)
        for text in ("", *letters, letters, letters[::-1], ""):
            if detector.read(text, tools) != (text, []) or detector.fields != untouched:
                return None
        return PlainText(letters, untouched) if detector.finish(tools) == ("", []) else None
    except Exception:  # SGLang's detectors may raise anything, also where they are copied
        logger.debug("no text is known to pass %r", detector, exc_info=True)
        return None
