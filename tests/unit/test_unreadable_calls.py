"""Calls in JSON that the parser cannot read, before one that it can: nothing is lost or doubled."""

from __future__ import annotations

import re

import pytest

from tests.unit.test_formats import CUTS, read, tokens

pytestmark = pytest.mark.parsers

GOOD = ("get_weather", '{"city": "Rome"}')
TAGGED = "<tool_call>\n{}\n</tool_call>"
FORMS = {  # a call, its key of arguments, what stands between two
    "hermes": (TAGGED, "arguments", "\n"),
    "qwen25": (TAGGED, "arguments", "\n"),
    "llama3": ("{}", "parameters", ";"),
}
NO_CALLS = ['"KEYS": {"query": "x"}', '"args": "x"', '"KEYS": "x"}', '"KEY"', '"KEYS": ["a{", 1]']
BROKEN = ['{"que x"}', '{"query": "x" "days": 1}', '{"query": "x", 1}', "null"]


def both(name: str, members: str, end: str = "") -> list[tuple[str, list[tuple[str, str]]]]:
    """What is read of a call with these members after its name, a good one, and a word."""
    form, key, between = FORMS[name]
    members = members.replace("KEY", key)
    first = form.replace("{}", f'{{"name": "search"{members}}}')
    second = form.replace("{}", f'{{"name": "get_weather", "{key}": {{"city": "Rome"}}}}')
    if end:
        first = first.replace("</tool_call>", end)
    start = "<|python_tag|>" if name == "llama3" else ""
    text = f"{start}{first}{between}{second}\nBye."
    return [read(name, pieces) for pieces in (tokens(text), re.findall(CUTS["letters"], text))]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("members", NO_CALLS)
@pytest.mark.parametrize("end", ["", "</tol_call>"])
def test_a_misspelled_key_makes_no_call(name: str, members: str, end: str) -> None:
    """It took the arguments of the next call, which was lost."""
    for content, calls in both(name, ", " + members, end):
        assert calls == [GOOD]
        assert content.count('"search"') == content.count("Bye.") == 1
        assert "Rome" not in content


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("arguments", BROKEN)
@pytest.mark.parametrize("end", ["", "</tol_call>"])
def test_arguments_that_are_not_json_are_given_as_written(name, arguments, end) -> None:
    """They were content, too, and what followed the calls was lost."""
    for content, calls in both(name, f', "KEY": {arguments}', end):
        assert calls == [("search", arguments), GOOD]
        assert content.replace("</tol_call>", "").strip() == "Bye."


@pytest.mark.parametrize("first", ["", '{"name": "now", "parameters": {}}; '])
def test_text_after_a_last_call_that_is_not_json_is_no_part_of_it(first: str) -> None:
    """Where no mark ends calls, the text after one was added to its arguments."""
    arguments = '{"query": "Quito", "filter": {"k": "[Vaduz", {"x": "Windhoek"}]}}'
    text = f'<|python_tag|>{first}{{"name": "search", "parameters": {arguments}}}\nBye.'
    content, calls = read("llama3", tokens(text))
    assert calls[-1] == ("search", arguments)
    assert content.strip() == "Bye."


@pytest.mark.parametrize("name", FORMS)
def test_a_call_without_the_key_of_arguments_has_none(name: str) -> None:
    """The call after it was content."""
    for content, calls in both(name, ""):
        assert calls == [("search", "{}"), GOOD]
        assert content.strip() == "Bye."


@pytest.mark.parametrize("name", ["hermes", "qwen25"])
def test_calls_between_two_quotes_too_many_are_read(name: str) -> None:
    """The first quote hides where its call ends until the second one shows it."""
    first = '{"query": "x""}'
    stray = TAGGED.replace("{}", f'{{"name": "search", "arguments": {first}}}')
    good = TAGGED.replace("{}", '{"name": "get_weather", "arguments": {"city": "Rome"}}')
    text = "\n".join((stray, good, stray))
    for pieces in (tokens(text), re.findall(CUTS["letters"], text)):
        assert read(name, pieces)[1] == [("search", first), GOOD, ("search", first)]


@pytest.mark.parametrize("arguments", ['{"que x"}', "null"])
def test_a_call_of_an_array_is_read_after_one_that_is_not_json(arguments: str) -> None:
    first = f'{{"name": "search", "arguments": {arguments}}}'
    text = f'[TOOL_CALLS] [{first}, {{"name": "get_weather", "arguments": {{"city": "Rome"}}}}]'
    for pieces in (tokens(text), re.findall(CUTS["letters"], text)):
        assert read("mistral", pieces) == ("", [("search", arguments), GOOD])


NAMELESS = "<tool_call>\n said \n</tool_call>"
AFTER_CALL = ["\n</tool_call>", "<tool_call>\n", '{"name": "search"}', "\n</tool_call>"]
IN_LARGE_PIECES = {
    "a frame without a call, in one piece with a call that has no end": (
        "hermes",
        ['<tool_call>\n{"name": "search", "arguments": }' + NAMELESS],
        (NAMELESS, [("search", "{}")]),
    ),
    "a frame without a call, after a call that is a name alone": (
        "qwen25",
        ["<tool_call>\n", '{"name": "search"}', "\n</tool_call>", NAMELESS],
        (NAMELESS, [("search", "{}")]),
    ),
    "a call that is a name alone, after one that is not JSON": (
        "qwen25",
        ["<tool_call>\n", '{"name": "search", "arguments": {"query": "x}}', *AFTER_CALL],
        ("", [("search", '{"query": "x}'), ("search", "{}")]),
    ),
    "a name alone at the end, after a frame without a call": (
        "qwen25",
        [*AFTER_CALL[1:], NAMELESS, *AFTER_CALL[1:3]],
        (NAMELESS, [("search", "{}"), ("search", "{}")]),
    ),
    "a quote that is never closed, before a call without arguments": (
        "llama3",
        [
            "<|python_tag|>",
            '{"name": "search", "arguments": {"a": "b}}',
            "{;<|python_tag|>",
            '{"name": "search", "arguments": };',
        ],
        ("", [("search", '{"a": "b}}{;<|python_tag|>'), ("search", "{}")]),
    ),
    "an object that is not a call, before a mark alone": (
        "llama3",
        ["<|python_tag|>", '{"name": "search", "x": 1}', ";", "<|python_tag|>", "\n", ";"],
        ('{"name": "search", "x": 1};\n;', []),
    ),
}


@pytest.mark.parametrize(("name", "pieces", "found"), IN_LARGE_PIECES.values(), ids=IN_LARGE_PIECES)
def test_what_follows_in_large_pieces_is_read_as_in_small_ones(name, pieces, found) -> None:
    """Workers give several tokens at once."""
    for cut in (pieces, tokens("".join(pieces))):
        assert read(name, cut) == found
