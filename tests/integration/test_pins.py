"""Pinned sampling, and the adapters and keys of sessions: they hold, whatever agents ask."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from slime_router.errors import SetupError
from tests.integration.gateway import CHAT, Served, assistant, served, serving, user

PINS: dict[str, Any] = {
    "temperature": 0.75,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.02,
    "max_tokens": 6,
    "min_tokens": 0,
    "seed": 3,
    "stop": ["END"],
    "stop_token_ids": [9],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "repetition_penalty": 1.1,
    "ignore_eos": False,
    "logit_bias": None,
}
AT_WORKER = {
    "temperature": 0.75,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.02,
    "max_new_tokens": 6,
    "min_new_tokens": 0,
    "sampling_seed": 3,
    "stop": ["END"],
    "stop_token_ids": [9],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "repetition_penalty": 1.1,
    "ignore_eos": False,
}
SPELLED = [39, 32, 53, 40, 45, 38]  # HAVING, as no encoder cuts it
HI: dict[str, Any] = {"messages": [user("Hi")]}
OTHERS = {
    "temperature": 0.1,
    "top_p": 0.3,
    "seed": 8,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
}
MORE = {"top_k": 2, "min_p": 0.5, "repetition_penalty": 1.9, "ignore_eos": True, "min_tokens": 5}
NATIVE = {
    "max_new_tokens": 50,
    "min_new_tokens": 5,
    "temperature": 0.1,
    "top_p": 0.3,
    "top_k": 2,
    "min_p": 0.5,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
    "repetition_penalty": 1.9,
    "sampling_seed": 8,
    "stop": "X",
    "stop_token_ids": [4],
    "ignore_eos": True,
    "logit_bias": {"5": 1.0},
}
SPELLINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": (CHAT, HI),
    "max_tokens": (CHAT, {**HI, "max_tokens": 50}),
    "max_completion_tokens": (CHAT, {**HI, "max_completion_tokens": 50}),
    "both": (CHAT, {**HI, "max_completion_tokens": 50, "max_tokens": 2}),
    "OpenAI's": (CHAT, {**HI, **OTHERS, "stop": "X", "logit_bias": {"5": 1.0}}),
    "SGLang's in chat": (CHAT, {**HI, **OTHERS, **MORE, "stop_token_ids": [4]}),
    "a top_k of all": (CHAT, {**HI, "top_k": 0, "max_tokens": 1}),
    "streamed": (CHAT, {**HI, **OTHERS, "stream": True}),
    "several samples": (CHAT, {**HI, **OTHERS, "n": 2}),
    "fields of other vendors": (
        CHAT,
        {**HI, "generationConfig": {"maxOutputTokens": 2}, "sampling_params": {"top_k": 1}},
    ),
    "completions": ("/v1/completions", {"prompt": "Hi", "max_tokens": 50, **OTHERS, "stop": "X"}),
    "responses": ("/v1/responses", {"input": "Hi", "max_output_tokens": 50, "temperature": 0.1}),
    "messages": (
        "/v1/messages",
        {**HI, "model": "m", "max_tokens": 50, "top_k": 2, "stop_sequences": ["X"]},
    ),
    "sampling_params": ("/generate", {"input_ids": [5, 6], "sampling_params": NATIVE}),
    "sampling_params of text": ("/generate", {"text": "Hi", "sampling_params": {"top_k": -1}}),
    "sampling_params of a batch": (
        "/generate",
        {"input_ids": [[5, 6], [7]], "sampling_params": [NATIVE, {"temperature": None}]},
    ),
    "vLLM's sampling_params": (
        "/inference/v1/generate",
        {"token_ids": [5, 6], "sampling_params": {"max_tokens": 50, "top_k": 2, "stop": ["X"]}},
    ),
}


def pinned_of(body: dict[str, Any]) -> dict[str, Any]:
    """Without what no pin names."""
    given = body["sampling_params"]
    return {name: value for name, value in given.items() if name != "skip_special_tokens"}


async def ask(router: Served, path: str, body: dict[str, Any]) -> bytes:
    async with router.http.post(path, json=body) as response:
        raw = await response.read()
        assert response.status == 200, raw
        return raw


def test_there_are_seventeen_spellings():
    assert len(SPELLINGS) == 17


@pytest.mark.parametrize(("path", "body"), SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("pinned_by", ["session", "flag", "both"])
async def test_no_spelling_wins_over_a_pin(path, body, pinned_by):
    flag: dict[str, Any] = {"flag": PINS, "both": {"temperature": 1.5}}.get(pinned_by, {})
    settings: dict[str, Any] = {"sampling_pins": orjson.dumps(flag).decode()} if flag else {}
    async with served(**settings) as (router, worker):
        spec: dict[str, Any] = {"session_id": "s", "sampling": {"temperature": 0.2, "top_k": 5}}
        if pinned_by != "flag":
            spec["sampling_pins"] = PINS
        status, opened = await router.post("/sessions", spec)
        assert status == 201, opened
        await ask(router, f"/sessions/s{path}", body)
        assert worker.requests
        for request in worker.requests:
            assert pinned_of(request.body) == AT_WORKER


async def test_the_flag_pins_what_comes_without_a_session_too():
    async with served(sampling_pins='{"temperature": 0.5, "max_completion_tokens": 3}') as (
        router,
        worker,
    ):
        await ask(router, "/generate", {"input_ids": [5], "sampling_params": {"temperature": 0}})
        assert worker.requests[0].body["sampling_params"] == {
            "temperature": 0.5,
            "max_new_tokens": 3,
        }


async def test_the_receipt_names_what_was_replaced():
    async with served() as (router, _):
        pins = {"temperature": 1.0, "max_tokens": 4, "top_p": 1.0, "stop": None}
        await router.post("/sessions", {"session_id": "s", "sampling_pins": pins})
        path = f"/sessions/s{CHAT}"
        fields: dict[str, Any] = {"temperature": 0.2, "max_tokens": 90, "stop": ["X"]}
        _, receipt = await router.chat([user("Hi")], path=path, **fields)
        [note] = receipt["notes"]
        assert note == 'pinned: temperature 0.2, max_tokens 90, stop ["X"]'
        _, receipt = await router.chat([user("Hello")], path=path, temperature=1.0)
        assert "notes" not in receipt
        _, shown = await router.get("/sessions/s")
        assert shown["turn_list"][0]["receipt"]["notes"] == [note]


@pytest.mark.parametrize(
    ("path", "body", "unsaid"),
    [
        ("/v1/completions", {"prompt": "Hi"}, {}),
        ("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": {}}, {}),
        ("/inference/v1/generate", {"token_ids": [5]}, {"sampling_params": {"max_tokens": None}}),
    ],
)
async def test_an_apis_own_length_is_nothing_that_a_request_says(path, body, unsaid):
    """A session's default goes before it."""
    async with served() as (router, worker):
        await router.post("/sessions", {"session_id": "s", "sampling": {"max_tokens": 3}})
        await ask(router, path, body)
        await ask(router, f"/sessions/s{path}", {**body, **unsaid})
        sent = [request.body["sampling_params"]["max_new_tokens"] for request in worker.requests]
        assert sent == [16, 3]


