"""The input of custom tools, in arguments that are whole and in those that break off."""

from __future__ import annotations

import json

import pytest

from slime_router.api.responses.custom_tools import decode_input, encode_input, input_so_far

INPUT = '*** Begin\n"two" \N{EURO SIGN} \\ end'


@pytest.mark.parametrize("is_bare", [True, False])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_of_a_call_that_is_cut_the_input_is_what_was_written_of_it(is_ascii, is_bare):
    """Never the JSON around it: an agent would take that for a patch."""
    arguments = json.dumps({"input": INPUT}, ensure_ascii=is_ascii)
    if is_bare:  # as models write line ends
        arguments = arguments.replace("\\n", "\n")
    for end in range(1, len(arguments) + 1):
        begun = decode_input(arguments[:end])
        assert INPUT.startswith(begun), arguments[:end]
        assert begun.startswith(input_so_far(arguments[:end]))
    assert decode_input(arguments) == decode_input(encode_input(INPUT)) == INPUT


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ("", ""),
        ("{", ""),
        ('{"patch": "a', "a"),
        ("no JSON", "no JSON"),
        ('{"input": "a" b}', "a"),
        ("[1", "[1"),
        ('{"x": 1, "y": 2}', '{"x": 1, "y": 2}'),
    ],
)
def test_what_is_no_object_with_a_text_is_the_input_itself(arguments, given):
    assert decode_input(arguments) == given
