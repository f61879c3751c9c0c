"""Arguments that hold what ends a call in their format."""

from __future__ import annotations

import json
import re

import pytest

from slime_router.replies.calls.tagged_values import TAGS
from tests.unit.formats import FORMATS, Call
from tests.unit.test_formats import (
    CUTS,
    ONE_SECTION,
    PARIS,
    ROME,
    SEARCH,
    parser_of,
    read,
    tokens,
    values,
)

pytestmark = pytest.mark.parsers

GLM = {"glm", "glm45", "glm47", "hunyuan", "ling3", "spark25"}
CODER = {"qwen3_coder", "mimo", "nanbeige", "step3p5"}
MARKS = {
    **dict.fromkeys(GLM, ("</tool_call>",)),
    **dict.fromkeys(CODER, ("</function>", "</tool_call>")),
    "deepseekv32": ("</｜DSML｜invoke>", "</｜DSML｜function_calls>"),
    "deepseekv41": ("</｜DSML｜ invoke>", "</｜DSML｜ calls>"),
    "dots": ("</invoke>", "</dots_function_call>"),
    "gigachat35": ("</｜GCML｜invoke>", "</｜GCML｜tool_calls>"),
    "hunyuan": ("</tool_call>", "</tool_calls>"),
    "iquest_q1": ("</iquest_tool_call>",),
    "k2_horizon": ("</ifm|tool_call>", "</ifm|tool_calls>"),
    "kimi_k3": ("<|close|>call<|sep|>", "<|close|>tools<|sep|>"),
    "minicpm5": ("</function>",),
    "minimax-m2": ("</invoke>", "</minimax:tool_call>"),
    "poolside_v1": ("</tool_call>",),
    "step3": ("<｜tool_call_end｜>", "<｜tool_calls_end｜>"),
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


@pytest.mark.parametrize(
    ("name", "mark"), [case for case in CASES if case[0] not in {"kimi_k3", *ONE_SECTION}]
)
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


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", sorted(TAGS))
def test_a_call_that_begins_in_an_open_value_is_another_call(name, cut):
    """It gave its arguments to the call before, and was lost."""
    form = FORMATS[name]
    first = form.write([("get_weather", {"city": "Paris"})])
    open_value = first[: first.index("Paris") + len("Paris")]
    for calls in ([SEARCH], [SEARCH, ROME]):
        text = open_value + "\n" + form.write(calls)
        content, found = read(name, re.findall(CUTS[cut], text))
        assert (found[0][0], values(found[1:])) == ("get_weather", calls)
        assert (content + found[0][1]).count("Paris") == 1
        if name != "kimi_k2":  # its value is all of the JSON
            assert json.loads(found[0][1])["city"].strip() == "Paris"


@pytest.mark.parametrize("name", sorted(TAGS.keys() - {"kimi_k2", "muse"}))
def test_a_value_may_quote_a_whole_call(name):
    form = FORMATS[name]
    quoted = form.write([("search", {"query": "x"})]).strip()
    for value in (quoted, f"As in {quoted}.", f"{quoted}\n{quoted}"):
        check(name, value)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("name", "end", "broken"),
    [
        ("gigachat35", "</｜GCML｜invoke>", "</｜｜invoke>"),
        ("kimi_k3", "<|close|>call<|sep|>", "<|close|>call"),
        ("qwen3_coder", "</function>\n</tool_call>", ""),
        ("glm45", "</tool_call>", ""),
    ],
)
def test_a_call_whose_end_is_broken_takes_no_arguments_of_the_next_one(name, end, broken, cut):
    calls: list[Call] = [("get_weather", {"city": "Paris", "days": 3}), SEARCH]
    text = FORMATS[name].write(calls).replace(end, broken, 1)
    _, found = read(name, re.findall(CUTS[cut], text))
    assert values(found) == calls


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["glm45", "glm47", "ling3"])
@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("three", "three"),
        ("True", True),
        ("None", None),
        ("", ""),
        ("say 3", "say 3"),
        ("3", 3),
        ("true", True),
        ('"x"', "x"),
    ],
)
def test_a_value_of_another_kind_is_json(name, written, value, cut):
    """SGLang gives the bare word: no client could read the call."""
    calls: list[Call] = [("search", {"query": "x", "deep": 77777}), ROME]
    text = FORMATS[name].write(calls).replace("77777", written)
    content, found = read(name, re.findall(CUTS[cut], text))
    assert content == ""
    assert values(found) == [("search", {"query": "x", "deep": value}), ROME]


@pytest.mark.parametrize("name", ["glm45", "glm47"])
def test_an_object_between_tags_is_given_as_it_comes(name):
    """Long ones are not held back; one that is not JSON is as it was written."""
    text = FORMATS[name].write([("search", {"filter": 77777})]).replace("77777", '{"a": [1}')
    parser = parser_of(name)
    given = ""
    for piece in tokens(text[: text.index("[") + 1]):
        delta = parser.push(piece, is_last=False)
        given += "".join(call.arguments for call in delta.tool_calls)
    assert given.replace(" ", "") == '{"filter":{"a":['
    _, [(_, arguments)] = read(name, tokens(text))
    assert arguments.replace(" ", "") == '{"filter":{"a":[1}}'


@pytest.mark.parametrize("cut", CUTS)
def test_a_call_of_step3_without_a_name_does_not_get_that_of_the_next_one(cut):
    text = FORMATS["step3"].write([PARIS, SEARCH], "I look. ").replace('name="get', 'name"get', 1)
    content, found = read("step3", re.findall(CUTS[cut], text))
    assert values(found) == [SEARCH]
    assert content.count("Paris") == 1


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["deepseekv32", "deepseekv4", "deepseekv41"])
def test_deepseeks_strings_keep_the_spaces_around_them(name, cut):
    calls: list[Call] = [("get_weather", {"city": "  Paris\n"})]
    _, found = read(name, re.findall(CUTS[cut], FORMATS[name].write(calls)))
    assert values(found) == calls


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["deepseekv32", "deepseekv4"])
def test_deepseeks_text_after_a_stray_mark_is_given_once(name, cut):
    """It is given together with the call that follows it."""
    text = "So </｜DSML｜invoke> then. " + FORMATS[name].write([PARIS])
    content, found = read(name, re.findall(CUTS[cut], text))
    assert content.split() == ["So", "</｜DSML｜invoke>", "then."]
    assert values(found) == [PARIS]
