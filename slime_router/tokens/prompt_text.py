"""Long prompts as JSON lists of ids, of which only what is new is written.

A prompt that continues a turn begins with that turn's own prompt. Its text was written then.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import orjson

from slime_router.types import Prompt, TokenIds

LONG_LEN = 4096  # tokens of a prompt that is worth keeping
MAX_KEPT_LEN = 2**26  # bytes of texts; those of one conversation share most of them
SHORT_PIECE_LEN = 2**15  # bytes; a shorter piece grows, so that there are few


class _Text(NamedTuple):
    pieces: tuple[bytes, ...]  # without the closing bracket
    tokens: int
    size: int  # bytes


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
        """The JSON list of the prompt's ids, in pieces; None if it is short.

        They are kept for those that continue the turn which answers it.
        """
        if len(prompt.ids) < LONG_LEN:
            return None
        text = self._continued(self._of_base(prompt), prompt.ids)
        self._keep(turn_id, text)
        return (*text.pieces, b"]")

    def _of_base(self, prompt: Prompt) -> _Text:
        """What is known of the text: `base` was asked by ids that this prompt begins with."""
        known = self._kept.get(prompt.base or "")
        if known is None or known.tokens > prompt.base_len:
            return _Text((), 0, 0)
        self._kept.move_to_end(prompt.base or "")
        return known

    @staticmethod
    def _continued(known: _Text, ids: TokenIds) -> _Text:
        pieces, tokens, size = known
        if tokens == len(ids):
            return known
        new = orjson.dumps(ids[tokens:], option=orjson.OPT_SERIALIZE_NUMPY)[:-1]
        if pieces:
            new = b"," + new[1:]
        size += len(new)
        if pieces and len(pieces[-1]) < SHORT_PIECE_LEN:
            *pieces_before, last = pieces
            return _Text((*pieces_before, last + new), len(ids), size)
        return _Text((*pieces, new), len(ids), size)

    def _keep(self, turn_id: str, text: _Text) -> None:
        if text.size > self._max_kept_len:
            return
        if (old := self._kept.pop(turn_id, None)) is not None:
            self._kept_len -= old.size
        self._kept[turn_id] = text
        self._kept_len += text.size
        while self._kept_len > self._max_kept_len:
            self._kept_len -= self._kept.popitem(last=False)[1].size
