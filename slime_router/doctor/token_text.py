"""Tokens and the bytes that they spell, side by side: which token is at which byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import TokenIds


class TokenText:
    """Token ids with their text. Token `i` spells `data[starts[i]:starts[i + 1]]`.

    Attributes:
        ids: int32 `[tokens]`.
        data: what they spell.
        starts: int64 `[tokens + 1]`, the first byte of each.
        controls: indexes of the control tokens, ascending.
    """

    def __init__(self, ids: TokenIds, tokenizer: Tokenizer) -> None:
        kinds, kind_of = np.unique(ids, return_inverse=True)
        spelled = [tokenizer.token_bytes(kind) for kind in kinds.tolist()]
        lengths = np.array([len(each) for each in spelled], np.int64)
        is_control = np.array([tokenizer.is_control(kind) for kind in kinds.tolist()], bool)
        self.ids = ids
        self.data = b"".join([spelled[index] for index in kind_of.tolist()])
        self.starts: NDArray[np.int64] = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(lengths[kind_of], out=self.starts[1:])
        self.controls: NDArray[np.int64] = np.flatnonzero(is_control[kind_of])

    def __len__(self) -> int:
        return len(self.ids)

    def byte_at(self, index: int) -> int:
        """The byte at which token `index` begins."""
        return int(self.starts[index])

    def index_at(self, byte: int) -> int:
        """The first token that begins at `byte` or after it."""
        return int(np.searchsorted(self.starts, byte))

    def text(self, start: int, end: int) -> str:
        """The text of tokens `[start, end)`; a cut character is U+FFFD."""
        data = self.data[self.byte_at(max(start, 0)) : self.byte_at(min(end, len(self)))]
        return data.decode(errors="replace")

    def has_control(self, index: int) -> bool:
        """Whether token `index` is there and is a control token."""
        at = np.searchsorted(self.controls, index)
        return bool(at < len(self.controls) and self.controls[at] == index)

    def controls_in(self, start: int, end: int) -> NDArray[np.int64]:
        """Indexes of the control tokens in `[start, end)`."""
        first, last = np.searchsorted(self.controls, (start, end))
        return self.controls[first:last]

    def stretch(self, start: int, end: int) -> tuple[int, int]:
        """`[start, end)`, widened to the control tokens on both sides, or to the ends."""
        before = self.controls_in(0, start)
        after = self.controls_in(end, len(self))
        first = int(before[-1]) + 1 if len(before) else 0
        return first, int(after[0]) if len(after) else len(self)
