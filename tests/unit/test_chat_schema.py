"""What a chat request may hold, and which 400 it gets otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.api.chat.request import read_chat_request
from slime_router.api.chat.settings import SettingsReader
from slime_router.api.chat.tools import read_tools, tool_choice
from slime_router.errors import BadRequest
from slime_router.types import Grammar, Sampling, TemplateOptions
from tests.integration.scripted import Bytes, asked
from tests.stack import NO_PARSERS

USER = {"role": "user", "content": "hi"}
TOOL = {"function": {"parameters": {"z": 1, "a": 2}, "name": "f"}, "type": "function"}


def read(body: dict[str, Any], headers: dict[str, str] | None = None):
    return read_chat_request(
        {"messages": [USER], **body},
        asked(**headers or {}),
        SettingsReader(Bytes(), "default", NO_PARSERS),
    )


def call_of(body: dict[str, Any], headers: dict[str, str] | None = None):
    return read(body, headers).calls[0]


def said_by(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **message}]}


def called(**call: Any) -> dict[str, Any]:
    whole = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, **call}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [whole]}]}


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{**TOOL, **fields}]}


BAD: list[tuple[dict[str, Any], str, str]] = [
    # messages
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": {}}, "messages", "invalid_type"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    ({"messages": [USER, None]}, "messages[1]", "invalid_type"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    (said_by(role="robot"), "messages[0].role", "invalid_value"),
    (said_by(role=1), "messages[0].role", "invalid_type"),
    (said_by(content=None), "messages[0].content", "missing_required_parameter"),
    (said_by(content=123), "messages[0].content", "invalid_type"),
    (said_by(content={"text": "x"}), "messages[0].content", "invalid_type"),
    (said_by(content=["x"]), "messages[0].content[0]", "invalid_type"),
    (said_by(content=[{"text": "x"}]), "messages[0].content[0].type", "missing_required_parameter"),
    (
        said_by(content=[{"type": "text"}]),
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    (said_by(content=[{"type": "text", "text": 1}]), "messages[0].content[0].text", "invalid_type"),
    (
        said_by(content=[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]),
        "messages[0].content[1].type",
        "invalid_value",
    ),
    (said_by(content=[{"type": "input_audio"}]), "messages[0].content[0].type", "invalid_value"),
    (said_by(content=[{"type": ["text"]}]), "messages[0].content[0].type", "invalid_value"),
    (said_by(name=123), "messages[0].name", "invalid_type"),
    (said_by(prefix="yes"), "messages[0].prefix", "invalid_type"),
    (said_by(prefix=True), "messages[0].prefix", "invalid_value"),
    (said_by(tool_calls={}), "messages[0].tool_calls", "invalid_type"),
    (said_by(tool_calls=["f"]), "messages[0].tool_calls[0]", "invalid_type"),
    (called(id=7), "messages[1].tool_calls[0].id", "invalid_type"),
    (called(type="custom"), "messages[1].tool_calls[0].type", "invalid_value"),
    (called(function=None), "messages[1].tool_calls[0].function", "missing_required_parameter"),
    (called(function="f"), "messages[1].tool_calls[0].function", "invalid_type"),
    (called(function={}), "messages[1].tool_calls[0].function.name", "missing_required_parameter"),
    (called(function={"name": 1}), "messages[1].tool_calls[0].function.name", "invalid_type"),
    (
        called(function={"name": "f", "arguments": []}),
        "messages[1].tool_calls[0].function.arguments",
        "invalid_type",
    ),
    # tools
    ({"tools": {}}, "tools", "invalid_type"),
    ({"tools": [1]}, "tools[0]", "invalid_type"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type", "missing_required_parameter"),
    (tool(type="custom"), "tools[0].type", "invalid_value"),
    (tool(function=None), "tools[0].function", "missing_required_parameter"),
    (tool(function={}), "tools[0].function.name", "missing_required_parameter"),
    (tool(function={"name": "f", "parameters": 1}), "tools[0].function.parameters", "invalid_type"),
    (
        tool(function={"name": "f", "description": 1}),
        "tools[0].function.description",
        "invalid_type",
    ),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tool_choice": "maybe"}, "tool_choice", "invalid_value"),
    ({"tool_choice": 1}, "tool_choice", "invalid_value"),
    ({**tool(), "tool_choice": "required"}, "tool_choice", "invalid_value"),
    (
        {**tool(), "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "invalid_value",
    ),
    # sampling
    ({"model": 1}, "model", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_type"),
    ({"max_tokens": "1"}, "max_tokens", "invalid_type"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "integer_below_min_value"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
    ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ({"temperature": "0"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"temperature": float("nan")}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "decimal_below_min_value"),
    ({"top_p": 1.1}, "top_p", "decimal_above_max_value"),
    ({"top_k": -2}, "top_k", "integer_below_min_value"),
    ({"min_p": 1.5}, "min_p", "decimal_above_max_value"),
    ({"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "decimal_below_min_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value"),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 129}, "n", "integer_above_max_value"),
    ({"seed": 2**63}, "seed", "integer_above_max_value"),
    ({"seed": 1.0}, "seed", "invalid_type"),
    ({"stop": ["a", 1]}, "stop[1]", "invalid_type"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", ""]}, "stop", "invalid_value"),
    ({"stop": ["a"] * 33}, "stop", "invalid_value"),
    ({"stop": {"a": 1}}, "stop", "invalid_type"),
    ({"stop_regex": "a" * 257}, "stop_regex", "invalid_value"),
    (
        {"stop_regex": ["(?i)x1" + "[Ā-￾]" * 20 + str(n) for n in range(20)]},
        "stop_regex",
        "invalid_value",
    ),
    ({"stop_regex": ["a+", "("]}, "stop_regex", "invalid_value"),
    ({"stop_regex": "a{99999999999}"}, "stop_regex", "invalid_value"),
    ({"stop_token_ids": [260]}, "stop_token_ids", "invalid_value"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "invalid_value"),
    ({"stop_token_ids": [True]}, "stop_token_ids[0]", "invalid_type"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"260": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1" * 5000: 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "decimal_above_max_value"),
    ({"logit_bias": {"1": "x"}}, "logit_bias.1", "invalid_type"),
    ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
    ({"logprobs": 21}, "logprobs", "invalid_type"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "integer_above_max_value"),
    ({"top_logprobs": -1, "logprobs": True}, "top_logprobs", "integer_below_min_value"),
    ({"stream": "true"}, "stream", "invalid_type"),
    ({"stream_options": 1}, "stream_options", "invalid_type"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
    ({"ignore_eos": "no"}, "ignore_eos", "invalid_type"),
    # grammars
    ({"response_format": "json"}, "response_format", "invalid_type"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        "response_format.json_schema.schema",
        "invalid_value",
    ),
    (
        {"response_format": {"type": "structural_tag", "structures": [{"schema": {"$ref": "#"}}]}},
        "response_format",
        "invalid_value",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema.schema",
        "missing_required_parameter",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
        "response_format.json_schema.schema",
        "invalid_type",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"strict": 1, "schema": {}}}},
        "response_format.json_schema.strict",
        "invalid_type",
    ),
    ({"regex": "(a|b)?" * 4000}, "regex", "invalid_value"),
    ({"ebnf": "é" * 8193}, "ebnf", "invalid_value"),
    ({"regex": "a", "ebnf": "b"}, "response_format", "invalid_value"),
    (
        {"regex": "a", "response_format": {"type": "json_object"}},
        "response_format",
        "invalid_value",
    ),
    # template
    ({"chat_template": "{{ 1 }}"}, "chat_template", "invalid_value"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs", "invalid_type"),
    (
        {"chat_template_kwargs": {"chat_template": "x"}},
        "chat_template_kwargs.chat_template",
        "invalid_value",
    ),
    ({"continue_final_message": True}, "continue_final_message", "invalid_value"),
    (
        {
            "messages": [USER, {"role": "assistant", "content": "a"}],
            "continue_final_message": True,
            "add_generation_prompt": True,
        },
        "continue_final_message",
        "invalid_value",
    ),
    # ids
    ({"input_ids": []}, "input_ids", "invalid_value"),
    ({"input_ids": "1"}, "input_ids", "invalid_type"),
    ({"input_ids": [260]}, "input_ids", "invalid_value"),
    ({"input_ids": [2**40]}, "input_ids", "invalid_value"),
    ({"prompt_token_ids": [1, -1]}, "prompt_token_ids", "invalid_value"),
    ({"prompt_token_ids": [1, True]}, "prompt_token_ids", "invalid_type"),
    ({"prompt_token_ids": [1.0]}, "prompt_token_ids", "invalid_type"),
    # the rest
    ({"history": "all"}, "history", "invalid_value"),
    ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
    ({"reasoning_effort": True}, "reasoning_effort", "invalid_value"),
    ({"modalities": ["text", "audio"]}, "modalities", "invalid_value"),
    ({"cache_salt": 1}, "cache_salt", "invalid_type"),
]


@pytest.mark.parametrize(("body", "param", "code"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_field_is_a_400_that_names_it(body, param, code):
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        tool(type="custom"),
        called(type="custom"),
        {**tool(), "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
    ],
)
def test_whoever_has_custom_tools_is_sent_to_the_api_that_takes_them(body):
    with pytest.raises(BadRequest, match=r"Custom tools, .* need /v1/responses"):
        read(body)


GOOD: list[dict[str, Any]] = [
    {
        "unknown": [{"any": None}],
        "store": True,
        "user": "u",
        "metadata": {"a": "b"},
        "service_tier": "x",
    },
    {"stop": None, "tools": None, "stream_options": None, "logit_bias": None, "n": None},
    {"tools": [], "stop": [], "stop_token_ids": [], "modalities": ["text"]},
    {"reasoning_effort": "high", "verbosity": "low", "parallel_tool_calls": False},
    {"reasoning_effort": 0.5, "temperature": 2, "top_p": 1, "seed": -(2**63)},
    {"response_format": {"type": "text"}, "regex": "a"},
    {"top_logprobs": 0},
    {"messages": [USER, {"role": "assistant"}]},
    {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}]},
    {"messages": [{"role": "tool", "content": None}, {"role": "function", "name": "f"}]},
    said_by(content=[], provider_specific_fields={"x": 1}, function_call=None, audio=None),
    called(function={"name": "f", "arguments": {"a": 1}}),
    called(function={"name": "f", "arguments": "{not json"}),
]


@pytest.mark.parametrize("body", GOOD, ids=lambda value: str(value)[:60])
def test_what_real_clients_send_is_taken(body):
    assert read(body).calls


def test_nothing_said_is_nothing_told():
    """A worker gets only what the client said; defaults are the worker's."""
    call = call_of({})
    assert call.sampling == Sampling()
    assert call.template == TemplateOptions()
    assert call.worker_fields == {}
    assert list(call.headers) == ["x-request-id"], "the router's own name for the request"
    assert (call.scope, call.session_id, call.history, call.top_logprobs) == ("", None, None, 0)