@pytest.mark.parametrize("name", ["no_stop_trim", "include_stop_str_in_output"])
async def test_whether_a_stop_stays_in_the_text_can_be_pinned(name):
    async with served() as (router, worker):
        await router.post("/sessions", {"session_id": "s", "sampling_pins": {name: True}})
        await ask(router, f"/sessions/s{CHAT}", {**HI, "stop": "X", "no_stop_trim": False})
        assert worker.requests[0].body["sampling_params"]["no_stop_trim"] is True


async def test_a_pinned_length_does_not_fall_below_the_least():
    async with served() as (router, worker):
        await router.post("/sessions", {"session_id": "s", "sampling_pins": {"max_tokens": 2}})
        await ask(router, f"/sessions/s{CHAT}", {**HI, "min_tokens": 9, "max_tokens": 20})
        params = {"max_new_tokens": 9, "min_new_tokens": 9}
        await ask(router, "/sessions/s/generate", {"input_ids": [5], "sampling_params": params})
        for request in worker.requests:
            found = request.body["sampling_params"]
            assert (found["min_new_tokens"], found["max_new_tokens"]) == (2, 2)


async def test_a_pinned_grammar_takes_the_place_of_any_other():
    async with served() as (router, worker):
        pins = {"regex": "[ab]+", "max_tokens": 4}
        await router.post("/sessions", {"session_id": "s", "sampling_pins": pins})
        params = {"json_schema": '{"type": "object"}'}
        await ask(router, "/sessions/s/generate", {"input_ids": [5], "sampling_params": params})
        await ask(router, f"/sessions/s{CHAT}", {**HI, "ebnf": 'root ::= "x"'})
        for request in worker.requests:
            found = request.body["sampling_params"]
            assert found["regex"] == "[ab]+"
            assert not {"json_schema", "ebnf"} & found.keys()


