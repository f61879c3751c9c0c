"""The pieces of a prompt put together: one array that the tree and the store share."""

from __future__ import annotations

from itertools import accumulate
from typing import TypeAlias

import numpy as np

from slime_router.types import NO_TOKENS, Piece, TokenIds

INLINE_PIECES = 2048  # more of them take over 10 ms, and should not hold a loop

Whole: TypeAlias = tuple[TokenIds, TokenIds, tuple[Piece, ...]]


def with_head(head: TokenIds, pieces: tuple[Piece, ...]) -> Whole:
    """All ids, those of the pieces, and the pieces as slices of these.

    The tree keeps the slices and the store the whole array, so they share memory.
    """
    own: TokenIds = np.concatenate([piece.ids for piece in pieces]) if pieces else NO_TOKENS
    ids: TokenIds = np.concatenate((head, own)) if len(head) else own
    own.setflags(write=False)
    ids.setflags(write=False)
    ends = accumulate(len(piece.ids) for piece in pieces)
    slices = tuple(
        Piece(piece.text, own[end - len(piece.ids) : end], piece.is_sampled)
        for piece, end in zip(pieces, ends, strict=True)
    )
    return ids, own, slices
