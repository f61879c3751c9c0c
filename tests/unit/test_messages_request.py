"""Anthropic's requests as chat requests: what the call has, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from slime_router.api.anthropic.messages import RAW, arguments_of, input_json
from slime_router.api.anthropic.request import read_messages_request
from slime_router.api.chat.request import read_chat_request
from slime_router.api.chat.settings import SettingsReader
from slime_router.errors import BadRequest
from slime_router.replies.parsers import ReplyParsers
from slime_router.types import GenerateCall
from tests.integration.scripted import Bytes, asked
from tests.stack import NO_PARSERS

TURN = "turn_0123456789abcdef01234567"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "get_weather", "description": "Looks outside.", "input_schema": SCHEMA}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Looks outside.", "parameters": SCHEMA},
}
HI = {"role": "user", "content": "hi"}


class Forcing(ReplyParsers):
    """Parsers that can force a call, without SGLang."""

    def __init__(self) -> None:
        self.tools, self.reasoning, self._sglang = "any", None, None


def call_of(body: Mapping[str, Any], *, parsers: ReplyParsers = NO_PARSERS) -> GenerateCall:
    given = {"max_tokens": 9, "messages": [HI], **body}
    return read_messages_request(given, asked(), SettingsReader(Bytes(), "m", parsers)).call


def messages_of(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    return list(call_of({"messages": list(messages), **fields}).messages or ())


def refused(**body: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        call_of(body)
    return caught.value


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "cache_control": {"type": "ephemeral"}}


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": each} for each in texts]


def test_a_conversation_with_tools_makes_the_call_of_the_chat_door():
    """Same conversation, same call: one trajectory, whichever door it comes through."""
    use = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}
    made = call_of(
        {
            "system": [text("Be brief.")],
            "messages": [
                {"role": "user", "content": [text("Weather?")]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Rome it is.", "signature": "EqQB"},
                        text("I look."),
                        use,
                    ],
                },
                {"role": "user", "content": [result, text("Well?")]},
            ],
            "tools": [TOOL],
            "max_tokens": 64,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 0,
            "stop_sequences": ["END"],
            "metadata": {"user_id": "someone"},
        }
    )
    function = {"name": "get_weather", "arguments": {"city": "Rome"}}
    expected = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "Rome it is.",
                "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "user", "content": "Well?"},
        ],
        "tools": [CHAT_TOOL],
        "max_tokens": 64,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 0,
        "stop": ["END"],
        "metadata": {"user_id": "someone"},
    }
    settings = SettingsReader(Bytes(), "m", NO_PARSERS)
    chat = read_chat_request(expected, asked(), settings).calls[0]
    fields = ("messages", "template", "sampling", "reply", "session_id", "scope", "worker_fields")
    for field in fields:
        assert getattr(made, field) == getattr(chat, field), field
    assert made.session_id == "someone"
    assert made.rid.startswith("msg_")
    assert made.request_id == made.rid


def test_the_billing_line_of_claude_code_is_dropped_wherever_a_system_text_stands():
    billing = text("x-anthropic-billing-header: cc_version=2; cch=5f3a;")
    system = {"role": "system", "content": [billing, text("Later.")]}
    assert messages_of(HI, system, system=[billing, text("A"), text("B")]) == [
        {"role": "system", "content": parts("A", "B")},
        HI,
        {"role": "system", "content": "Later."},
    ]
    assert messages_of(HI, system=[billing]) == [HI]
    assert messages_of(HI, system=billing["text"]) == [HI]
    assert messages_of(HI, system="Be brief.")[0] == {"role": "system", "content": "Be brief."}


def test_the_parts_of_one_reply_are_joined_as_they_are():
    """Our own replies part a text only around thinking and calls: nothing stood in between."""
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    redacted = {"type": "redacted_thinking", "data": "xyz"}
    reply = {"role": "assistant", "content": [text("a "), thought, redacted, text("b"), thought]}
    (message, _) = messages_of(reply, HI)
    assert message == {"role": "assistant", "content": "a b", "reasoning_content": "hmhm"}


@pytest.mark.parametrize(
    ("signature", "turn"),
    [(TURN, TURN), (TURN + "-2", TURN + "-2"), ("EqQBCkgIARAB", None), (None, None), (7, None)],
)
def test_a_signature_of_ours_names_the_turn(signature, turn):
    thought = {"type": "thinking", "thinking": "hm", "signature": signature}
    (message, _) = messages_of({"role": "assistant", "content": [thought, text("a")]}, HI)
    assert message.get("turn") == turn
    assert ("turn" in message) == (turn is not None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sunny", "sunny"),
        ([text("sunny")], "sunny"),
        ([text("a"), text("b")], parts("a", "b")),
        ([], ""),
        (None, ""),
        ("absent", ""),
    ],
)
def test_a_tool_result_is_a_string_or_blocks_or_absent(content, expected):
    block = {"type": "tool_result", "tool_use_id": "t", "content": content, "is_error": True}
    if content == "absent":
        del block["content"]
    assert messages_of({"role": "user", "content": [block]}) == [
        {"role": "tool", "tool_call_id": "t", "content": expected}
    ]


def test_tool_results_and_the_text_among_them_stay_in_order():
    one = {"type": "tool_result", "tool_use_id": "1", "content": "a"}
    two = {"type": "tool_result", "tool_use_id": "2", "content": "b"}
    got = messages_of({"role": "user", "content": [one, text("Well?"), two]})
    assert [message["role"] for message in got] == ["tool", "user", "tool"]


def test_an_empty_reply_and_an_empty_question_are_messages_too():
    got = messages_of({"role": "user", "content": []}, {"role": "assistant", "content": []}, HI)
    assert got == [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, HI]


def test_a_last_message_of_the_assistant_is_gone_on_with():
    begun = {"role": "assistant", "content": "The answer is"}
    assert call_of({"messages": [HI, begun]}).template.continue_final_message
    assert not call_of({"messages": [HI, begun, HI]}).template.continue_final_message
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    called = {"role": "assistant", "content": [text("x"), use]}
    assert not call_of({"messages": [HI, called]}).template.continue_final_message


def test_tools_of_anthropics_service_are_dropped():
    served = ("web_search_20250305", "computer_20250124", "bash_20250124", "text_editor_20250728")
    theirs = [{"type": kind, "name": kind.partition("_2")[0]} for kind in served]
    call = call_of({"tools": [*theirs, TOOL, {**TOOL, "type": "custom", "name": "other"}]})
    names = [tool["function"]["name"] for tool in call.template.tools]
    assert names == ["get_weather", "other"]
    assert call.template.tools[0] == CHAT_TOOL
    assert call.reply.tools == call.template.tools
    assert call_of({"tools": theirs}).template.tools == ()


@pytest.mark.parametrize(
    ("choice", "shown", "forced", "named"),
    [
        (None, 2, False, None),
        ({"type": "auto"}, 2, False, None),
        ({"type": "any"}, 2, True, None),
        ({"type": "tool", "name": "other"}, 2, True, "other"),
        ({"type": "none"}, 0, False, None),
    ],
)
def test_the_choice_of_tools(choice, shown, forced, named):
    body = {"tools": [TOOL, {**TOOL, "name": "other"}], "tool_choice": choice}
    call = call_of(body, parsers=Forcing())
    assert len(call.template.tools) == shown
    assert (call.reply.is_forced, call.reply.named) == (forced, named)
    assert call.reply.is_parallel


@pytest.mark.parametrize("kind", ["auto", "any"])
def test_parallel_calls_can_be_switched_off(kind):
    choice = {"type": kind, "disable_parallel_tool_use": True}
    call = call_of({"tools": [TOOL], "tool_choice": choice}, parsers=Forcing())
    assert not call.reply.is_parallel


@pytest.mark.parametrize(
    ("thinking", "kwargs"),
    [
        (
            {"type": "enabled", "budget_tokens": 2048},
            {"thinking": True, "enable_thinking": True},
        ),
        ({"type": "disabled"}, {"thinking": False, "enable_thinking": False}),
        ({"type": "adaptive"}, {}),
        ({"type": "between_tools"}, {}),
        (None, {}),
    ],
)
def test_thinking_is_told_to_the_template_where_the_client_says_so(thinking, kwargs):
    assert call_of({"thinking": thinking}).template.kwargs == kwargs
    own = {"enable_thinking": 7, "thinking": 8, "x": 1}
    call = call_of({"thinking": thinking, "chat_template_kwargs": own})
    assert call.template.kwargs == own, "what is said in the template's own words wins"


def test_what_only_anthropics_service_knows_is_ignored():
    unknown = {
        "output_config": {"effort": "high"},
        "context_management": {"edits": []},
        "betas": ["x"],
        "service_tier": "auto",
        "n": 3,
        "container": None,
    }
    assert call_of(unknown).samples == 1
    assert call_of(unknown).sampling == call_of({}).sampling


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": 1}, "stream"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [HI, {"role": "tool", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]}]},
            "messages[0].content[0].name",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "1", "name": "f", "input": "{}"}],
                    }
                ]
            },
            "messages[0].content[0].input",
        ),
        ({"system": 7}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["a"] * 33}, "stop_sequences"),
        ({"tools": {}}, "tools"),
        ({"tools": [7]}, "tools[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "input_schema": []}]}, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "strict": "yes"}]}, "tools[0].strict"),
        ({"tools": [{**TOOL, "defer_loading": 1}]}, "tools[0].defer_loading"),
        ({"tools": [{**TOOL, "description": 7}]}, "tools[0].description"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        (
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
            "tool_choice.disable_parallel_tool_use",
        ),
        ({"thinking": "on"}, "thinking"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"thinking": {"type": []}}, "thinking.type"),
        ({"chat_template_kwargs": 7, "thinking": {"type": "enabled"}}, "chat_template_kwargs"),
    ],
)
def test_a_mistake_is_named_by_the_path_of_its_field(body, param):
    assert refused(**body).param == param


@pytest.mark.parametrize("kind", ["image", "container_upload", "video"])
def test_a_block_that_is_no_text_is_refused_by_its_name(kind):
    for role in ("user", "assistant"):
        exc = refused(messages=[HI, {"role": role, "content": [text("see"), {"type": kind}]}])
        assert exc.param == "messages[1].content[1].type"
        assert kind in exc.message
    inner = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": kind}]}
    exc = refused(messages=[{"role": "user", "content": [inner]}])
    assert exc.param == "messages[0].content[0].content[0].type"
    assert kind in exc.message


@pytest.mark.parametrize(
    "arguments",
    ['{"city": Paris}', "[1, 2]", "7", '"x"', '{"city": "Par', "{NaN}", '{"a": NaN}', " x\n"],
)
def test_arguments_that_are_no_object_are_wrapped_and_unwrapped(arguments):
    given = orjson.loads(input_json(arguments))
    assert given == {RAW: arguments}
    assert arguments_of(given) == arguments


@pytest.mark.parametrize("arguments", ['{"n": 123456789012345678901234567890}', '{"_raw": "{}"}'])
def test_an_object_stays_as_the_model_spelled_it(arguments):
    assert input_json(arguments) == arguments


@pytest.mark.parametrize("given", [{}, {RAW: "{}"}, {RAW: ""}, {RAW: 1}, {RAW: "x", "more": 1}])
def test_an_input_that_never_was_wrapped_is_not_unwrapped(given):
    assert arguments_of(given) == given
