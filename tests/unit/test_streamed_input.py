"""A tool's input in a stream: it can be read as far as it has come, and at its end all was said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jiter import from_json

from slime_router.api.anthropic.inputs import StreamedInput, whole_input
from slime_router.api.anthropic.messages import RAW, arguments_of, input_json
from slime_router.json_text import StringControls, is_text

texts = st.text(st.sampled_from('ab"\\u12{}[]:, \n\x01é🙂-.eE+ntrue'), max_size=24)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=4).filter(lambda o: RAW not in o)


@st.composite
def arguments(draw: st.DrawFn) -> str:
    """JSON, and JSON in which a piece was taken out or put in."""
    text = json.dumps(draw(objects), ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(start + 3, len(text))))
        text = text[:start] + draw(texts) + text[end:]
    return text


halves = st.lists(
    st.sampled_from([r"\ud83d", r"\uDE00", r"\\", r"\n", r"\ud8", "ud83d", "a", '"', '", "b": "']),
    max_size=8,
).map(lambda parts: f'{{"cmd": "{"".join(parts)}"}}')


@st.composite
def cuts(draw: st.DrawFn, text: str) -> list[str]:
    size = draw(st.integers(1, max(1, len(text))))
    return [text[at : at + size] for at in range(0, len(text), size)]


def streamed(pieces: Sequence[str], *, is_cut: bool = False) -> list[str]:
    """What is passed on, piece by piece."""
    whole = StreamedInput()
    given = [whole.push(piece, is_last=False) for piece in pieces]
    return [each for each in (*given, whole.end(is_cut=is_cut)) if each]


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, parse_constant=lambda _: 1 / 0), dict)
    except (ValueError, ZeroDivisionError):
        return False


def is_read_by_sdks(text: str) -> bool:
    return is_text(json.dumps(json.loads(text, object_pairs_hook=list), ensure_ascii=False))


@given(data=st.data(), text=arguments() | texts | halves)
def test_an_input_can_be_read_at_each_point_and_says_all_in_the_end(data: Any, text: str) -> None:
    said = ""
    for piece in streamed(data.draw(cuts(text))):
        said += piece
        assert isinstance(from_json(said.encode(), partial_mode=True), dict)
    if not text.strip():
        assert said == ""
        return
    mended = StringControls().escaped(text)
    if is_object(mended) and is_read_by_sdks(mended):
        assert said == mended
    else:
        assert json.loads(said)[RAW] == text
        assert list(json.loads(said))[-1] == RAW
        assert text.lstrip()[:1] != "{" or arguments_of(json.loads(said)) == text
    assert whole_input(said) == input_json(text)


@given(data=st.data(), made=objects, share=st.floats(0, 1))
def test_an_input_that_a_limit_cut_is_as_it_was_written(data: Any, made: Any, share: float) -> None:
    text = json.dumps(made)
    text = text[: round(len(text) * share)]
    said = "".join(streamed(data.draw(cuts(text)), is_cut=True))
    assert said == text or json.loads(said) == {RAW: text}, "a first piece is whole, or waits"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"city": "a",}', '{"city": "a", "_raw": "{\\"city\\": \\"a\\",}"}'),
        ('{"city": "a"}}', '{"city": "a", "_raw": "{\\"city\\": \\"a\\"}}"}'),
        ('{"city": "a", "n": [1, x', '{"city": "a", "n": [1], "_raw": '),
        ('{"city": Rome}', '{"_raw": '),
        ('{"cmd": "rm \\q"}', '{"cmd": "rm \\\\q", "_raw": '),
        ('{"cmd": "a\nb"} \n', '{"cmd": "a\\nb"} \n'),
        ('{"cmd": "ls"', '{"cmd": "ls", "_raw": '),
        ('{"a": "\\ud83d b", "c": 1}', '{"a": "\\\\ud83d b", "c": 1, "_raw": '),
        ('{"a": "\\ud83d\\uDE00 b"}', '{"a": "\\ud83d\\uDE00 b"}'),
        ('{"\\ude00": "\\\\ud83d"}', '{"\\\\ude00": "\\\\ud83d", "_raw": '),
        ('{"cmd": "l', '{"cmd": "l", "_raw": '),
        ("[1]", '{"_raw":"[1]"}'),
    ],
)
def test_what_breaks_off_has_its_whole_members_and_all_that_was_written(text, said):
    assert "".join(streamed([*text])).replace('"_raw":"{', '"_raw": "{').startswith(said)


@pytest.mark.parametrize("text", ['{"_raw": "ab', '{"_raw": "a", "b": \\', '{"_raw": 1, "n": tru'])
def test_a_cut_input_with_a_member_of_that_name_is_all_that_was_written(text):
    said = "".join(streamed([*text], is_cut=True))
    assert said == text
    assert json.loads(whole_input(said)) == {RAW: text}


def test_arguments_that_come_at_the_end_alone_are_checked_as_a_whole():
    whole = StreamedInput()
    assert whole.push('{"a": "b",}', is_last=True) == ""
    assert json.loads(whole.end(is_cut=False)) == {RAW: '{"a": "b",}'}


def test_a_long_value_without_quotes_is_read_once():
    """It was read again with each piece."""
    whole = StreamedInput()
    read: list[str] = []
    token = whole._token
    whole._token = lambda text, at: read.append(text) or token(text, at)  # type: ignore[method-assign,func-returns-value]
    said = "".join(whole.push(piece, is_last=False) for piece in '{"n": ' + "12" * 50 + ', "m"')
    assert said == '{"n": ' + "12" * 50
    assert sum(map(len, read)) < 300


@pytest.mark.parametrize(
    ("arguments", "is_cut"), [('{"a": 1, "b" 2}', False), ('{"a": 1', True)], ids=["broken", "cut"]
)
def test_arguments_that_come_whole_are_checked_as_a_whole(arguments: str, is_cut: bool) -> None:
    """None of them was passed on, so no member stands before `_raw`."""
    whole = StreamedInput()
    assert whole.push(arguments, is_last=True) == ""
    assert json.loads(whole.end(is_cut=is_cut)) == {RAW: arguments}
