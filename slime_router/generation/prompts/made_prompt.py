"""A prompt that was made, and what it keeps until it is released."""

from __future__ import annotations

import asyncio

from slime_router.cache.node import Node
from slime_router.tokens.encoder import INLINE_PIECES, Whole, with_head
from slime_router.types import Piece, Prompt, TokenIds
from slime_router.values import value


@value(frozen=True, slots=True)
class MadePrompt(Prompt):
    """A prompt and what it keeps until it is released.

    `pieces` are the tokens after those that the tree holds already up to `node`; they are slices of
    `own_ids`. `left_out` names what of the new messages the template does not print.
    """

    pieces: tuple[Piece, ...] = ()
    node: Node | None = None  # pinned; None where nothing can be filed after it
    is_reserved: bool = False  # `base` is this prompt's until then
    left_out: tuple[str, ...] = ()


async def joined(head: TokenIds, pieces: tuple[Piece, ...]) -> Whole:
    """The whole of a prompt; a long one is put together in a thread."""
    if len(pieces) <= INLINE_PIECES:
        return with_head(head, pieces)
    return await asyncio.to_thread(with_head, head, pieces)
