"""What workers are taken to hold, against plain lists of token tuples, newest last."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from slime_router.pool.kv_cache import BLOCK_LEN, KVCacheModel
from slime_router.pool.worker import Worker
from slime_router.types import token_ids

FUZZ = int(os.environ.get("SLIME_ROUTER_FUZZ", "1"))
SCOPES = ("", "lora", "salt")
CAPACITIES = (1, 3, 8)  # blocks

scopes = st.sampled_from(SCOPES)
numbers = st.integers(0, len(CAPACITIES) - 1)
prompts = st.tuples(st.lists(st.integers(0, 1), max_size=5), st.integers(0, BLOCK_LEN - 1))
Block = tuple[str, tuple[int, ...]]  # its scope, and all that stands before its end


def ids_of(prompt):
    """Blocks of one repeated number each, and a rest that fills none."""
    blocks, rest = prompt
    return token_ids([n for n in blocks for _ in range(BLOCK_LEN)] + [7] * rest)


def blocks_of(scope: str, ids) -> list[Block]:
    return [(scope, tuple(ids[:end])) for end in range(BLOCK_LEN, len(ids) + 1, BLOCK_LEN)]


class HoldingsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.holdings = KVCacheModel(seed=1)
        self.workers = [
            Worker(f"http://w{n}", kv_tokens=blocks * BLOCK_LEN + BLOCK_LEN // 2)
            for n, blocks in enumerate(CAPACITIES)
        ]
        self.lists: list[list[Block]] = [[] for _ in CAPACITIES]
        self.asked: set[tuple[str, tuple[tuple[int, ...], int]]] = set()

    @rule(number=numbers, scope=scopes, prompt=prompts)
    def add(self, number, scope, prompt):
        """Its own blocks become the newest, the first the newest of all; the oldest go."""
        ids = ids_of(prompt)
        self.holdings.add(self.workers[number], self.holdings.prefixes(scope, ids))
        blocks = blocks_of(scope, ids.tolist())[: CAPACITIES[number]]
        others = [block for block in self.lists[number] if block not in blocks]
        self.lists[number] = (others + blocks[::-1])[-CAPACITIES[number] :]
        self.asked.update((s, (tuple(prompt[0]), prompt[1])) for s in SCOPES)

    @rule(scope=scopes, prompt=prompts)
    def ask(self, scope, prompt):
        self.asked.add((scope, (tuple(prompt[0]), prompt[1])))

    @rule(number=numbers)
    def forget(self, number):
        self.holdings.forget(self.workers[number])
        self.lists[number] = []
        assert not self.holdings.knows(self.workers[number])

    @invariant()
    def each_holds_what_its_list_does(self):
        for scope, prompt in self.asked:
            ids = ids_of(prompt)
            found = self.holdings.held_lens(self.workers, self.holdings.prefixes(scope, ids))
            blocks = blocks_of(scope, ids.tolist())
            wanted = [
                BLOCK_LEN * sum(block in held for block in blocks)  # only a beginning can be held
                for held in self.lists
            ]
            assert found == wanted

    @invariant()
    def a_held_prefix_means_that_the_shorter_ones_are_held(self):
        for held in self.lists:
            assert all((s, p[:-BLOCK_LEN]) in held for s, p in held if len(p) > BLOCK_LEN)


TestHoldings = HoldingsMachine.TestCase
TestHoldings.settings = settings(
    max_examples=40 * FUZZ,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 5))
def test_no_prefix_is_taken_for_another(seed, first, second):
    """Two blocks that change places, or one token that changes, are other prefixes from there."""
    ids = np.random.default_rng(seed).integers(0, 150_000, 6 * BLOCK_LEN, dtype=np.int32)
    holdings = KVCacheModel(seed)
    before = holdings.prefixes("", ids)
    other = ids.reshape(6, BLOCK_LEN).copy()
    other[[first, second]] = other[[second, first]]
    other[second, 0] ^= 1
    after = holdings.prefixes("", token_ids(other.ravel()))
    same = min(first, second)
    assert before[:same] == after[:same]
    assert not set(before[same:]) & set(after[same:])


def test_scopes_share_nothing():
    ids = token_ids(range(10 * BLOCK_LEN))
    holdings = KVCacheModel()
    assert not set(holdings.prefixes("", ids)) & set(holdings.prefixes("a", ids))
    assert not set(holdings.prefixes("a", ids)) & set(holdings.prefixes("b", ids))


def test_the_beginning_of_a_prompt_has_the_same_prefixes():
    ids = token_ids(range(3 * BLOCK_LEN + 5))
    holdings = KVCacheModel()
    assert holdings.prefixes("a", ids[: 2 * BLOCK_LEN]) == holdings.prefixes("a", ids)[:2]
