"""What workers are taken to hold, against plain lists of token tuples, newest last."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from slime_router.pool import kv_cache
from slime_router.pool.kv_cache import ENDS as REAL_ENDS
from slime_router.pool.kv_cache import KVCacheModel
from slime_router.pool.worker import Worker
from slime_router.types import token_ids
from tests.examples import examples

SCOPES = ("", "lora", "salt")
ENDS = (2, 4, 7, 10, 13, 16)
CAPACITIES = (2, 7, 16)  # tokens: one block, three, and six

scopes = st.sampled_from(SCOPES)
numbers = st.integers(0, len(CAPACITIES) - 1)
prompts = st.tuples(st.lists(st.integers(0, 1), max_size=len(ENDS)), st.integers(0, 1))
Block = tuple[str, tuple[int, ...]]  # its scope, and all that stands before its end


def ids_of(prompt):
    """Blocks of one repeated number each, and a rest that fills none."""
    blocks, rest = prompt
    starts = (0, *ENDS)
    ids = [n for i, n in enumerate(blocks) for _ in range(starts[i], starts[i + 1])]
    return token_ids(ids + [7] * rest)


def blocks_of(scope: str, ids) -> list[Block]:
    return [(scope, tuple(ids[:end])) for end in ENDS if end <= len(ids)]


def known(holdings: KVCacheModel, scope: str, ids) -> kv_cache.Prefixes:
    """What it would not hash again of a long prompt."""
    return holdings._known(scope, ids, ids.data.cast("B"))


def len_of(block: Block) -> int:
    length = len(block[1])
    return length - max((end for end in ENDS if end < length), default=0)


class HoldingsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.holdings = KVCacheModel(ENDS)
        self.workers = [Worker(f"http://w{n}") for n in range(len(CAPACITIES))]
        for worker, tokens in zip(self.workers, CAPACITIES, strict=True):
            worker.reported(kv_tokens=tokens)
        self.lists: list[list[Block]] = [[] for _ in CAPACITIES]
        self.asked: set[tuple[str, tuple[tuple[int, ...], int]]] = set()

    @rule(number=numbers, scope=scopes, prompt=prompts)
    def add(self, number, scope, prompt):
        """Its own blocks become the newest, the first the newest of all; the oldest go."""
        ids = ids_of(prompt)
        self.holdings.add(self.workers[number], self.holdings.prefixes(scope, ids))
        fitting = ids.tolist()[: CAPACITIES[number]]
        blocks = blocks_of(scope, fitting)
        held = [block for block in self.lists[number] if block not in blocks] + blocks[::-1]
        while sum(map(len_of, held)) > CAPACITIES[number]:
            held.pop(0)
        self.lists[number] = held
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
            wanted = [  # only a beginning can be held
                sum(len_of(block) for block in blocks if block in held) for held in self.lists
            ]
            assert found == wanted

    @invariant()
    def a_held_prefix_means_that_the_shorter_ones_are_held(self):
        for held in self.lists:
            for scope, ids in held:
                shorter = ids[: len(ids) - len_of((scope, ids))]
                assert not shorter or (scope, shorter) in held


TestHoldings = HoldingsMachine.TestCase
TestHoldings.settings = settings(
    max_examples=examples(40),
    stateful_step_count=25,
)


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 5))
def test_no_prefix_is_taken_for_another(seed, first, second):
    """Two blocks that change places, or one token that changes, are other prefixes from there."""
    ids = np.random.default_rng(seed).integers(0, 150_000, 6 * 64, dtype=np.int32)
    holdings = KVCacheModel()
    before = holdings.prefixes("", ids)
    other = ids.reshape(6, 64).copy()
    other[[first, second]] = other[[second, first]]
    other[second, 0] ^= 1
    after = holdings.prefixes("", token_ids(other.ravel()))
    same = min(first, second)
    assert before[:same] == after[:same]
    assert not set(before[same:]) & set(after[same:])


def test_scopes_share_nothing():
    ids = token_ids(range(640))
    holdings = KVCacheModel()
    assert not set(holdings.prefixes("", ids)) & set(holdings.prefixes("a", ids))
    assert not set(holdings.prefixes("a", ids)) & set(holdings.prefixes("b", ids))


@given(st.integers(0, 40_000), st.integers(0, 40_000))
def test_the_beginning_of_a_prompt_has_the_same_prefixes(length, cut):
    ids = np.arange(length, dtype=np.int32)
    holdings = KVCacheModel()
    prefixes = holdings.prefixes("a", ids)
    beginning = holdings.prefixes("a", ids[:cut])
    assert beginning == prefixes[: len(beginning)]
    assert len(prefixes) == sum(end <= length for end in REAL_ENDS)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(SCOPES), st.integers(0, 5), st.integers(0, 400), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_what_was_hashed_before_is_not_hashed_again_and_is_the_same(turns):
    """Prompts that go on from an earlier one, or leave it, whether or not somebody keeps that."""
    holdings, ids = KVCacheModel(), np.arange(9_000, dtype=np.int32)  # long all along
    kept = []
    for number, (scope, back, more, is_kept) in enumerate(turns):
        new = np.arange(number, number + more, dtype=np.int32)
        ids = token_ids(np.concatenate((ids[: len(ids) - 64 * back], new)))
        prefixes = holdings.prefixes(scope, ids)
        assert prefixes == KVCacheModel().prefixes(scope, ids)
        kept += [ids] * is_kept
        assert len(known(holdings, scope, ids)) == len(prefixes)


@settings(deadline=None)
@given(st.integers(0, 9_000), st.integers(0, 9_000))
def test_an_output_goes_on_from_its_prompt(prompt_len, output_len):
    holdings, ids = KVCacheModel(), np.arange(prompt_len + output_len, dtype=np.int32)
    prompt, output = ids[:prompt_len], ids[prompt_len:].tolist()
    prefixes = holdings.prefixes("a", prompt)
    assert holdings.with_output(prefixes, "a", prompt, output) == holdings.prefixes("a", ids)


def test_ids_are_not_kept_to_be_compared():
    holdings, ids = KVCacheModel(), np.arange(kv_cache.LONG_LEN, dtype=np.int32)
    holdings.prefixes("", ids)
    same = ids.copy()
    assert known(holdings, "", same)
    del ids
    assert not known(holdings, "", same)


def test_ids_of_a_plug_in_need_not_be_in_one_piece():
    ids = np.arange(2 * kv_cache.LONG_LEN, dtype=np.int32)[::2]
    holdings = KVCacheModel()
    prefixes = holdings.prefixes("", ids)
    assert holdings.prefixes("", token_ids(ids)) == prefixes
