"""Texts of prompts that are put together are those that would be written."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.tokens.written import prompt_text
from slime_router.tokens.written.prompt_text import PromptTexts
from slime_router.types import Prompt, Receipt, TokenIds, token_ids

IDS = st.lists(st.integers(0, 200_000), max_size=12)
TURNS = st.lists(
    st.tuples(
        st.integers(0, 9),  # which turn it continues
        st.sampled_from([0, 0, 0, 1, 5]),  # how many of its held tokens are left out
        IDS,  # what it is asked after those
        IDS,  # what is sampled
    ),
    max_size=14,
)


def prompt(ids: TokenIds, base: str | None = None, base_len: int = 0) -> Prompt:
    return Prompt(ids, Receipt("fresh", 0, len(ids), "t", ""), base=base, base_len=base_len)


@given(TURNS, st.sampled_from([2**26, 100]), st.sampled_from([8, 2**15]))
def test_a_text_is_the_one_that_would_be_written(turns, max_kept_len, short_len) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prompt_text, "LONG_LEN", 1)
        patched.setattr(prompt_text, "SHORT_PIECE_LEN", short_len)
        texts = PromptTexts(max_kept_len)
        held: list[TokenIds] = []
        for number, (which, left_out, new, sampled) in enumerate(turns):
            base = which % len(held) if held and which else None
            begin = token_ids([]) if base is None else held[base]
            begin = begin[: max(len(begin) - left_out, 0)]
            ids = token_ids([*begin, *new])
            name = None if base is None else f"t{base}"
            pieces = texts.pieces(f"t{number}", prompt(ids, name, len(begin)))
            assert (pieces is None) == (not len(begin))
            if pieces is not None:
                assert orjson.loads(b"".join(pieces)) == ids.tolist()
            assert texts._kept_len == sum(text.size for text in texts._kept.values())
            assert texts._kept_len <= max_kept_len
            held.append(token_ids([*ids, *sampled]))


def test_only_what_is_new_is_written():
    texts = PromptTexts()
    ids = np.arange(20_000, dtype=np.int32)
    longer = np.concatenate((ids, ids))
    first = texts.pieces("b", prompt(longer, "a", 20_000))
    sibling = texts.pieces("c", prompt(longer, "a", 20_001))
    second = texts.pieces("d", prompt(np.concatenate((longer, ids)), "b", 40_000))
    assert first is not None
    assert sibling is not None
    assert second is not None
    assert sibling[0] is first[0]
    assert second[:2] == first[:2]
    assert second[1] is first[1]


def test_prompts_that_are_short_or_new_are_not_kept():
    texts = PromptTexts()
    ids = token_ids(range(10_000))
    assert texts.pieces("b", prompt(ids[:100], "a", 100)) is None
    assert texts.pieces("b", prompt(ids)) is None, "nobody may ever continue it"
    assert not len(texts)
