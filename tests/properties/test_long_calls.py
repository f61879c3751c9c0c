"""Calls with long arguments, in every format: read in pieces that grow, which changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_router.replies import tool_calls
from slime_router.replies.calls.mended_reads import FirstMark
from slime_router.replies.detectors import CallDetector
from slime_router.types import ReplyFormat
from tests.examples import examples
from tests.unit.formats import FORMATS, Call
from tests.unit.test_formats import TOOLS, parsers_of, read, tokens

pytestmark = [pytest.mark.parsers, pytest.mark.slow]

CODE = "def f(x):\n    return x < 3 and {'a': [1]}\n"
ODD = ["lorem ipsum ", "x", "a<b ", "{} ", "</x>", '"q" ', "[1], ", "line\n", "東🙂", "\\", "}"]
VALUES = st.lists(st.tuples(st.sampled_from([*ODD, CODE]), st.integers(1, 60)), max_size=3).map(
    lambda runs: "".join(word * count for word, count in runs)
)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("get_weather"), st.fixed_dictionaries({"city": VALUES})),
        st.tuples(
            st.just("search"), st.fixed_dictionaries({"query": VALUES, "deep": st.booleans()})
        ),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("name", FORMATS)
def test_it_does_not_matter_in_which_pieces_an_argument_is_read(name, monkeypatch):
    form = FORMATS[name]

    @settings(max_examples=examples(5), suppress_health_check=[HealthCheck.too_slow])
    @given(calls=CALLS, tail=st.sampled_from(["", "\n", "\n\nThat is all."]))
    def holds(calls: list[Call], tail: str) -> None:
        lead = "I look. " if form.speaks else ""
        text = form.write(calls[: form.most], lead) + ("" if name in ("beam", "muse") else tail)
        monkeypatch.setattr(tool_calls, "_SHORT_LEN", len(text))  # each piece by itself
        alone = read(name, tokens(text))
        monkeypatch.undo()
        assert read(name, tokens(text)) == alone
        assert read(name, [text]) == alone

    holds()


@pytest.mark.parametrize("name", FORMATS)
def test_a_detector_does_not_look_at_long_arguments_for_each_token(name, monkeypatch):
    """Nor does a client wait for all of them."""
    looked_at, longest = 0, 0
    read_piece = CallDetector.read

    def noted(detector: CallDetector, text: str, tools: list[Any]) -> Any:
        nonlocal looked_at, longest
        looked_at += len(text) + detector.kept_len
        longest = max(longest, len(text))
        return read_piece(detector, text, tools)

    monkeypatch.setattr(CallDetector, "read", noted)
    code = CODE.replace("[1]", "1") if name == "pythonic" else CODE  # each bracket may end its list
    costs = []
    for count in (40, 160):
        looked_at = 0
        call: Call = ("search", {"query": code * count})
        written = FORMATS[name].write([call])
        _, found = read(name, tokens(written))
        assert [name for name, _ in found] == ["search"]
        assert longest < 0.6 * len(written)
        costs.append(looked_at)
    assert costs[1] < 8 * costs[0]


PIECES = ["tool_call", "/tool_call", "arg_key", "/arg_key", "arg_value", "/arg_value", "tool_sep"]
TRIED_ONCE = {
    **dict.fromkeys(["glm", "glm45", "glm47", "ling3"], "_STREAMING_PARTIAL_PATTERN"),
    "hunyuan": "func_args_regex",
}


@pytest.mark.parametrize("name", TRIED_ONCE)
def test_a_pattern_says_at_its_first_mark_what_it_says_at_all(name):
    """So it is not tried at each, which takes the square of the reply's length."""
    form = ReplyFormat(tools=TOOLS)
    once = parsers_of(name)._detector(form).fields[TRIED_ONCE[name]]
    assert isinstance(once, FirstMark)
    pieces = [*(f"<{piece}>" for piece in PIECES), "\n", "\\n", " ", "a"]

    @settings(max_examples=examples(300))
    @given(st.lists(st.sampled_from(pieces), max_size=14).map("".join))
    def holds(text: str) -> None:
        expected = [(each.span(), each.groups()) for each in once.pattern.finditer(text)]
        assert [(each.span(), each.groups()) for each in once.finditer(text)] == expected
        assert once.findall(text) == once.pattern.findall(text)
        found, expected_one = once.search(text), once.pattern.search(text)
        assert (found and found.span()) == (expected_one and expected_one.span())

    holds()
