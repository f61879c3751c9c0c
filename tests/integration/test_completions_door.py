"""The door for text completions: prompts of every kind, whole and streamed, by curl and the SDK."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.integration.gateway import Served, served, until
from tests.integration.scripted import events
from tests.stack import tiny_tokenizer

PATH = "/v1/completions"
HELLO = tiny_tokenizer().encode("Hello there").tolist()


async def stream(router: Served, **body: Any) -> list[Any]:
    async with router.http.post(PATH, json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        return events(await response.read())


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("Say", [tiny_tokenizer().encode("Say").tolist()]),
        ([5, 6, 7], [[5, 6, 7]]),
        (["Say", "it"], [tiny_tokenizer().encode(text).tolist() for text in ("Say", "it")]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
    ids=["a text", "ids", "texts", "lists of ids"],
)
async def test_each_kind_of_prompt_reaches_the_worker_as_ids(prompt, sent):
    async with served() as (router, worker):
        for _ in sent:
            worker.script(HELLO)
        status, body = await router.post(PATH, {"prompt": prompt})
    assert status == 200
    got = [request.body["input_ids"] for request in worker.requests]
    assert sorted(got) == sorted(sent)
    assert [choice["index"] for choice in body["choices"]] == list(range(len(sent)))
    assert {choice["text"] for choice in body["choices"]} == {"Hello there"}
    assert body["object"] == "text_completion"
    assert body["usage"]["prompt_tokens"] == sum(map(len, sent))
    assert body["usage"]["completion_tokens"] == len(HELLO) * len(sent)


async def test_what_is_not_said_has_openais_defaults():
    async with served() as (router, worker):
        worker.script(HELLO)
        await router.post(PATH, {"prompt": "Say"})
    params = worker.requests[0].body["sampling_params"]
    assert params["max_new_tokens"] == 16


async def test_samples_of_one_prompt_are_siblings_counted_once():
    async with served() as (router, worker):
        for text in ("a", "b"):
            worker.script(tiny_tokenizer().encode(text).tolist())
        status, body = await router.post(
            PATH, {"prompt": [5, 6, 7], "n": 2}, headers={"x-session-id": "s"}
        )
        rows = (await router.get("/sessions/s/rows"))[1]
    assert status == 200
    assert {choice["text"] for choice in body["choices"]} == {"a", "b"}
    assert body["usage"]["prompt_tokens"] == 3, "the prompt counts once"
    assert len(rows["rows"]) == 2
    assert rows["stats"]["left_out"] == {}


async def test_echo_begins_with_the_prompt():
    async with served() as (router, worker):
        for _ in range(3):
            worker.script(HELLO)
        _, by_text = await router.post(PATH, {"prompt": "Say ", "echo": True})
        ids = tiny_tokenizer().encode("Say ").tolist()
        _, by_ids = await router.post(PATH, {"prompt": ids, "echo": True})
        told = await stream(router, prompt="Say ", echo=True)
    assert by_text["choices"][0]["text"] == by_ids["choices"][0]["text"] == "Say Hello there"
    assert "".join(event["choices"][0]["text"] for event in told[:-1]) == "Say Hello there"


async def test_logprobs_are_the_legacy_lists():
    async with served() as (router, worker):
        worker.script(HELLO, logprobs=[-0.25] * len(HELLO))
        _, body = await router.post(PATH, {"prompt": "Say", "logprobs": 0})
    logprobs = body["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == "Hello there"
    assert logprobs["token_logprobs"] == [-0.25] * len(HELLO)
    assert logprobs["text_offset"][0] == 0
    assert len({len(values) for values in logprobs.values()}) == 1
    assert logprobs["top_logprobs"] == [{token: -0.25} for token in logprobs["tokens"]]


async def test_true_asks_for_logprobs_as_one_does_and_false_for_none():
    """rLLM's gateway sends what an agent asked of chat on to completions."""
    async with served() as (router, worker):
        replies = []
        for logprobs in (True, 1, False):
            worker.script(HELLO)
            _, body = await router.post(PATH, {"prompt": "Say", "logprobs": logprobs})
            replies.append(body["choices"][0]["logprobs"])
    assert replies[0] == replies[1] is not None
    assert replies[2] is None


