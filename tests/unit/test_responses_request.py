"""Requests of the Responses API become the calls that the chat door would make."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.api.chat.request import read_chat_request
from slime_router.api.chat.settings import SettingsReader
from slime_router.api.media.pictures import PictureDoor
from slime_router.api.responses.request import ResponsesRequest, read_responses_request
from slime_router.api.responses.store import ResponseStore, Stored
from slime_router.api.token_ids import TokenNames
from slime_router.errors import BadRequest, NotFound
from slime_router.types import GenerateCall, Grammar
from tests.integration.scripted import Bytes, asked
from tests.stack import NO_PARSERS

PARAMETERS = {"type": "object", "properties": {"q": {"type": "string"}}}
FLAT = {"type": "function", "name": "f", "description": "d", "parameters": PARAMETERS}
CHAT_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": PARAMETERS},
}
CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"q":1}'}
CHAT_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"q":1}'}}

READER = SettingsReader(Bytes(), "tiny", NO_PARSERS)


def read(kept: ResponseStore | None = None, **body: Any) -> ResponsesRequest:
    given = {"input": "hi", **body}
    store = kept if kept is not None else ResponseStore(9)

    def names(by_id: bool | None) -> TokenNames:
        return TokenNames(Bytes(), by_id=bool(by_id))

    return read_responses_request(given, asked(), READER, store, names, PictureDoor(None).taken)


def messages(items: Any, **body: Any) -> list[Any]:
    return list(read(input=items, **body).call.messages or ())


def as_chat(**body: Any) -> GenerateCall:
    given = {"messages": [{"role": "user", "content": "hi"}], **body}
    return read_chat_request(given, asked(), READER).calls[0]


def said(text: str, role: str = "assistant", **more: Any) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **more}


def thought(text: str, handle: str | None = None) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "summary": [], "content": content, "encrypted_content": handle}


SAME_CALLS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"max_output_tokens": 7, "top_p": 0.9}, {"max_tokens": 7, "top_p": 0.9}),
    ({"tools": [FLAT]}, {"tools": [CHAT_TOOL]}),
    ({"tools": [{**FLAT, "strict": True}]}, {"tools": [
        {"type": "function", "function": {**CHAT_TOOL["function"], "strict": True}}]}),
    ({"tools": [FLAT], "tool_choice": "none"}, {"tools": [CHAT_TOOL], "tool_choice": "none"}),
    ({"tools": [FLAT], "parallel_tool_calls": False},
     {"tools": [CHAT_TOOL], "parallel_tool_calls": False}),
    ({"text": {"format": {"type": "json_object"}}},
     {"response_format": {"type": "json_object"}}),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": PARAMETERS}}},
     {"response_format": {"type": "json_schema", "json_schema": {
         "name": "n", "schema": PARAMETERS}}}),
    ({"top_k": 3, "history": "template"}, {"top_k": 3, "history": "template"}),
    ({"prompt_cache_key": "s1"}, {"prompt_cache_key": "s1"}),
    ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
    ({"logprobs": 3, "n": 5, "include": ["reasoning.encrypted_content"], "x": {}}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("own", "chat"), SAME_CALLS)
def test_the_call_is_the_one_of_the_chat_door(own, chat):
    made, wanted = read(**own).call, as_chat(**chat)
    for name in ("messages", "template", "sampling", "reply", "history", "session_id", "scope",
                 "worker_fields", "stream", "top_logprobs"):  # fmt: skip
        assert getattr(made, name) == getattr(wanted, name), name


def test_a_grammar_is_sent():
    assert read(text={"format": {"type": "json_object"}}).call.sampling.grammar == Grammar(
        "json_schema", '{"type": "object"}'
    )


def test_one_turn_in_several_items_is_one_message():
    items = [
        {"role": "developer", "content": "d"},
        said("hi", "user"),
        thought("hm", "turn_1a"),
        said("I look."),
        CALL,
        {**CALL, "call_id": "call_2"},
        {"type": "function_call_output", "call_id": "call_1", "output": "one"},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
    ]
    assert messages(items, instructions="be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "turn": "turn_1a",
            "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "call_2"}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
        {
            "role": "tool",
            "tool_call_id": "call_2",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
    ]


@pytest.mark.parametrize("handle", [None, "turn_1"])
def test_white_space_before_a_thought_is_of_the_same_message(handle):
    """GLM's replies begin so; clients may drop what was thought."""
    turn = {"turn": handle} if handle else {}
    whole = {"role": "assistant", "content": "\n\nHello", **turn}
    thinking = {**whole, "reasoning_content": "Hm."}
    spoken = [said("\n"), thought("Hm.", handle), said("\nHello")]
    assert messages(spoken) == [thinking]
    assert messages([spoken[0], spoken[2]]) == [{"role": "assistant", "content": "\n\nHello"}]
    called = [said("\n"), thought("Hm.", handle), CALL]
    assert messages(called) == [{**thinking, "content": "\n", "tool_calls": [CHAT_CALL]}]