def test_each_sampling_field_reaches_its_place():
    sampling = call_of(
        {
            "max_completion_tokens": 5,
            "max_tokens": 9,
            "min_tokens": 1,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 0,
            "min_p": 0.1,
            "presence_penalty": 1,
            "frequency_penalty": -1,
            "repetition_penalty": 1.5,
            "stop": "END",
            "stop_token_ids": [3],
            "stop_regex": ["a+"],
            "ignore_eos": True,
            "seed": 7,
            "logit_bias": {"5": -100},
            "skip_special_tokens": False,
            "include_stop_str_in_output": True,
            "custom_params": {"a": 1},
            "ebnf": "root ::= 'a'",
        }
    ).sampling
    assert sampling == Sampling(
        max_tokens=5,
        min_tokens=1,
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        stop=("END",),
        stop_token_ids=(3,),
        stop_regex=("a+",),
        ignore_eos=True,
        seed=7,
        logit_bias={"5": -100},
        skip_special_tokens=False,
        keep_stop=True,
        grammar=Grammar("ebnf", "root ::= 'a'"),
        custom_params={"a": 1},
    )


@pytest.mark.parametrize(
    ("wanted", "grammar"),
    [
        ({"type": "json_object"}, Grammar("json_schema", '{"type": "object"}')),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"b": 1, "a": 2}}},
            Grammar("json_schema", '{"b":1,"a":2}'),
        ),
        ({"type": "json_schema", "schema": {"b": 1}}, Grammar("json_schema", '{"b":1}')),
        (
            {"type": "structural_tag", "format": {}},
            Grammar("structural_tag", '{"type":"structural_tag","format":{}}'),
        ),
        ({"type": "text"}, None),
    ],
)
def test_a_response_format_becomes_a_grammar(wanted, grammar):
    assert call_of({"response_format": wanted}).sampling.grammar == grammar


