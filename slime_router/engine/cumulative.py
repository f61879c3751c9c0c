"""Removes from an item of a cumulative stream what the item before it already contained.

A worker that streams cumulatively repeats all ids and logprobs in every item, so parsing every item
in full is quadratic in the length of the reply. Each item's lists begin with exactly the bytes of
the previous item's: comparing those bytes is hundreds of times cheaper than parsing them.

If anything looks different the result is None, and the item is parsed in full.
"""

from __future__ import annotations

# No JSON string can contain these: a quote inside a string is escaped.
_LISTS = (  # in the order in which a worker writes them
    (b'"output_ids":[', b"]"),
    (b'"output_token_logprobs":[', b"]]"),
    (b'"output_token_sampling_mask":[', b"]]"),
    (b'"output_token_sampling_logprobs":[', b"]"),
)


class CumulativeCutter:
    """Remembers the lists of the last item byte for byte, and cuts them from the next."""

    def __init__(self) -> None:
        self._known = {marker: b"" for marker, _ in _LISTS}

    def cut(self, payload: bytes) -> bytes | None:
        """`payload` with only the new entries in its lists.

        Every payload of a stream must pass through here, even those that are parsed in full.
        """
        parts: list[bytes] = []
        known: dict[bytes, bytes] = {}
        done = 0
        for marker, closing in _LISTS:
            begin = payload.find(marker) + len(marker)
            if begin < len(marker):
                continue  # logprobs were not requested
            before = self._known[marker]
            seen = begin + len(before)
            if begin < done or not payload.startswith(before, begin):
                return None
            follows = payload[seen : seen + 1]
            end = seen if follows == b"]" else payload.find(closing, seen) + len(closing) - 1
            if end < seen or (before and follows not in b",]"):
                return None  # no end, or a last number that only starts like the previous one
            known[marker] = payload[begin:end]
            new = payload[seen:end]
            if b'"' in new:
                return None  # a text in an entry may contain brackets
            parts += [payload[done:begin], new.removeprefix(b",")]
            done = end
        self._known |= known
        return b"".join((*parts, payload[done:]))
