"""What a turn costs follows from what is new in it: counted, not timed."""

from __future__ import annotations

import pytest

from slime_router.api.chat.messages import read_messages
from slime_router.pool.kv_cache import KVCacheModel
from slime_router.pool.worker import Worker
from slime_router.types import token_ids
from tests.effort import opcodes


def test_the_text_of_a_reply_is_not_walked_through() -> None:
    def checking(length: int) -> int:
        reply = {"role": "assistant", "content": "x" * length, "tool_calls": None}
        return opcodes(lambda: read_messages({"messages": [reply]}))

    assert checking(10_000) == checking(10)


@pytest.mark.parametrize("is_longer", [True, False])
def test_blocks_that_a_worker_holds_already_are_not_walked_through(is_longer: bool) -> None:
    def adding(count: int) -> int:
        model, worker = KVCacheModel(), Worker("http://w")
        before = model.prefixes("", token_ids(range(64 * count)))
        after = model.prefixes("", token_ids(range(64 * (count + is_longer))))
        model.add(worker, before)
        return opcodes(lambda: model.add(worker, after))

    assert adding(100) <= adding(10) + 100  # it is found by halving