async def test_a_stream_says_what_the_whole_reply_says():
    asked = {"prompt": "Say", "logprobs": 0, "stream_options": {"include_usage": True}}
    async with served() as (router, worker):
        worker.script(HELLO)
        worker.script(HELLO)
        _, whole = await router.post(PATH, asked)
        *told, usage, done = await stream(router, **asked)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert {**usage["usage"], "prompt_tokens_details": None} == {
        **whole["usage"],
        "prompt_tokens_details": None,
    }
    choices = [event["choices"][0] for event in told]
    [choice] = whole["choices"]
    assert "".join(each["text"] for each in choices) == choice["text"]
    assert [each["finish_reason"] for each in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == choice["finish_reason"]
    folded = [token for each in choices for token in each["logprobs"]["tokens"]]
    assert folded == choice["logprobs"]["tokens"]


PROMPT = "Say ü "
PROMPT_IDS = tiny_tokenizer().encode(PROMPT).tolist()


def scored(choice: Any, *, count: int, top: int) -> Any:
    """The legacy logprobs of an echoed prompt and `count` tokens after it, checked for shape."""
    logprobs = choice["logprobs"]
    size = len(PROMPT_IDS) + count
    assert [len(logprobs[name]) for name in logprobs] == [size] * 4
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    expected = [-0.25 * (i % 8 + 1) for i in range(1, len(PROMPT_IDS))]
    assert logprobs["token_logprobs"][1 : len(PROMPT_IDS)] == expected
    assert [len(each or ()) for each in logprobs["top_logprobs"][1:]] == [top] * (size - 1)
    starts = [*logprobs["text_offset"], len(choice["text"])]
    assert starts[0] == 0
    for token, begin, end in zip(logprobs["tokens"], starts, starts[1:], strict=False):
        assert token.startswith("bytes:") or choice["text"][begin:end] == token
    return logprobs


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT_IDS], ids=["a text", "ids"])
@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_an_echo_with_logprobs_scores_the_prompt(max_tokens, prompt, streams):
    """As lm-eval asks for it: an entry for each token of the prompt; the first follows nothing."""
    body = {"prompt": prompt, "echo": True, "max_tokens": max_tokens, "logprobs": 1}
    async with served() as (router, worker):
        worker.script(HELLO)
        if streams:
            *told, done = await stream(router, **body)
            assert done == "[DONE]"
            [choice] = [event["choices"][0] for event in told]
        else:
            _, reply = await router.post(PATH, body)
            [choice] = reply["choices"]
            assert reply["usage"]["completion_tokens"] == max_tokens
    sent = worker.requests[0].body
    assert (sent["return_logprob"], sent["logprob_start_len"]) == (True, 0)
    assert sent["sampling_params"]["max_new_tokens"] == max_tokens
    first = worker_text(HELLO[:max_tokens])
    assert choice["text"] == PROMPT + first
    logprobs = scored(choice, count=max_tokens, top=1)
    is_greedy = [
        value == max(top.values())
        for value, top in zip(
            logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
        )
    ]
    assert all(is_greedy), "a harness compares the two"


def worker_text(ids: list[int]) -> str:
    return tiny_tokenizer().decode(ids, skip_special_tokens=True)


async def test_each_of_several_prompts_and_samples_has_scores_of_its_own():
    async with served() as (router, worker):
        for _ in range(4):
            worker.script(HELLO)
        body = {"prompt": [PROMPT, PROMPT_IDS], "n": 2, "echo": True, "max_tokens": 1}
        _, reply = await router.post(PATH, {**body, "logprobs": 0})
    assert len(reply["choices"]) == 4
    for choice in reply["choices"]:
        scored(choice, count=1, top=1)  # the sampled one, as at OpenAI and vLLM


async def test_prompt_logprobs_are_asked_for_only_with_an_echo():
    """They cost the worker its prefix cache."""
    async with served() as (router, worker):
        for said in ({"logprobs": 1}, {"echo": True}, {"echo": False, "logprobs": 1}):
            assert (await router.post(PATH, {"prompt": PROMPT, **said}))[0] == 200
    assert ["logprob_start_len" in request.body for request in worker.requests] == [False] * 3


@pytest.mark.parametrize("given", [[], [[None, 1, None]], None, [["x"]]], ids=str)
async def test_a_worker_that_scores_another_prompt_has_failed(given):
    async with served(retry_max_retries=0) as (router, worker):
        worker.script(HELLO, input_token_logprobs=given)
        body = {"prompt": PROMPT, "echo": True, "max_tokens": 1, "logprobs": 0}
        status, reply = await router.post(PATH, body)
        assert len(router.gateway.store) == 0
    assert (status, reply["error"]["code"]) == (502, "upstream_error")


async def test_the_last_token_of_the_vocabulary_is_scored_as_others_are():
    """SGLang names 0 in its place."""
    last = tiny_tokenizer().vocab_size - 1
    async with served() as (router, _):
        body = {"prompt": [1, last, 2], "echo": True, "max_tokens": 1, "logprobs": 1}
        status, reply = await router.post(PATH, body)
    assert status == 200
    assert len(reply["choices"][0]["logprobs"]["token_logprobs"]) == 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": [[1], [2**31]]}, "prompt[1]"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": "a", "logprobs": "1"}, "logprobs"),
        ({"prompt": "a", "logprobs": 1.0}, "logprobs"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "echo": True, "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "echo": True, "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "echo": 1}, "echo"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "json_schema": {}}, "json_schema"),
        ({"prompt": "a", "json_schema": '{"$ref": "#"}'}, "json_schema"),
        ({"prompt": "a", "json_schema": "{}", "regex": "a"}, "json_schema"),
    ],
)
async def test_bad_input_names_its_field_and_changes_nothing(body, param):
    async with served() as (router, worker):
        before = router.footprint()
        status, reply = await router.post(PATH, body)
        assert router.footprint() == before
    assert (status, reply["error"]["param"]) == (400, param)
    assert worker.requests == []


async def test_one_request_too_many_is_turned_away():
    async with served(openai_max_concurrent_requests=1) as (router, worker):
        worker.script(HELLO)
        worker.hold(after_tokens=0)
        first = asyncio.create_task(router.post(PATH, {"prompt": "Say"}))
        await until(lambda: bool(worker.requests))
        status, body = await router.post(PATH, {"prompt": "Say"})
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        worker.release()
        assert (await first)[0] == 200


async def test_the_sdk_reads_it():
    async with served() as (router, worker):
        worker.script(HELLO)
        worker.script(HELLO)
        url = f"{str(router.http._base_url).rstrip(chr(47))}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            whole = await client.completions.create(model="tiny", prompt="Say")
            chunks = await client.completions.create(model="tiny", prompt="Say", stream=True)
            text = "".join([chunk.choices[0].text async for chunk in chunks])
    assert whole.choices[0].text == text == "Hello there"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(HELLO)
