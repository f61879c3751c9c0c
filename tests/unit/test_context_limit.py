"""What is asked of a worker where its context ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slime_router.errors import ContextLengthExceeded
from slime_router.generation.context_limit import ContextLimit
from slime_router.types import GenerateCall, Prompt, Receipt, Sampling, token_ids

CONTEXT_LEN = 10


def call(prompt_len: int, max_tokens: int | None, token_limit: int | None = None) -> GenerateCall:
    receipt = Receipt("fresh", 0, prompt_len, "turn", "")
    return GenerateCall(
        rid="r",
        turn_id="turn",
        text="x",
        sampling=Sampling(max_tokens=max_tokens),
        token_limit=token_limit,
        prompt=Prompt(token_ids(range(prompt_len)), receipt),
    )


async def never(*_: object) -> int:
    raise AssertionError("nothing is encoded")


def limit(context_len: int | None) -> ContextLimit:
    return ContextLimit(lambda: [context_len], never)


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "token_limit", "fitted"),
    [
        (4, 6, None, None),  # exactly what there is room for
        (4, 7, None, 6),
        (4, None, None, 6),
        (4, 7, 3, 3),
        (4, 7, 8, 6),
        (9, 5, None, 1),
    ],
)
def test_a_call_is_cut_to_what_fits(prompt_len, max_tokens, token_limit, fitted):
    asked = call(prompt_len, max_tokens, token_limit)
    expected = asked if fitted is None else replace(asked, token_limit=fitted)
    assert limit(CONTEXT_LEN).fitted(asked) == expected


@pytest.mark.parametrize("prompt_len", [CONTEXT_LEN, CONTEXT_LEN + 1])
def test_a_prompt_that_leaves_no_room_is_refused(prompt_len):
    with pytest.raises(ContextLengthExceeded):
        limit(CONTEXT_LEN).fitted(call(prompt_len, 5))


def test_nothing_is_cut_until_a_worker_has_said_how_long_its_context_is():
    asked = call(4, 1000)
    assert limit(None).fitted(asked) is asked
