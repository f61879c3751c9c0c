"""Long lists of token ids in JSON, read without an object for each id, and only where they are new.

An agent that speaks in ids sends its whole conversation again with every turn. What it sent before
is compared as text; the rest is read by numpy. Whatever is not plainly a list of ids is left to the
JSON parser.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slime_router.types import TokenIds

LONG_LEN = 2**15  # bytes of a body that is worth a closer look
CHUNK_LEN = 2**15  # bytes that are compared, or read, at a time
MAX_KEPT_LEN = 2**26  # bytes of texts and ids that are remembered
_KEY_LEN = 256  # bytes that tell one conversation from another where nobody named it
_MAX_DIGITS = 7  # no vocabulary has more than ten million tokens
_ALLOWED = b"0123456789,"
_ID_LEN = 12  # bytes of an id, and its share of what Python keeps of a chunk


@dataclass(frozen=True, slots=True, eq=False)
class WrittenIds:
    """Token ids, int32 `[tokens]` and not negative, and the JSON array that they were read from."""

    ids: TokenIds
    text: bytes


class _Chunk(NamedTuple):
    text: bytes  # up to and with a comma
    ids: NDArray[np.int32]


class IdTexts:
    """Reads lists of ids, and remembers the last of each conversation, the least used go first."""

    def __init__(self, max_kept_len: int = MAX_KEPT_LEN) -> None:
        self._max_kept_len = max_kept_len
        self._kept: OrderedDict[Hashable, list[_Chunk]] = OrderedDict()
        self._kept_len = 0

    def __repr__(self) -> str:
        return f"<IdTexts of {len(self._kept)} conversations, {self._kept_len} bytes>"

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
        opening = re.compile(rb"\s*:\s*\[").match(raw, start + len(name))
        end = -1 if opening is None else raw.find(b"]", opening.end())
        if opening is None or end < 0:
            return None
        rest = raw[: opening.end()] + raw[end:]
        if rest.count(name) > 1 or b"\\u" in rest:  # escapes may spell the name once more
            return None
        text = raw[opening.end() : end]
        ids = self._read(text, (conversation, text[:_KEY_LEN]))
        return None if ids is None else (rest, WrittenIds(ids, b"[%s]" % text))

    def _read(self, text: bytes, key: Hashable) -> TokenIds | None:
        chunks: list[_Chunk] = []
        at = 0
        for known in self._kept.get(key, ()):
            if not text.startswith(known.text, at):
                break
            chunks.append(known)
            at += len(known.text)
        while (end := text.find(b",", at + CHUNK_LEN) + 1) > 0:
            ids = _ids(text[at : end - 1])
            if ids is None:
                return None
            chunks.append(_Chunk(text[at:end], ids))
            at = end
        last = _ids(text[at:])
        if last is None:
            return None
        self._keep(key, chunks)
        whole: TokenIds = np.concatenate([*(chunk.ids for chunk in chunks), last])
        whole.setflags(write=False)
        return whole

    def _keep(self, key: Hashable, chunks: list[_Chunk]) -> None:
        self._kept_len -= _size(self._kept.pop(key, ()))
        self._kept[key] = chunks
        self._kept_len += _size(chunks)
        while self._kept_len > self._max_kept_len:
            self._kept_len -= _size(self._kept.popitem(last=False)[1])


def _size(chunks: list[_Chunk] | tuple[()]) -> int:
    return sum(len(chunk.text) + _ID_LEN * len(chunk.ids) for chunk in chunks)


def _ids(text: bytes) -> NDArray[np.int32] | None:
    """The numbers of a list without its brackets; None if JSON would not have it so."""
    plain = text.replace(b", ", b",").strip()
    if plain.translate(None, _ALLOWED) or b",," in plain or not plain.strip(b",") == plain != b"":
        return None
    ids = np.fromstring(plain.decode("ascii"), np.int64, sep=",")
    digits = len(plain) - (len(ids) - 1)
    powers = 10 ** np.arange(1, _MAX_DIGITS)
    if int(ids.max()) >= 10**_MAX_DIGITS:
        return None
    if digits != len(ids) + sum(int((ids >= power).sum()) for power in powers):  # as in 007
        return None
    return ids.astype(np.int32)
