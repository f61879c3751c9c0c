"""Arguments that hold what ends a call in their format."""

from __future__ import annotations

import json
import re

import pytest

from tests.unit.formats import FORMATS, Call
from tests.unit.test_formats import CUTS, ROME, read, tokens, values

pytestmark = pytest.mark.parsers

GLM = {"glm", "glm45", "glm47", "hunyuan", "ling3", "spark25"}
CODER = {"qwen3_coder", "mimo", "nanbeige", "step3p5"}
MARKS = {
    **dict.fromkeys(GLM, ("</tool_call>",)),
    **dict.fromkeys(CODER, ("</function>", "</tool_call>")),
    "dots": ("</invoke>", "</dots_function_call>"),
    "hunyuan": ("</tool_call>", "</tool_calls>"),
    "iquest_q1": ("</iquest_tool_call>",),
    "k2_horizon": ("</ifm|tool_call>", "</ifm|tool_calls>"),
    "minicpm5": ("</function>",),
    "minimax-m2": ("</invoke>", "</minimax:tool_call>"),
}
CASES = [(name, mark) for name, marks in MARKS.items() for mark in marks]
PYTHONIC = ("lfm2", "pythonic")


def texts(mark: str) -> list[str]:
    begin = mark.replace("</", "<")
    return [mark, f"a{mark}b", f"<a>{begin}b{mark}</a>", f"{mark}\n{mark}", f'"}}}}\n{mark}\n<']


def check(name: str, value: str) -> None:
    """Alone, with another argument before it, and among other calls."""
    form = FORMATS[name]
    odd: Call = ("get_weather", {"city": value})
    for calls in (
        [odd, ROME],
        [("get_weather", {"days": 3, "city": value}), odd],
    ):
        text = form.write(calls[: form.most], "I look. ") + "\n\nBye."
        for pieces in (tokens(text), re.findall(CUTS["letters"], text)):
            content, found = read(name, pieces)
            assert values(found) == calls[: form.most]
            assert content.split() == ["I", "look.", "Bye."]


@pytest.mark.parametrize(("name", "mark"), CASES)
def test_a_value_may_hold_a_mark_that_ends_calls(name, mark):
    for value in texts(mark):
        check(name, value)


@pytest.mark.parametrize("name", sorted(MARKS))
@pytest.mark.parametrize("value", ["a <", "a </", "a << b <"])
def test_a_value_may_end_like_the_beginning_of_a_mark(name, value):
    check(name, value)


@pytest.mark.parametrize("name", sorted(MARKS))
@pytest.mark.parametrize("value", ["}", "if (x) }", "}}", "{{", "a[0]]", '"}', '{"a": \'}'])
def test_a_value_may_hold_braces_that_do_not_match(name, value):
    """SGLang counts those of MiniMax M2's arguments, to know whether they are closed."""
    check(name, value)


@pytest.mark.parametrize("name", PYTHONIC)
@pytest.mark.parametrize(
    "value", ["]", "[", "a[0", "')]", '")]', "x]\\", "\\']", "it's [", "(", "\n]"]
)
def test_a_python_string_may_hold_brackets(name, value):
    form = FORMATS[name]
    odd: Call = ("get_weather", {"city": value})
    for calls in ([odd, ROME], [ROME, odd]):
        text = form.write(calls)
        for pieces in (tokens(text), re.findall(CUTS["letters"], text)):
            content, found = read(name, pieces)
            assert (content, values(found)) == ("", calls)


def test_brackets_that_are_no_list_of_calls_take_no_time():
    """SGLang's pattern takes twice as long with each argument."""
    text = f"[f({'a=1, ' * 200}), 5] and [f({'a=1, ' * 200}]"
    assert read("pythonic", tokens(text)) == (text, [])


def test_text_in_brackets_before_python_calls_is_content():
    """With an apostrophe, too: it begins no string there."""
    call = FORMATS["pythonic"].write([ROME])
    for lead in ("It's [so] here: ", "See [that's it]. "):
        content, found = read("pythonic", tokens(lead + call))
        assert (content, values(found)) == (lead, [ROME])


@pytest.mark.parametrize(("name", "mark"), CASES)
def test_a_mark_in_a_value_that_is_not_closed_ends_the_call(name, mark):
    """Models forget to close values; what follows is another call anyway."""
    form = FORMATS[name]
    first = form.write([("get_weather", {"city": "Paris"})])
    end = re.search(rf"Paris\s*(</(?!{re.escape(mark[2:])})[^<>]*>)", first)
    assert end is not None
    broken = first[: end.start(1)] + first[end.end(1) :]
    _, found = read(name, tokens(broken + "\n" + form.write([ROME])))
    assert "Paris" in found[0][1]
    assert (found[-1][0], json.loads(found[-1][1])) == ROME


@pytest.mark.parametrize(("name", "mark"), CASES)
def test_a_reply_that_is_cut_behind_a_mark_in_a_value_has_what_was_said(name, mark):
    text = FORMATS[name].write([("get_weather", {"city": f"Paris {mark} Rome"})])
    whole = text[: text.index("Rome")]
    content, found = read(name, tokens(whole))
    assert (content + str(found)).count("Paris") == 1
