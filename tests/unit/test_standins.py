"""Stand-ins for replies: they carry their calls, and less where a template refuses them."""

from __future__ import annotations

from typing import Any

from slime_router.template.stand_ins import SENTINEL, Form, View, draw, unsaid_word
from slime_router.types import Message


def call(name: str, arguments: Any = '{"city": "Paris"}') -> dict[str, Any]:
    return {"id": f"id_{name}", "function": {"name": name, "arguments": arguments}}


def reply(*calls: dict[str, Any], text: str = "sampled") -> Message:
    return {"role": "assistant", "content": text, **({"tool_calls": [*calls]} if calls else {})}


USER: Message = {"role": "user", "content": "Hi"}
RESULT: Message = {"role": "tool", "content": "sunny", "tool_call_id": "id_f"}


def prints(messages: list[Message], *, max_calls: int = 9) -> str | None:
    text = ""
    for message in messages:
        calls = message.get("tool_calls", [])
        if len(calls) > max_calls:
            return None
        text += f"<{message['role']}>{message['content']}"
        for each in calls:
            text += f"[{each['function']['name']} {each['function']['arguments']}]"
    return text


def test_a_stand_in_has_its_calls_and_none_of_its_text():
    drawing = draw(View((USER, reply(call("f"), call("g")), RESULT), 1), prints)
    assert drawing is not None
    assert drawing.form is Form.ALL_CALLS
    assert drawing.parts == (
        "<user>Hi<assistant>[f {'city': 'Paris'}][g {'city': '",
        "'}]<tool>sunny",
    )


def test_broken_arguments_are_replaced():
    drawing = draw(View((USER, reply(call("f", "{broken"), call("g", ""))), 1), prints)
    assert drawing is not None
    assert drawing.parts[0] == "<user>Hi<assistant>[f {}][g {'value': '"


def test_less_is_tried_where_calls_are_refused_or_not_printed():
    view = View((USER, reply(call("f"), call("g")), RESULT), 1)
    first = draw(view, lambda messages: prints(messages, max_calls=1))
    assert first is not None
    assert (first.form, first.behind) == (Form.FIRST_CALL, "'}]<tool>sunny")
    silent = draw(view, lambda messages: prints(messages, max_calls=0))
    assert silent is not None
    assert (silent.form, silent.behind) == (Form.NO_CALLS, "<tool>sunny")
    assert draw(view, lambda messages: None) is None


def test_every_reply_up_to_the_held_one_is_replaced_and_no_later_one():
    messages = (USER, reply(), USER, reply(), USER, reply(text="not sampled"))
    drawing = draw(View(messages, 3), prints)
    assert drawing is not None
    assert drawing.parts == (
        "<user>Hi<assistant>",
        "<user>Hi<assistant>",
        "<user>Hi<assistant>not sampled",
    )


def test_nobody_can_know_the_word():
    words = {unsaid_word("sentinel") for _ in range(100)} | {SENTINEL}
    assert len(words) == 101
    assert all(word.isalnum() and len(word) > 20 for word in words)


def test_a_text_may_hold_a_word_that_looks_like_it():
    messages = ({"role": "user", "content": "Zq7sentinel7qZ"}, reply(), USER)
    drawing = draw(View(messages, 1), prints)
    assert drawing is not None
    assert drawing.parts == ("<user>Zq7sentinel7qZ<assistant>", "<user>Hi")


def test_a_client_that_writes_the_word_itself_gets_no_drawing():
    messages = ({"role": "user", "content": SENTINEL}, reply(), USER)
    assert draw(View(messages, 1), prints) is None


def test_a_view_keeps_the_first_user_and_what_stands_before_it():
    system: Message = {"role": "system", "content": "Be short"}
    messages = [system, USER, reply(), USER, reply(), RESULT, reply(), USER]
    view = View.of(messages, 6, 4)
    assert view.messages == (system, USER, *messages[4:])
    assert view.messages[view.index] is messages[6]
    assert view.groups() == [[system, USER], [RESULT], [USER]]
    assert View.of(messages, 6, 0).messages == tuple(messages)
