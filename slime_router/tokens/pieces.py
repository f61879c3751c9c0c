"""The pieces of a prompt put together: one array that the tree and the store share."""

from __future__ import annotations

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
    slices, end = [], 0
    for piece in pieces:
        begin, end = end, end + len(piece.ids)
        slices.append(Piece(piece.text, own[begin:end], piece.is_sampled))
    return ids, own, tuple(slices)
