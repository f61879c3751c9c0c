"""Every field that a chat client may send: where the worker gets it, or which 400 it gets."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import orjson
import pytest

from slime_router.testing.script import SAMPLING_KEYS
from tests.integration.gateway import CHAT, served, user
from tests.stack import tiny_tokenizer
from tests.tiny import CHATML

COMPLETIONS, MESSAGES, RESPONSES = "/v1/completions", "/v1/messages", "/v1/responses"
ASK: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [user("Hi")]},
    COMPLETIONS: {"prompt": "Hi"},
    MESSAGES: {"messages": [user("Hi")], "max_tokens": 8},
    RESPONSES: {"input": "Hi"},
}
TOP_LEVEL = {  # what the router itself sends
    "input_ids",
    "rid",
    "return_logprob",
    "stream",
    "sampling_params",
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FUNCTION = {"name": "f", "parameters": SCHEMA}

# The field, and what it becomes among the sampling parameters.
SAMPLED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_new_tokens": 5}),
    ({"max_tokens": 9}, {"max_new_tokens": 9}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"temperature": None}, {}),
    ({"top_p": 0.5}, {"top_p": 0.5}),
    ({"top_k": 0}, {"top_k": -1}),
    ({"top_k": 5}, {"top_k": 5}),
    ({"min_p": 0.5}, {"min_p": 0.5}),
    ({"stop": "END"}, {"stop": ["END"]}),
    ({"stop": []}, {}),
    ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2.0}),
    ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    ({"logit_bias": {"5": -100}}, {"logit_bias": {"5": -100.0}}),
    ({"seed": 7}, {"sampling_seed": 7}),
    ({"min_tokens": 2, "max_tokens": 5}, {"min_new_tokens": 2}),
    ({"stop_token_ids": [7]}, {"stop_token_ids": [7]}),
    ({"stop_regex": "a+"}, {"stop_regex": ["a+"]}),
    ({"ignore_eos": True}, {"ignore_eos": True}),
    ({"no_stop_trim": True}, {"no_stop_trim": True}),
    ({"include_stop_str_in_output": True}, {"no_stop_trim": True}),
    ({"custom_params": {"a": 1}}, {"custom_params": {"a": 1}}),
    ({"spaces_between_special_tokens": False}, {"spaces_between_special_tokens": False}),
    (
        {"chat_template_kwargs": {"spaces_between_special_tokens": False}},
        {"spaces_between_special_tokens": False},
    ),
    ({"regex": "a+"}, {"regex": "a+"}),
    ({"ebnf": 'root ::= "a"'}, {"ebnf": 'root ::= "a"'}),
    ({"response_format": {"type": "json_object"}}, {"json_schema": '{"type": "object"}'}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}},
        {"json_schema": "{}"},
    ),
    ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": orjson.dumps(SCHEMA).decode()}),
    ({"guided_json": '{"type":"object"}'}, {"json_schema": '{"type":"object"}'}),
    ({"guided_regex": "a+"}, {"regex": "a+"}),
    ({"guided_choice": ["a.b", "c d"]}, {"regex": "(a\\.b)|(c d)"}),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, {"ebnf": 'root ::= "a"'}),
    ({"structured_outputs": {"json_object": True}}, {"json_schema": '{"type": "object"}'}),
    ({"structured_outputs": {"json_object": False, "regex": "a+"}}, {"regex": "a+"}),
]

UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
# The field, and what it becomes at the top level.
PASSED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"priority": 3}, {"priority": 3}),
    ({"session_params": {"id": "x"}}, {"session_params": {"id": "x"}}),
    ({"custom_logit_processor": "{}"}, {"custom_logit_processor": "{}"}),
    ({"custom_labels": {"a": "b"}}, {"custom_labels": {"a": "b"}}),
    ({"routed_dp_rank": 1}, {"routed_dp_rank": 1}),
    ({"data_parallel_rank": 1}, {"routed_dp_rank": 1}),
    ({"bootstrap_host": "h", "bootstrap_room": 2**40}, {"bootstrap_room": 2**40}),
    ({"bootstrap_port": 8998}, {"bootstrap_port": 8998}),
    ({"rid": "mine"}, {"rid": "#4:mine"}),
    ({"rid": UUID}, {"rid": UUID}),
    ({"rid": UUID.replace("-", "")}, {"rid": UUID.replace("-", "")}),
    ({"rid": UUID[:-1]}, {"rid": f"#35:{UUID[:-1]}"}),
    ({"rid": f"{UUID}-0"}, {"rid": f"#38:{UUID}-0"}),
]
PASSED_OF_CHAT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"disagg_prefill_dp_rank": 2}, {"disagg_prefill_dp_rank": 2}),
    ({"thinking_token_budget": 9}, {"max_thinking_tokens": 9}),
    ({"return_hidden_states": True}, {"return_hidden_states": True}),
    ({"return_routed_experts": True}, {"return_routed_experts": True}),
    ({"logprobs": True, "top_logprobs": 3}, {"return_logprob": True, "top_logprobs_num": 3}),
]
IGNORED: list[dict[str, Any]] = [
    {"verbosity": "low", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"},
    {"prediction": {"type": "content"}, "web_search_options": {}, "safety_identifier": "x"},
    {"prompt_cache_retention": "24h", "moderation": {}, "user": "u", "prompt_cache_key": "k"},
    {"modalities": ["text"], "audio": None, "stream_options": {"include_usage": True, "x": 1}},
    {"bad_words": ["a"], "best_of": 2, "use_beam_search": True, "length_penalty": 1.0},
    {"vllm_xargs": {}, "stream_interval": 4, "add_special_tokens": False, "echo": False},
    {"reasoning_effort": "high"},
    {"reasoning_effort": 0.5, "reasoning": {"effort": "low"}},
    {"reasoning": {"enabled": True}, "thinking": {"type": "enabled"}},
    {"documents": [{"text": "a"}], "parallel_tool_calls": True, "tools": [], "functions": []},
    {"beam_width": 4, "watermark": 1, "n_probs": 5, "unheard_of": {"a": [1]}},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": 1}, "model"),
    ({"messages": []}, "messages"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"stop": ["a"] * 33}, "stop"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"seed": 2**63}, "seed"),
    ({"logprobs": 21}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": {"name": "f"}}, "functions"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"reasoning_effort": True}, "reasoning_effort"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"stop_token_ids": [2**40]}, "stop_token_ids"),
    ({"regex": "a", "ebnf": "b"}, "response_format"),
    ({"regex": "a", "guided_regex": "b"}, "regex"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_choice": [1]}, "guided_choice"),
    ({"guided_regex": "a" * 2**17}, "guided_regex"),
    ({"structured_outputs": []}, "structured_outputs"),
    ({"structured_outputs": "a+"}, "structured_outputs"),
    ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
    ({"structured_outputs": {"structural_tag": 5}}, "structured_outputs.structural_tag"),
    ({"functions": 0}, "functions"),
    ({"functions": [5]}, "functions[0]"),
    ({"functions": [FUNCTION, {"name": 5}]}, "functions[1].name"),
    ({"functions": [FUNCTION], "function_call": "required"}, "function_call"),
    ({"function_call": False}, "function_call"),
    ({"reasoning": "high"}, "reasoning"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"reasoning": {"enabled": 1}}, "reasoning.enabled"),
    ({"thinking_token_budget": "x"}, "thinking_token_budget"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    (
        {"chat_template_kwargs": {"spaces_between_special_tokens": 1}},
        "chat_template_kwargs.spaces_between_special_tokens",
    ),
    ({"chat_template": "x"}, "chat_template"),
    ({"priority": "high"}, "priority"),
    ({"session_params": "x"}, "session_params"),
    ({"session_params": {"foo": 1}}, "session_params.foo"),
    ({"custom_logit_processor": "x"}, "custom_logit_processor"),
    ({"custom_labels": {"a": 1}}, "custom_labels.a"),
    ({"routed_dp_rank": -1}, "routed_dp_rank"),
    ({"data_parallel_rank": -1}, "data_parallel_rank"),
    ({"bootstrap_port": 2**70}, "bootstrap_port"),
    ({"rid": ""}, "rid"),
    ({"rid": ["a"]}, "rid"),
]


async def sent(path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    """What the worker is asked when the door at `path` is asked this."""
    async with served(allow_custom_logit_processors=True) as (router, worker):
        status, reply = await router.post(path, {**ASK[path], **body}, headers=headers or {})
        assert status == 200, reply
    [request] = worker.requests
    assert set(request.body["sampling_params"]) <= SAMPLING_KEYS
    return request.body


@pytest.mark.parametrize(("said", "param"), SAMPLED, ids=str)
async def test_what_is_said_of_sampling_stands_in_the_sampling_parameters(said, param):
    body = await sent(CHAT, said)
    assert body["sampling_params"].items() >= param.items()
    assert set(body) == TOP_LEVEL
    unsaid = {"max_new_tokens": body["sampling_params"]["max_new_tokens"]}
    plain = {"skip_special_tokens": True, **unsaid, **param}
    if "presence_penalty" not in said and "max_tokens" not in said:
        assert body["sampling_params"] == plain, "and nothing else is said"


@pytest.mark.parametrize("path", ASK)
@pytest.mark.parametrize(("said", "top"), PASSED, ids=str)
async def test_what_is_the_worker_s_stands_at_the_top_in_every_door(said, top, path):
    body = await sent(path, said)
    assert body.items() >= top.items()
    assert set(body) <= TOP_LEVEL | set(top) | set(said)


@pytest.mark.parametrize(("said", "top"), PASSED_OF_CHAT, ids=str)
async def test_what_is_the_worker_s_stands_at_the_top(said, top):
    assert (await sent(CHAT, said)).items() >= top.items()


@pytest.mark.parametrize("said", IGNORED, ids=str)
async def test_what_means_nothing_here_is_taken_and_goes_nowhere(said):
    body = await sent(CHAT, said)
    assert set(body) == TOP_LEVEL
    assert set(body["sampling_params"]) == {"max_new_tokens", "skip_special_tokens"}
    assert body["input_ids"] == (await sent(CHAT, {}))["input_ids"], "nor into the prompt"


@pytest.mark.parametrize(("said", "param"), REFUSED, ids=str)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_wrong_is_a_400_that_names_it(said, param, unchanged):
    router, worker = unchanged
    before = router.footprint()
    status, reply = await router.post(CHAT, {**ASK[CHAT], **said})
    assert router.footprint() == before
    assert (status, reply["error"]["param"]) == (400, param)
    assert worker.requests == []


@pytest.mark.parametrize("path", ASK)
async def test_a_complaint_has_the_client_s_own_name_for_a_field(path):
    async with served() as (router, _):
        said = {**ASK[path], "data_parallel_rank": "first"}
        status, reply = await router.post(path, said)
    assert status == 400
    assert "'data_parallel_rank'" in reply["error"]["message"]
    assert "routed_dp_rank" not in str(reply)


@pytest.mark.parametrize("path", ASK)
async def test_a_rank_in_the_header_wins_as_with_sglang(path):
    """Its chat route reads the header, its `/generate` does not: so it goes into the body."""
    body = await sent(path, {"routed_dp_rank": 0}, {"x-data-parallel-rank": "3"})
    assert body["routed_dp_rank"] == 3


@pytest.mark.parametrize("path", ASK)
async def test_a_routing_key_in_the_header_is_the_worker_s(path):
    """As with the rank. SGLang counts and schedules by it."""
    assert (await sent(path, {}, {"X-SMG-Routing-Key": "k"}))["routing_key"] == "k"
    assert "routing_key" not in await sent(path, {}, {"X-Session-ID": "k"})


async def test_a_rank_that_is_no_number_is_a_400():
    async with served() as (router, worker):
        headers = {"x-data-parallel-rank": "first"}
        status, reply = await router.post(CHAT, ASK[CHAT], headers=headers)
    assert (status, reply["error"]["param"]) == (400, "x-data-parallel-rank")
    assert worker.requests == []


async def test_a_client_s_rid_names_each_choice_once():
    async with served() as (router, worker):
        _, reply = await router.post(CHAT, {**ASK[CHAT], "rid": "mine", "n": 3})
        _, again = await router.post(CHAT, {**ASK[CHAT], "rid": "mine"})
    assert reply["id"] == again["id"] == "mine"
    rids = [request.body["rid"] for request in worker.requests]
    assert sorted(rids[:3]) == ["##6:1-mine", "##6:2-mine", "#4:mine"]


async def test_functions_of_old_are_tools():
    async with served() as (router, worker):
        tools = [{"type": "function", "function": FUNCTION}]
        for said in (
            {"functions": [FUNCTION]},
            {"tools": tools},
            {"functions": [FUNCTION], "function_call": "none"},
            {},
        ):
            assert (await router.post(CHAT, {**ASK[CHAT], **said}))[0] == 200
    old, new, hidden, none = (request.body["input_ids"] for request in worker.requests)
    assert old == new != none
    assert hidden == none


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ({"reasoning_effort": "none"}, "False False none"),
        ({"reasoning_effort": "high"}, "True True high"),
        ({"reasoning": {"effort": "low"}}, "True True low"),
        ({"reasoning": {"enabled": False}}, "False False none"),
        ({"reasoning": {"enabled": True}}, "True True "),
        (
            {"reasoning": {"enabled": True}, "chat_template_kwargs": {"thinking": False}},
            "False True ",
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            "True False low",
        ),
    ],
    ids=str,
)
async def test_an_effort_reaches_the_templates_that_know_one(said, seen, tmp_path):
    template = tmp_path / "effort.jinja"
    template.write_text(
        "{{ thinking }} {{ enable_thinking }} {{ reasoning_effort }}", encoding="utf-8"
    )
    async with served(chat_template=str(template)) as (router, worker):
        assert (await router.post(CHAT, {**ASK[CHAT], **said}))[0] == 200
    ids = worker.requests[0].body["input_ids"]
    assert tiny_tokenizer().decode(ids, skip_special_tokens=False) == seen


STRICT = CHATML.replace(
    "{%- for message in messages -%}",
    "{%- for message in messages -%}{%- if message.role == 'system' and not loop.first -%}"
    "{{- raise_exception('System message must be at the beginning.') -}}{%- endif -%}",
    1,
)
TAKING_TURNS = STRICT.replace(
    "{%- for message in messages -%}",
    "{%- for message in messages -%}{%- if message.role == 'user' and not loop.first"
    " and messages[loop.index0 - 1].role == 'user' -%}"
    "{{- raise_exception('Roles must alternate.') -}}{%- endif -%}",
    1,
)
LATE = {"role": "system", "content": "Be brief"}
HELLO = [*tiny_tokenizer().encode("Hello").tolist(), max(tiny_tokenizer().eos_ids)]


@pytest.mark.parametrize("is_anthropic", [False, True])
@pytest.mark.parametrize("template", [CHATML, STRICT, TAKING_TURNS], ids=["any", "strict", "turns"])
async def test_a_late_system_message_is_served_and_the_next_turn_extends(
    template, is_anthropic, tmp_path
):
    """Claude Code says a system message among the others; some templates refuse that."""
    path = tmp_path / "template.jinja"
    path.write_text(template, encoding="utf-8")
    talk = [user("Hi"), LATE]
    async with served(chat_template=str(path)) as (router, worker):
        statuses = []
        for more in ([], [user("More")], [LATE, user("And more")]):
            talk += more
            worker.script(HELLO)
            asked: dict[str, Any] = {"messages": talk}
            if is_anthropic:
                asked |= {"max_tokens": 8, "system": [{"type": "text", "text": "A"}]}
            door = MESSAGES if is_anthropic else CHAT
            async with router.http.post(door, json=asked) as response:
                assert response.status == 200, await response.text()
                receipt = orjson.loads(response.headers["x-slime-receipt"])
            statuses.append(receipt["status"])
            talk = [*talk, {"role": "assistant", "content": "Hello"}]
    assert statuses == ["fresh", "extended", "extended"]
    prompts = [request.body["input_ids"] for request in worker.requests]
    for before, after in pairwise(prompts):
        assert after[: len(before) + len(HELLO)] == [*before, *HELLO]
    text = tiny_tokenizer().decode(prompts[0], skip_special_tokens=False)
    as_system = "<|im_start|>system\nBe brief<|im_end|>"
    assert (as_system in text) == (template == CHATML), "untouched where it is not refused"
    assert text.count("Be brief") == 1


RESULTS_ALONE = TAKING_TURNS.replace(
    "{%- for message in messages -%}",
    "{%- for message in messages -%}{%- if message.role == 'user' and not loop.first"
    " and messages[loop.index0 - 1].role == 'tool' -%}"
    "{{- raise_exception('A reply must follow a result.') -}}{%- endif -%}",
    1,
)


@pytest.mark.parsers
@pytest.mark.parametrize("late", [[], [LATE]])
@pytest.mark.parametrize(
    ("template", "is_part"),
    [(CHATML, False), (TAKING_TURNS, False), (RESULTS_ALONE, True)],
    ids=["any", "turns", "results"],
)
async def test_what_a_user_says_right_after_a_result_is_served(template, is_part, late, tmp_path):
    """Anthropic's usual form, in one message; Mistral's templates refuse it."""
    path = tmp_path / "template.jinja"
    path.write_text(template, encoding="utf-8")
    said = 'I look.<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    call = [*tiny_tokenizer().encode(said).tolist(), max(tiny_tokenizer().eos_ids)]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    talk: list[dict[str, Any]] = [user("Hi")]
    statuses, prompts = [], []
    async with served(chat_template=str(path), tool_call_parser="qwen25") as (router, worker):
        for ids in (call, HELLO, HELLO):
            worker.script(ids)
            asked = {"messages": talk, "tools": tools}
            async with router.http.post(CHAT, json=asked) as response:
                assert response.status == 200, await response.text()
                statuses.append(orjson.loads(response.headers["x-slime-receipt"])["status"])
                reply = (await response.json())["choices"][0]["message"]
            talk = [*talk, reply]
            for made in reply.get("tool_calls") or ():
                talk.append({"role": "tool", "content": "five", "tool_call_id": made["id"]})
            talk += [*late, user("Now?")]
        prompts = [request.body["input_ids"] for request in worker.requests]
    assert statuses == ["fresh", "extended", "extended"]
    for before, ids, after in zip(prompts, (call, HELLO), prompts[1:], strict=False):
        assert after[: len(before) + len(ids)] == [*before, *ids]
    text = tiny_tokenizer().decode(prompts[1], skip_special_tokens=False)
    said = "".join(f"{each['content']}\n\n" for each in late) + "Now?"
    assert (f"five\n\n{said}\n</tool_response><|im_end|>" in text) is is_part, (
        "untouched where it is not refused"
    )
    assert text.count("five") == text.count("Now?") == 1
    assert text.count("Be brief") == len(late)


async def test_system_messages_at_the_beginning_are_one_where_there_can_be_one(tmp_path):
    path = tmp_path / "strict.jinja"
    path.write_text(STRICT, encoding="utf-8")
    first = {"role": "system", "content": "A"}
    async with served(chat_template=str(path)) as (router, worker):
        await router.post(CHAT, {"messages": [first, LATE, user("Hi")]})
    text = tiny_tokenizer().decode(worker.requests[0].body["input_ids"], skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nA\n\nBe brief<|im_end|>\n<|im_start|>user")


async def test_a_refusal_that_no_folding_helps_is_a_400_in_the_template_s_words(tmp_path):
    path = tmp_path / "never.jinja"
    path.write_text("{{ raise_exception('Never.') }}", encoding="utf-8")
    async with served(chat_template=str(path)) as (router, _):
        status, reply = await router.post(CHAT, {"messages": [user("Hi"), LATE]})
    assert (status, reply["error"]["param"]) == (400, "messages")
    assert "Never." in reply["error"]["message"]


@pytest.mark.parsers
@pytest.mark.parametrize("stream", [False, True])
async def test_each_sampled_token_has_a_logprob_those_that_are_hidden_too(stream):
    """Reasoning, calls and the stop token: a client may count on one entry per token."""
    said = '<think>\nHm\n</think>\n\nSo<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    ids = [*tiny_tokenizer().encode(said).tolist(), max(tiny_tokenizer().eos_ids)]
    settings: dict[str, Any] = {"tool_call_parser": "qwen25", "reasoning_parser": "qwen3"}
    async with served(**settings) as (router, worker):
        worker.script(ids)
        body = {
            **ASK[CHAT],
            "tools": [{"type": "function", "function": FUNCTION}],
            "logprobs": True,
            "top_logprobs": 2,
            "stream": stream,
        }
        async with router.http.post(CHAT, json=body) as response:
            raw = await response.read()
    if stream:
        events = [orjson.loads(line[6:]) for line in raw.split(b"\n\n") if line[:7] == b"data: {"]
        choices = [event["choices"][0] for event in events]
        entries = [
            e for choice in choices for e in (choice.get("logprobs") or {"content": []})["content"]
        ]
    else:
        entries = orjson.loads(raw)["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).startswith(said.encode())
    assert len(entries) == len(ids)
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert all(math.isfinite(entry["logprob"]) for entry in entries)


def sample(rid: str) -> int:
    """Which one of a request's samples has this rid: all but the first begin with a number."""
    number = rid.partition("-")[0]
    return int(number) if number.isdecimal() else 0


