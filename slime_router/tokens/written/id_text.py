"""Long lists of token ids in JSON, read without an object for each id, and only where they are new.

An agent that speaks in ids sends its whole conversation again with every turn. What it sent before
is compared as text, and only the rest is read. Whatever is not plainly a list of ids is left to the
JSON parser. The text is not copied: what goes on to a worker is a part of the body as it came.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from slime_router.beginnings import Beginnings, common_prefix_len
from slime_router.tokens.written.id_digits import read_ids
from slime_router.types import TokenIds

LONG_LEN = 2**15  # bytes of a body that is worth a closer look
STRETCH_LEN = 2**16  # bytes that are compared at a time
MAX_KEPT_LEN = 2**26  # bytes of bodies and ids that are remembered
_COMMA = np.uint8(ord(","))
_OPENING = re.compile(rb"\s*:\s*\[")


@dataclass(frozen=True, slots=True, eq=False)
class WrittenIds:
    """Token ids, int32 `[tokens]` and not negative, and the JSON array that they were read from."""

    ids: TokenIds
    text: memoryview


class IdTexts:
    """Reads lists of ids, and remembers the last of each conversation."""

    def __init__(self, max_kept_len: int = MAX_KEPT_LEN) -> None:
        self._kept: Beginnings[WrittenIds] = Beginnings(max_kept_len)

    def __repr__(self) -> str:
        return f"<IdTexts {self._kept!r}>"

    def lifted(
        self, raw: bytes, field: str, conversation: Hashable = ""
    ) -> tuple[bytes, WrittenIds] | None:
        """A JSON object with an empty list in place of `field`'s ids, and these ids.

        None if it is short, or if anything about that list is unusual. The caller makes sure that
        the field with the empty list is the object's own, and not that of an object inside it.
        """
        name = b'"%s"' % field.encode()
        start = raw.find(name) if len(raw) >= LONG_LEN else -1
        if start < 0:
            return None
        opening = _OPENING.match(raw, start + len(name))
        end = -1 if opening is None else raw.find(b"]", opening.end())
        if opening is None or end < 0:
            return None
        rest = raw[: opening.end()] + raw[end:]
        if rest.count(name) > 1 or b"\\u" in rest:  # escapes may spell the name once more
            return None
        written = self._read(raw, opening.end() - 1, end, conversation)
        return None if written is None else (rest, written)

    def _read(self, raw: bytes, start: int, end: int, conversation: Hashable) -> WrittenIds | None:
        """The array whose brackets are at `start` and `end`."""
        whole = memoryview(raw)
        known = self._kept.likely(conversation, whole[start:end])
        kept, at = (0, start + 1) if known is None else _shared(known, raw, start, end)
        ids = read_ids(raw[at:end])
        if ids is None:
            return None
        if known is not None and kept:
            ids = np.concatenate((known.ids[:kept], ids))
        ids.setflags(write=False)
        written = WrittenIds(ids, whole[start : end + 1])
        self._kept.keep(conversation, whole[start:end], written, len(raw) + ids.nbytes)
        return written


def _shared(known: WrittenIds, raw: bytes, start: int, end: int) -> tuple[int, int]:
    """How many ids of `known` the list in `raw[start:end]` begins with, and where the rest is."""
    before = known.text[:-1]
    same = _common_len(before, raw, start, end)
    comma = raw.rfind(b",", start, start + same)
    if comma < 0:
        return 0, start + 1
    others = np.frombuffer(before, np.uint8)[comma + 1 - start :]
    return len(known.ids) - 1 - int(np.count_nonzero(others == _COMMA)), comma + 1


def _common_len(before: memoryview, raw: bytes, start: int, end: int) -> int:
    """How many bytes of `before` the bytes in `raw[start:end]` begin with."""
    for at in range(0, len(before), STRETCH_LEN):
        stretch = before[at : at + STRETCH_LEN]
        if not raw.startswith(stretch, start + at, end):
            count = min(len(stretch), end - start - at)
            now = np.frombuffer(raw, np.uint8, count, start + at)
            return at + common_prefix_len(np.frombuffer(stretch, np.uint8), now)
    return len(before)