def test_messages_and_tools_are_handed_on_as_written():
    """Key order counts: templates print tools as they stand."""
    message = {"content": [{"text": "a", "type": "text"}], "extra": 1, "role": "user"}
    call = call_of({"messages": [message], "tools": [TOOL]})
    assert call.messages is not None
    assert call.messages[0] is message
    assert call.template.tools[0] is TOOL


def test_a_tool_that_is_deferred_says_so_where_templates_look():
    function = {"name": "f", "parameters": {}}
    within = {**function, "defer_loading": True}
    tool = {"type": "function", "function": function}
    assert read_tools({"tools": [tool]}) == (tool,)
    for given in ({**tool, "defer_loading": True}, {"type": "function", "function": within}):
        assert read_tools({"tools": [given]})[0]["function"] == within
    said = {**tool, "function": {**function, "defer_loading": False}, "defer_loading": True}
    assert read_tools({"tools": [said]}) == (said,), "the function's own counts"


def test_a_role_is_written_in_lower_case():
    message = {"role": "User", "content": "x"}
    assert call_of({"messages": [message]}).messages == ({"role": "user", "content": "x"},)
    assert message["role"] == "User"


@pytest.mark.parametrize("by_flag", [True, False])
def test_a_final_message_is_continued(by_flag):
    final: dict[str, Any] = {"role": "assistant", "content": "a"}
    body = {"continue_final_message": True} if by_flag else {}
    if not by_flag:
        final["prefix"] = True
    template = call_of({"messages": [USER, final], **body}).template
    assert template.continue_final_message
    assert not template.add_generation_prompt


