"""The types of SGLang's sampling parameters: another is refused before a worker sees it."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.api.generate.request import SAMPLING_PARAMS, check_sampling
from slime_router.errors import BadRequest

VOCAB_SIZE = 260

NUMBERS = (5, 2.0)
FLAGS = (True, False)
TEXTS = ("", "x")
TEXT_LISTS: tuple[Any, ...] = (*TEXTS, [], ["a", ""])
NOT_ONE: tuple[Any, ...] = ([1], [None], [["a"]], [True], ["a", 1], {}, {"5": [1]})
VALUES: tuple[Any, ...] = (*NUMBERS, *FLAGS, *TEXT_LISTS, *NOT_ONE)

TAKEN: dict[str, tuple[Any, ...]] = {  # what SGLang 0.5.23 takes of these
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "n", "beam_width", "top_k"), (5,)),
    "stream_interval": (5,),
    "sampling_seed": (5, *FLAGS),  # older ones take these
    **dict.fromkeys(("temperature", "top_p", "min_p", "frequency_penalty"), NUMBERS),
    **dict.fromkeys(("presence_penalty", "repetition_penalty"), NUMBERS),
    **dict.fromkeys(("stop", "stop_regex"), TEXT_LISTS),
    "stop_token_ids": ([], [1]),
    **dict.fromkeys(("regex", "ebnf", "json_schema", "structural_tag"), TEXTS),
    **dict.fromkeys(("ignore_eos", "skip_special_tokens", "no_stop_trim"), FLAGS),
    **dict.fromkeys(("spaces_between_special_tokens", "ebnf_full_assistant"), FLAGS),
    "logit_bias": ({}, {"5": 1}),
    "custom_params": VALUES,
    "watermark": ({}, {"5": [1]}),
}


@pytest.mark.parametrize("field", sorted(SAMPLING_PARAMS))
def test_a_parameter_of_another_type_is_named(field):
    """Workers answer some with a 500, as if they had failed."""
    taken = [repr(value) for value in TAKEN[field]]
    for value in VALUES:
        if repr(value) in taken:
            check_sampling({field: value}, VOCAB_SIZE)
        else:
            with pytest.raises(BadRequest) as told:
                check_sampling({"temperature": 1, field: value}, VOCAB_SIZE)
            assert told.value.param == field, value


@pytest.mark.parametrize("field", sorted(SAMPLING_PARAMS - {"n"}))
def test_a_parameter_may_be_null(field):
    assert check_sampling({field: None}, VOCAB_SIZE) == 1


def test_a_null_for_n_is_named():
    """SGLang, which takes null for the others, answers it with a 500."""
    with pytest.raises(BadRequest) as told:
        check_sampling({"n": None}, VOCAB_SIZE)
    assert told.value.param == "n"


@pytest.mark.parametrize("bias", ["x", None, True, [1], {"b": 1}])
def test_a_bias_that_is_no_number_is_named(bias):
    with pytest.raises(BadRequest) as told:
        check_sampling({"logit_bias": {"5": bias}}, VOCAB_SIZE)
    assert told.value.param == "logit_bias"


@pytest.mark.parametrize("top_k", [2**31, -(2**31) - 1, 2**63])
def test_a_top_k_beyond_32_bits_is_named(top_k):
    """A worker keeps it in 32 bits, and dies of more."""
    with pytest.raises(BadRequest) as told:
        check_sampling({"top_k": top_k}, VOCAB_SIZE)
    assert told.value.param == "top_k"
