"""Removes from an item of a cumulative stream what the item before it already contained.

A worker that streams cumulatively repeats all text, ids and logprobs in every item, so parsing
every item in full is quadratic in the length of the reply. Each item's text and lists begin with
exactly the bytes of the previous item's: comparing those bytes is hundreds of times cheaper than
parsing them. Nothing that repeats is searched or copied, either.

If a list looks different the result is None, and the item is parsed in full.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from slime_router.engine.answer import Item
from slime_router.types import WeightVersion

# No JSON string can contain these: a quote inside a string is escaped.
_LISTS = (  # in the order in which a worker writes them
    (b'"output_ids":[', b"]"),
    (b'"output_token_logprobs":[', b"]]"),
    (b'"output_token_sampling_mask":[', b"]]"),
    (b'"output_token_sampling_logprobs":[', b"]"),
)
_IDS = _LISTS[0][0]
_VERSION = b'"weight_version":'
_TEXT = b'{"text":"'  # it comes first
_AFTER_TEXT = b'","output_ids":['


def names_version(payload: bytes, version: WeightVersion | None, start: int) -> bool:
    """Whether an item names this version of the weights, from `start` on; None: that it names none.

    False also where that cannot be seen from its bytes alone.
    """
    if version is None:
        return payload.find(_VERSION, start) < 0
    name = _VERSION + orjson.dumps(version)
    found = payload.find(name, start)
    end = found + len(name)
    return found >= 0 and payload[end : end + 1] in (b",", b"}")


def names_other(item: Item, version: WeightVersion | None) -> bool:
    """Whether an item names another version of the weights than this; None is one, too."""
    meta = item.get("meta_info")
    return isinstance(meta, dict) and meta.get("weight_version") != version


class CumulativeCutter:
    """Remembers the text and the lists of the last item byte for byte, and cuts them from the next.

    What is remembered are views of that item.
    """

    def __init__(self) -> None:
        self._known = {marker: memoryview(b"") for marker in (_TEXT, *(each for each, _ in _LISTS))}
        self.ids_end = 0  # where, in the last item, the ids ended: the next one's end no earlier

    def cut(self, payload: bytes) -> bytes | None:
        """`payload` with only what is new in its text and its lists.

        Every payload of a stream must pass through here, even those that are parsed in full.
        """
        parts: list[bytes] = []
        known: dict[bytes, tuple[int, int]] = {}
        done = self._cut_text(payload, parts, known)
        for marker, closing in _LISTS:
            begin = payload.find(marker, done) + len(marker)
            if begin < len(marker):
                continue  # logprobs were not requested
            before = self._known[marker]
            seen = begin + len(before)
            if not payload.startswith(before, begin):
                return None
            follows = payload[seen : seen + 1]
            end = seen if follows == b"]" else payload.find(closing, seen) + len(closing) - 1
            if end < seen or (before and follows not in b",]"):
                return None  # no end, or a last number that only starts like the previous one
            new = payload[seen:end]
            if b'"' in new:
                return None  # a text in an entry may contain brackets
            known[marker] = begin, end
            parts += [payload[done:begin], new.removeprefix(b",")]
            done = end
        cut = b"".join((*parts, payload[done:]))
        if any(marker in cut for marker in self._unfound(known)):
            return None  # a list before one that it should follow
        view = memoryview(payload)
        for marker, (begin, end) in known.items():
            self._known[marker] = view[begin:end]
        if _IDS in known:
            self.ids_end = known[_IDS][1]
        return cut

    def _cut_text(
        self, payload: bytes, parts: list[bytes], known: dict[bytes, tuple[int, int]]
    ) -> int:
        """Where the text ends; 0 where none is found.

        A worker may take back half a character, which it wrote as U+FFFD: such a text is new.
        """
        if not payload.startswith(_TEXT):
            return 0
        begin, before = len(_TEXT), self._known[_TEXT]
        seen = begin + len(before) if payload.startswith(before, begin) else begin
        end = payload.find(_AFTER_TEXT, seen)
        if end < 0:
            return 0
        known[_TEXT] = begin, end
        parts += [_TEXT, payload[seen:end]]
        return end

    @staticmethod
    def _unfound(known: dict[bytes, tuple[int, int]]) -> Iterator[bytes]:
        return (marker for marker, _ in _LISTS if marker not in known)


def repeats_all(item: Item) -> bool:
    """Whether an item of a stream has all output so far, as far as it says."""
    meta = item.get("meta_info")
    ids = item.get("output_ids")
    if not isinstance(meta, dict):
        return False
    return not isinstance(ids, list) or len(ids) == meta.get("completion_tokens", len(ids))


def has_spans(item: Item) -> bool:
    """Whether an item says which weights sampled which tokens."""
    meta = item.get("meta_info")
    return isinstance(meta, dict) and bool(meta.get("weight_versions"))