@pytest.mark.parametrize(
    ("path", "asked", "seeds"),
    [
        (CHAT, {"n": 3, "seed": 7}, [7, 8, 9]),
        (CHAT, {"n": 2, "seed": 2**63 - 1}, [2**63 - 1, -(2**63)]),
        (CHAT, {"n": 2}, [None, None]),
        (COMPLETIONS, {"n": 2, "seed": 7, "prompt": ["a", "b"]}, [7, 8, 7, 8]),
    ],
)
async def test_each_of_several_samples_has_a_seed_of_its_own(path, asked, seeds):
    async with served() as (router, worker):
        await router.post(path, {**ASK[path], "max_tokens": 1, **asked})
        sent = sorted((each.body for each in worker.requests), key=lambda body: sample(body["rid"]))
        assert [each["sampling_params"].get("sampling_seed") for each in sent] == seeds


@pytest.mark.parametrize(
    ("asked", "seeds"),
    [
        ({"n": 3, "sampling_seed": 7}, [7, 8, 9]),
        ({"n": 2, "sampling_seed": 2**63 - 1}, [2**63 - 1, -(2**63)]),
        ({"n": 2, "sampling_seed": 2**63}, [2**63] * 2),  # the worker refuses it, as it is
        ({"n": 2, "sampling_seed": True}, [True] * 2),
        ({"n": 2, "sampling_seed": None}, [None] * 2),
        ({"n": 2}, [None] * 2),
        ({"sampling_seed": 7}, [7]),
    ],
)
@pytest.mark.parametrize("texts", [["a"], ["a", "b"]], ids=["one", "batch"])
async def test_each_of_several_native_samples_has_one_too(texts, asked, seeds):
    rids = [f"r{index}" for index in range(len(texts))]
    one = len(texts) == 1
    body = {"text": texts[0] if one else texts, "rid": rids[0] if one else rids}
    async with served() as (router, worker):
        await router.post("/generate", {**body, "sampling_params": {"max_new_tokens": 1, **asked}})
        sent = sorted((e.body for e in worker.requests), key=lambda e: e["rid"].split("_")[::-1])
        assert [each["sampling_params"].get("sampling_seed") for each in sent] == seeds * len(texts)
