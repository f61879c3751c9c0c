"""How templates want messages spelled: found by trying."""

from __future__ import annotations

import json

import pytest

from slime_router.template.spelling import Spelling, arguments_text, find_spelling, short_id
from slime_router.types import Message, TemplateOptions


def calls_of(messages: list[Message]) -> str:
    [call] = messages[1]["tool_calls"]
    return json.dumps(call["function"]["arguments"]) + str(call["id"])


def takes_objects(messages: list[Message]) -> str:
    return calls_of(messages)


def adds_text(messages: list[Message]) -> str:
    [call] = messages[1]["tool_calls"]
    text: str = "call " + call["function"]["arguments"]  # TypeError for an object
    return text


def prints_objects_as_python_does(messages: list[Message]) -> str:
    return str(messages[1]["tool_calls"][0]["function"]["arguments"])


def prints_calls_without_content(messages: list[Message]) -> str:
    return calls_of(messages) if messages[1]["content"] is None else "nothing"


def prints_an_empty_turn(messages: list[Message]) -> str:
    return calls_of(messages) + ("" if messages[1]["content"] is None else "<turn><end>")


def prints_none(messages: list[Message]) -> str:
    return f"{messages[1]['content']}{calls_of(messages)}"


def refuses_long_ids(messages: list[Message]) -> str:
    [call] = messages[1]["tool_calls"]
    if len(call["id"]) != 9 or len(messages[2]["tool_call_id"]) != 9:
        raise ValueError("nine")
    return calls_of(messages)


def refuses_thoughts_beside_text(messages: list[Message]) -> str:
    if messages[1]["content"] and messages[1].get("reasoning_content"):
        raise ValueError("not both")
    return calls_of(messages)


def prints_parts(messages: list[Message]) -> str:
    texts = [part["text"] for message in messages for part in message["content"]]
    return "".join(texts) + (calls_of(messages) if len(messages) > 1 else "")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (takes_objects, Spelling(prints_ids=True, prints_calls=True)),
        (adds_text, Spelling("text", prints_calls=True)),
        (prints_objects_as_python_does, Spelling("text", prints_calls=True)),
        (
            prints_calls_without_content,
            Spelling(
                has_null_content=True,
                prints_ids=True,
                prints_calls=True,
                prints_calls_beside_text=False,
            ),
        ),
        (prints_an_empty_turn, Spelling(has_null_content=True, prints_ids=True, prints_calls=True)),
        (prints_none, Spelling(prints_ids=True, prints_calls=True)),
        (refuses_long_ids, Spelling(has_short_ids=True, prints_ids=True, prints_calls=True)),
        (
            refuses_thoughts_beside_text,
            Spelling(joins_thoughts=True, prints_ids=True, prints_calls=True),
        ),
        (prints_parts, Spelling(has_parts=True, prints_ids=True, prints_calls=True)),
        (lambda _: "no calls at all", Spelling()),
    ],
)
def test_a_template_is_tried(template, expected):
    def try_render(messages: list[Message], options: TemplateOptions) -> str | None:
        try:
            text: str = template(messages)
        except (IndexError, KeyError, TypeError, ValueError):
            return None
        return text

    assert find_spelling(try_render) == expected


def test_a_message_is_spelled_and_not_changed():
    call = {"id": "call_0123", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    before = json.dumps(message)
    spelled = Spelling(has_null_content=True, has_short_ids=True).spelled(message)
    assert spelled["content"] is None
    assert spelled["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert spelled["tool_calls"][0]["id"] == short_id("call_0123")
    assert json.dumps(message) == before
    text = Spelling("text").spelled(message)
    assert text["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


def test_a_text_beside_calls_is_kept():
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "I look.", "tool_calls": [call]}
    assert Spelling(has_null_content=True).spelled(message)["content"] == "I look."


@pytest.mark.parametrize(
    ("thought", "text", "expected"),
    [
        ("Need it.", "I look.", (None, "Need it.\n\nI look.")),
        ("Need it.", "", ("Need it.", "")),
        (None, "I look.", (None, "I look.")),
    ],
)
def test_a_thought_that_is_refused_beside_a_text_begins_it(thought, text, expected):
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    message: Message = {"role": "assistant", "content": text, "tool_calls": [call]}
    if thought is not None:
        message["reasoning_content"] = thought
    spelled = Spelling(joins_thoughts=True).spelled(message)
    assert (spelled.get("reasoning_content"), spelled["content"]) == expected
    del message["tool_calls"]
    assert Spelling(joins_thoughts=True).spelled(message) == message


def test_short_ids_stand_for_long_ones():
    assert short_id("aB3456789") == "aB3456789"
    made = {short_id(f"call_{number}") for number in range(200)}
    assert len(made) == 200
    assert all(len(each) == 9 and each.isalnum() and each.isascii() for each in made)
    result = {"role": "tool", "content": "5", "tool_call_id": "call_7"}
    assert Spelling(has_short_ids=True).spelled(result)["tool_call_id"] == short_id("call_7")
    assert short_id(new := Spelling(has_short_ids=True).new_id()) == new
    assert Spelling().new_id().startswith("call_")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(None, "{}"), (" ", "{}"), ({"ü": 1}, '{"ü": 1}'), ('{"a":1}', '{"a":1}'), ("{br", "{br")],
)
def test_arguments_as_text(arguments, text):
    assert arguments_text(arguments) == text


def test_a_template_that_insists_on_short_ids_gets_one_where_there_is_none():
    spelling = Spelling(has_short_ids=True)
    call = {"type": "function", "function": {"name": "now", "arguments": "{}"}}
    spelled = spelling.spelled({"role": "assistant", "content": "", "tool_calls": [call]})
    result = spelling.spelled({"role": "tool", "content": "noon"})
    assert spelled["tool_calls"][0]["id"] == result["tool_call_id"] == short_id("")
    assert "tool_call_id" not in spelling.spelled({"role": "user", "content": "Hi"})
