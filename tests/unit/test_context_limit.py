"""What is asked of a worker where its context ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slime_router.engine import request
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


@pytest.mark.parametrize(
    ("prompt_len", "sampled_len", "max_tokens", "context_len", "sent"),
    [
        (4, 0, 7, CONTEXT_LEN, 6),
        (4, 0, 6, CONTEXT_LEN, 6),
        (4, 2, 9, CONTEXT_LEN, 4),  # another worker has sampled two of nine
        (4, 2, 5, CONTEXT_LEN, 3),
        (4, 0, 7, None, 7),
        (4, 0, None, CONTEXT_LEN, None),  # to its end
        (CONTEXT_LEN, 0, 7, CONTEXT_LEN, 7),  # no room at all: the worker refuses it
        (CONTEXT_LEN + 1, 0, 7, CONTEXT_LEN, 7),
    ],
)
def test_a_worker_is_asked_for_no_more_than_its_own_context_has_left(
    prompt_len, sampled_len, max_tokens, context_len, sent
):
    asked = replace(call(prompt_len, max_tokens), sampled=token_ids(range(sampled_len)))
    params = request.fitted(request.sampling_params(asked), asked, context_len)
    assert params["max_new_tokens"] == sent