def test_replies_without_a_user_between_them_stay_apart():
    replies = messages([said("a"), said("b"), thought("x"), said("c"), thought("y"), said("d")])
    assert [m["content"] for m in replies] == ["a", "b", "c", "d"]
    blank = messages([thought("x"), said("\n"), said("b"), said("\n"), CALL, thought("y")])
    assert [m["content"] for m in blank] == ["\n", "b", "\n", None]
    same = messages([thought("x", "turn_1"), said("a"), thought("y", "turn_1"), said("b")])
    assert [m["content"] for m in same] == ["ab"]  # a model that thought twice
    two = messages([CALL, thought("x", "turn_1"), CALL, thought("y", "turn_2"), CALL])
    assert [m.get("turn") for m in two] == [None, "turn_1", "turn_2"]


def test_what_others_encrypted_is_no_handle():
    (reply,) = messages([thought("x", "gAAAA")])
    assert "turn" not in reply


def test_calls_of_other_kinds_become_calls_and_results():
    items = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": "***"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
        {"type": "local_shell_call", "call_id": "c2", "action": {"type": "exec"}},
        {"type": "local_shell_call_output", "id": "c2", "output": "ok"},
    ]
    got = messages(items)
    functions = [call["function"] for m in got for call in m.get("tool_calls", ())]
    assert functions == [
        {"name": "patch", "arguments": '{"input":"***"}'},
        {"name": "local_shell", "arguments": '{"type":"exec"}'},
    ]
    assert [m.get("tool_call_id") for m in got] == [None, "c1", None, "c2"]


