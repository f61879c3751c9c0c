"""Cuts from an item of a cumulative stream what the item before it said already.

A worker that streams cumulatively repeats all ids and logprobs in every item, so that parsing a
reply whole costs the square of its length. The lists of one item begin with the very bytes of the
lists before it: comparing those bytes is hundreds of times cheaper than parsing them.

Where anything looks otherwise the answer is None, and the item is parsed whole.
"""

from __future__ import annotations

# In a JSON text no string can hold these: a quote inside a string is escaped.
_LISTS = ((b'"output_ids":[', b"]"), (b'"output_token_logprobs":[', b"]]"))


class Repeats:
    """What the lists of the last item held, byte for byte."""

    def __init__(self) -> None:
        self._known = {marker: b"" for marker, _ in _LISTS}

    def cut(self, payload: bytes) -> bytes | None:
        """`payload` with only the new entries in its lists.

        Every payload of a stream passes here, also those that are parsed whole.
        """
        parts: list[bytes] = []
        known: dict[bytes, bytes] = {}
        done = 0
        for marker, closing in _LISTS:
            begin = payload.find(marker) + len(marker)
            if begin < len(marker):
                continue  # nobody asked for logprobs
            before = self._known[marker]
            seen = begin + len(before)
            if begin < done or not payload.startswith(before, begin):
                return None
            follows = payload[seen : seen + 1]
            end = seen if follows == b"]" else payload.find(closing, seen) + len(closing) - 1
            if end < seen or (before and follows not in b",]"):
                return None  # no end, or a number that only begins like the one before
            known[marker] = payload[begin:end]
            new = payload[seen:end]
            if b'"' in new:
                return None  # a text in an entry may hold brackets
            parts += [payload[done:begin], new.removeprefix(b",")]
            done = end
        self._known |= known
        return b"".join((*parts, payload[done:]))
