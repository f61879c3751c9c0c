"""Pieces put together: what is shared, and where the work is done."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from slime_router.generation.prompts import made_prompt
from slime_router.tokens.encoder import INLINE_PIECES, with_head
from slime_router.types import Piece, token_ids


@pytest.mark.parametrize("count", [0, 1, INLINE_PIECES, INLINE_PIECES + 1])
async def test_many_pieces_are_put_together_in_a_thread_and_share_one_array(count, monkeypatch):
    threads = []

    def noted(*given):
        threads.append(threading.current_thread())
        return with_head(*given)

    monkeypatch.setattr(made_prompt, "with_head", noted)
    given = tuple(Piece("x", token_ids([number, 1]), is_sampled=False) for number in range(count))
    ids, own, slices = await made_prompt.joined(token_ids([7]), given)
    assert ids.tolist() == [7, *(i for piece in given for i in piece.ids.tolist())]
    assert [piece.ids.tolist() for piece in slices] == [piece.ids.tolist() for piece in given]
    assert all(np.shares_memory(piece.ids, own) for piece in slices)
    assert not any(array.flags.writeable for array in (ids, own))
    assert (threads == [threading.main_thread()]) == (count <= INLINE_PIECES)