def test_unsupported_tools_are_dropped_and_namespaces_opened():
    nested = {"type": "namespace", "name": "mcp", "description": "", "tools": [FLAT]}
    got = read(tools=[{"type": "web_search"}, {"type": "mcp", "server_label": "x"}, nested])
    assert got.call.template.tools == (CHAT_TOOL,)
    assert got.style.namespaces == {"f": "mcp"}
    allowed = {"type": "allowed_tools", "mode": "auto"}
    other = {**FLAT, "name": "g"}
    choice = {**allowed, "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]}
    assert read(tools=[FLAT, other], tool_choice=choice).call.template.tools == (CHAT_TOOL,)


def test_tools_of_one_name_are_told_apart_by_their_namespaces():
    def nested(name: str) -> dict[str, Any]:
        return {
            "type": "namespace",
            "name": name,
            "tools": [FLAT, {**FLAT, "name": f"only_{name}"}],
        }

    items = [
        {"type": "message", "role": "user", "content": "q"},
        {**CALL, "call_id": "call_1", "namespace": "left"},
        {**CALL, "call_id": "call_2"},
        {**CALL, "call_id": "call_3", "namespace": "left", "name": "only_left"},
        {"type": "function_call_output", "call_id": "call_1", "output": "ok"},
    ]
    got = read(input=items, tools=[FLAT, nested("left"), nested("right")])
    shown = [tool["function"]["name"] for tool in got.call.template.tools]
    assert shown == ["f", "left__f", "only_left", "right__f", "only_right"]
    calls = [
        each["function"]["name"]
        for m in got.call.messages or ()
        for each in m.get("tool_calls", ())
    ]
    assert calls == ["left__f", "f", "only_left"]
    assert got.style.names == {"left__f": "f", "right__f": "f"}
    assert got.style.namespaces["right__f"] == "right"
    assert [tool["name"] for tool in got.style.echo["tools"]] == [
        "f", "f", "only_left", "f", "only_right"
    ]  # fmt: skip


def stored() -> ResponseStore:
    kept = ResponseStore(9)
    item = {**said("yes", id="msg_1"), "turn": "turn_7"}
    kept.put(
        Stored({"id": "resp_1"}, ({"type": "message", "role": "user", "content": "q"},), (item,))
    )
    return kept


def test_the_response_that_was_not_used_for_longest_is_forgotten():
    kept = ResponseStore(2)
    for name in ("resp_1", "resp_2"):
        kept.put(Stored({"id": name}, (), ()))
    kept.get("resp_1")
    kept.put(Stored({"id": "resp_3"}, (), ()))
    with pytest.raises(NotFound):
        kept.get("resp_2")
    assert [kept.get(name).response["id"] for name in ("resp_1", "resp_3")] == ["resp_1", "resp_3"]


def test_the_stored_conversation_comes_before_the_input_and_names_its_turn():
    got = read(stored(), previous_response_id="resp_1", instructions="new").call.messages
    assert got == (
        {"role": "system", "content": "new"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "yes", "turn": "turn_7"},
        {"role": "user", "content": "hi"},
    )
    reference = {"type": "item_reference", "id": "msg_1"}
    (reply,) = read(stored(), input=[reference]).call.messages or ()
    assert reply["turn"] == "turn_7"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": 3}, "input", "invalid_type"),
        ({"input": [3]}, "input[0]", "invalid_type"),
        ({"input": [{"x": 1}]}, "input[0].type", "missing_required_parameter"),
        ({"input": [{"type": "alien"}]}, "input[0].type", "invalid_value"),
        ({"input": [{"role": "alien", "content": ""}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].type", "invalid_value"),
        ({"input": [{**CALL, "call_id": None}]}, "input[0].call_id", "missing_required_parameter"),
        ({"input": [{**CALL, "arguments": []}]}, "input[0].arguments", "invalid_type"),
        ({"tools": [{"type": "x"}, {"type": "function"}]}, "tools[1].name",
         "missing_required_parameter"),
        ({"background": True}, "background", "unsupported_value"),
        ({"conversation": "c"}, "conversation", "unsupported_value"),
        ({"previous_response_id": "x"}, "previous_response_id", "previous_response_not_found"),
        ({"store": "yes"}, "store", "invalid_type"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(body, param, code):
    with pytest.raises(BadRequest) as caught:
        read(**body)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_paths_count_from_the_requests_own_input():
    with pytest.raises(BadRequest) as caught:
        read(stored(), previous_response_id="resp_1", input=[{"type": "alien"}])
    assert caught.value.param == "input[0].type"
    with pytest.raises(NotFound):
        read(input=[{"type": "item_reference", "id": "x"}])


def test_the_store_forgets_the_oldest_but_keeps_what_others_continue():
    kept = ResponseStore(2)
    step = None
    for number in range(3):
        asked_item = {"type": "message", "role": "user", "content": str(number)}
        reply = said(f"r{number}", id=f"msg_{number}")
        step = Stored({"id": f"resp_{number}"}, (asked_item,), (reply,), step)
        kept.put(step)
    assert len(kept) == 2
    for lost in (lambda: kept.get("resp_0"), lambda: kept.item("msg_0", "x")):
        with pytest.raises(NotFound):
            lost()
    assert len(kept.get("resp_2").conversation()) == 6
    kept.delete("resp_2")
    assert len(kept) == 1


def test_stored_bytes_have_a_budget_and_what_is_continued_counts_until_it_goes():
    def response(name: str, length: int, previous: Stored | None = None) -> Stored:
        item = {"type": "message", "role": "user", "content": "x" * length}
        return Stored({"id": name}, (item,), (), previous)

    kept = ResponseStore(100, 10_000)
    first = response("resp_1", 4_000)
    kept.put(first)
    kept.put(response("resp_2", 2_000, first))
    kept.delete("resp_1")
    assert 6_000 < kept.size < 6_500, "the second continues it"
    kept.put(response("resp_3", 3_000))
    assert len(kept) == 2
    kept.put(response("resp_4", 3_000))
    with pytest.raises(NotFound):
        kept.get("resp_2")
    assert (len(kept), kept.forgotten) == (2, 1)
    assert 6_000 < kept.size < 6_500
    kept.put(response("resp_5", 20_000))
    assert (len(kept), kept.size, kept.forgotten) == (0, 0, 4)


def test_what_was_forgotten_while_it_was_continued_counts_again():
    kept = ResponseStore(1, 10_000)
    first = Stored({"id": "resp_1"}, ({"type": "message", "content": "x" * 1_000},), ())
    kept.put(first)
    kept.put(Stored({"id": "resp_2"}, (), ()))
    assert kept.size < 100
    kept.put(Stored({"id": "resp_3"}, (), (), first))
    assert 1_000 < kept.size < 1_200


def test_halves_of_emojis_have_a_size_too():
    kept = ResponseStore(9)
    kept.put(Stored({"id": "resp_1"}, ({"type": "message", "content": "\ud800" * 100},), ()))
    assert kept.size >= 100
