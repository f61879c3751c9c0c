"""Long prompts as JSON lists of ids, of which only what is new is written.

A prompt that continues a turn begins with the tokens that this turn holds, or with the first of
them. Their text was written for it, or for another prompt that continues it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import orjson

from slime_router.types import Prompt, TokenIds

LONG_LEN = 4096  # tokens whose text is worth keeping
MAX_KEPT_LEN = 2**26  # bytes of texts; those of one conversation share most of them
SHORT_PIECE_LEN = 2**15  # bytes; a shorter piece grows, so that there are few


class _Text(NamedTuple):
    pieces: tuple[bytes, ...]  # without the closing bracket
    tokens: int
    size: int  # bytes


_NOTHING = _Text((), 0, 0)


class PromptTexts:
    """The texts of the prompts that were sent last, by the turns that answer them."""

    def __init__(self, max_kept_len: int = MAX_KEPT_LEN) -> None:
        self._max_kept_len = max_kept_len
        self._kept: OrderedDict[str, _Text] = OrderedDict()
        self._kept_len = 0

    def __repr__(self) -> str:
        return f"<PromptTexts of {len(self._kept)} turns, {self._kept_len} bytes>"

    def __len__(self) -> int:
        return len(self._kept)

    def pieces(self, turn_id: str, prompt: Prompt) -> tuple[bytes, ...] | None:
        """The JSON list of the prompt's ids, in pieces; None if it is short or continues no turn.

        They are kept for those that continue the turn which answers it.
        """
        base = prompt.base
        if base is None or prompt.base_len < LONG_LEN:
            return None
        known = self._kept.get(base)
        if known is None or known.tokens > prompt.base_len:
            known = _continued(_NOTHING, prompt.ids[: prompt.base_len])
            self._keep(base, known)
        else:
            self._kept.move_to_end(base)
        text = _continued(known, prompt.ids)
        self._keep(turn_id, text)
        return (*text.pieces, b"]")

    def _keep(self, turn_id: str, text: _Text) -> None:
        if text.size > self._max_kept_len:
            return
        if (old := self._kept.pop(turn_id, None)) is not None:
            self._kept_len -= old.size
        self._kept[turn_id] = text
        self._kept_len += text.size
        while self._kept_len > self._max_kept_len:
            self._kept_len -= self._kept.popitem(last=False)[1].size


def _continued(known: _Text, ids: TokenIds) -> _Text:
    """The text of `ids`, which begin with those of `known`."""
    pieces, tokens, size = known
    if tokens == len(ids):
        return known
    new = orjson.dumps(ids[tokens:], option=orjson.OPT_SERIALIZE_NUMPY)[:-1]
    if pieces:
        new = b"," + new[1:]
    size += len(new)
    if pieces and len(pieces[-1]) < SHORT_PIECE_LEN:
        *before, last = pieces
        return _Text((*before, last + new), len(ids), size)
    return _Text((*pieces, new), len(ids), size)