def test_tool_choice_decides_which_tools_are_shown():
    other = {"type": "function", "function": {"name": "g"}}
    tools = {"tools": [TOOL, other]}
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert call_of(tools).template.tools == (TOOL, other)
    assert call_of({**tools, "tool_choice": "auto"}).template.tools == (TOOL, other)
    assert call_of({**tools, "tool_choice": "none"}).template.tools == ()
    assert call_of({**tools, "tool_choice": choice}).template.tools == (other,)


def test_ids_bypass_the_messages():
    call = call_of({"messages": None, "prompt_token_ids": [1, 2]})
    assert call.messages is None
    assert call.input_ids is not None
    assert call.input_ids.tolist() == [1, 2]


def test_what_parts_the_caches_is_the_scope_and_reaches_the_worker():
    scopes = {
        call_of(body).scope
        for body in ({"cache_salt": "x"}, {"extra_key": "x"}, {"lora_path": "x"}, {})
    }
    assert len(scopes) == 4
    salted = call_of({"cache_salt": "x", "extra_key": "y"})
    assert salted.worker_fields == {"cache_salt": "x", "extra_key": "xy"}


def test_a_header_names_the_session_before_the_body():
    body = {"session_id": "b", "metadata": {"session_id": "m"}}
    assert call_of(body, {"x-session-id": "h", "x-smg-routing-key": "k"}).session_id == "k"
    assert call_of(body, {"session-id": "h"}).session_id == "h"
    assert call_of(body).session_id == "b"
    assert call_of({"metadata": {"session_id": "m"}}).session_id == "m"


@pytest.mark.parametrize("name", ["", "a" * 513, "a\nb", 5, None])
def test_an_unfit_session_name_is_none(name):
    assert call_of({"session_id": name}).session_id is None


def test_only_headers_meant_for_workers_are_forwarded():
    headers = {"X-SMG-Routing-Key": "k", "Authorization": "secret", "x-override-a": "1"}
    sent = dict(call_of({}, headers).headers)
    assert sent.pop("x-request-id")
    assert sent == {"X-SMG-Routing-Key": "k", "x-override-a": "1"}


def test_each_choice_is_a_call_of_its_own():
    calls = read({"n": 3}).calls
    assert len({call.rid for call in calls}) == len({call.turn_id for call in calls}) == 3
    assert all(call.turn_id.startswith("turn_") and len(call.turn_id) == 29 for call in calls)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "endless"}}], ids=str
)
def test_a_call_of_a_tool_whose_parameters_have_no_end_cannot_be_forced(choice):
    """The grammar would have no next token; a call that nothing forces has no grammar."""
    function = {"name": "endless", "parameters": {"$ref": "#"}, "strict": True}
    tools = (TOOL, {"type": "function", "function": function})
    with pytest.raises(BadRequest) as refused:
        tool_choice(tools, choice, can_force=True)
    assert refused.value.param == "tools[1].function.parameters"
    assert tool_choice(tools, "auto", can_force=True).shown == tools
    named = {"type": "function", "function": {"name": "f"}}
    assert tool_choice(tools, named, can_force=True).callable == (TOOL,)
    lax = (TOOL, {"type": "function", "function": {**function, "strict": False}})
    assert tool_choice(lax, choice, can_force=True).is_forced, "its grammar takes any JSON"