@pytest.mark.parametrize(
    ("pins", "param"),
    [
        ({"temperature": 9}, "sampling_pins.temperature"),
        ({"n": 2}, "sampling_pins.n"),
        ({"max_new_tokens": 2}, "sampling_pins.max_new_tokens"),
        ([], "sampling_pins"),
    ],
)
async def test_bad_pins_are_refused_by_name(pins, param):
    async with served() as (router, _):
        status, body = await router.post("/sessions", {"session_id": "s", "sampling_pins": pins})
        assert (status, body["error"]["param"]) == (400, param)
        assert (await router.get("/sessions/s"))[0] == 404
    with pytest.raises(SetupError, match="sampling-pins"):
        async with serving(sampling_pins=orjson.dumps(pins).decode()):
            pass


async def test_pins_that_are_no_json_keep_the_router_from_starting():
    with pytest.raises(SetupError, match="--sampling-pins takes a JSON object"):
        async with serving(sampling_pins="temperature=1"):
            pass


FIELDS = {"lora_path": "adapter", "extra_key": "key", "priority": 7}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, HI),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {**HI, "model": "m", "max_tokens": 5}),
        ("/generate", {"input_ids": [5, 6]}),
        ("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": {}}),
    ],
)
async def test_an_adapter_a_key_and_a_priority_reach_agents_that_know_nothing_of_them(path, body):
    async with served() as (router, worker):
        await router.post("/sessions", {"session_id": "s", **FIELDS})
        await ask(router, f"/sessions/s{path}", body)
        assert {name: worker.requests[0].body[name] for name in FIELDS} == FIELDS


async def test_a_sessions_adapter_wins_and_parts_the_caches():
    async with served() as (router, worker):
        worker.script([11, 12])
        await router.post("/sessions", {"session_id": "s", **FIELDS})
        path = f"/sessions/s{CHAT}"
        _, receipt = await router.chat([user("Hi")], path=path, lora_path="mine", extra_key="a")
        assert worker.requests[0].body["lora_path"] == "adapter"
        assert worker.requests[0].body["extra_key"] == "akey"
        assert receipt["notes"] == ["set by the session: lora_path"]
        text, _ = await router.chat([user("Hi")], path=path)
        messages = [user("Hi"), {"role": "assistant", "content": text}, user("So?")]
        _, again = await router.chat(messages, path=path)
        assert again["status"] == "extended"
        _, other = await router.chat(messages)
        assert (other["status"], other["reused"]) == ("fresh", 0)


async def test_an_agents_own_adapter_in_a_session_with_another_parts_no_history():
    """The session's adapter samples them all: whichever is asked for, its turns are the history."""
    async with served() as (router, _):
        await router.post("/sessions", {"session_id": "s", **FIELDS})
        path, messages = f"/sessions/s{CHAT}", [user("Hi")]
        for asked in ({}, {"model": "tiny:mine"}, {"lora_path": "theirs"}, {}):
            text, receipt = await router.chat(messages, path=path, **asked)
            assert (receipt["status"] == "extended") == (len(messages) > 1), asked
            messages = [*messages, assistant(text), user("So?")]


async def test_turns_of_a_session_with_an_adapter_are_found_by_those_who_only_read():
    async with served() as (router, worker):
        worker.script(SPELLED)
        await router.post("/sessions", {"session_id": "s", **FIELDS})
        path = f"/sessions/s{CHAT}"
        text, _ = await router.chat([user("Hi")], path=path)
        said = {"messages": [user("Hi"), assistant(text)], "session_id": "s"}
        for asked in (said, {**said, "lora_path": "mine"}):
            _, found = await router.post("/retrieve_from_messages_template", asked)
            assert sum(found["loss_mask"]) == len(SPELLED), asked
            spelled = {
                "text": found["response"],
                **{k: v for k, v in asked.items() if k != "messages"},
            }
            _, again = await router.post("/retrieve_from_text", spelled)
            assert (again["tokens"], again["paths"]) == (found["tokens"], 1), asked
        turns = [user("Hi"), assistant(text), user("So?")]
        _, counted = await router.post(
            "/sessions/s/v1/messages/count_tokens", {"model": "m", "messages": turns}
        )
        await router.chat(turns, path=path)
        assert counted["input_tokens"] == len(worker.requests[-1].body["input_ids"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"lora_path": ""}, "lora_path"),
        ({"extra_key": "x" * 513}, "extra_key"),
        ({"priority": "high"}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"return_indexer_topk": 1}, "return_indexer_topk"),
    ],
)
async def test_bad_fields_for_the_worker_are_refused_by_name(fields, param):
    async with served() as (router, _):
        status, body = await router.post("/sessions", {"session_id": "s", **fields})
        assert (status, body["error"]["param"]) == (400, param)
