"""Against a real SGLang server: what was sampled is sent again, and given back, bit for bit."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.sglang.recorder import RecordingProxy

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(300)]

EOS = 8191
FORCE_EOS = {"logit_bias": {str(EOS): 100}, "min_tokens": 4}
NO_EOS = {"logit_bias": {str(EOS): -100}}  # by chance, one token in 8,192 would be it
SYSTEM = {"role": "system", "content": "You are terse."}
QUESTIONS = ("What is a radix tree?", "Show me one, please.", "Thanks. And then?")


@pytest.fixture
def client(router_url) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{router_url}/v1", api_key="none", timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(router_url) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{router_url}/v1", api_key="none", timeout=60) as client:
        yield client


@pytest.fixture
def witness(recording_proxy: RecordingProxy) -> RecordingProxy:
    recording_proxy.clear()
    return recording_proxy


def post(url: str, body: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as reply:
        return json.load(reply)


def ask(client: OpenAI, messages: list[Any], *, stream: bool, **fields: Any) -> tuple[str, Any]:
    """One chat turn: the reply's text and the receipt."""
    min_tokens = fields.pop("min_tokens", None)
    fields["extra_body"] = {"min_tokens": min_tokens} if min_tokens else {}
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=messages, max_tokens=12, stream=stream, **fields
    )
    receipt = json.loads(raw.headers["x-slime-receipt"])
    parsed: Any = raw.parse()
    if not stream:
        return parsed.choices[0].message.content, receipt
    deltas = (chunk.choices[0].delta.content or "" for chunk in parsed if chunk.choices)
    return "".join(deltas), receipt


def sampled(exchange: Any) -> tuple[list[int], list[float]]:
    """The ids and logprobs that the worker returned, whatever way it streams."""
    last = exchange.items()[-1]
    pairs = last["meta_info"]["output_token_logprobs"]
    return last["output_ids"], [pair[0] for pair in pairs]


@pytest.mark.parametrize("force_stop", [False, True], ids=["length", "stop"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_three_turns_are_sent_again_and_given_back_bit_for_bit(
    client, witness, router_url, stream, force_stop
):
    messages: list[Any] = [{"role": "system", "content": f"{stream} {force_stop}"}]
    held: list[int] = []
    cached: list[int] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        text, receipt = ask(
            client, messages, stream=stream, **(FORCE_EOS if force_stop else NO_EOS)
        )
        exchange = witness.exchanges[-1]
        prompt = exchange.asked()["input_ids"]
        output_ids, logprobs = sampled(exchange)
        assert prompt[: len(held)] == held
        assert receipt["reused"] == len(held)
        assert receipt["reused"] + receipt["encoded"] == len(prompt)
        assert receipt["status"] == ("extended" if held else "fresh")
        assert (output_ids[-1] == EOS) == force_stop
        held = prompt + output_ids
        cached.append(exchange.items()[-1]["meta_info"]["cached_tokens"])
        messages.append({"role": "assistant", "content": text})
        trace = post(f"{router_url}/retrieve_from_messages_template", {"messages": messages})
        assert trace["tokens"] == held
        assert trace["loss_mask"][-len(output_ids) :] == [1] * len(output_ids)
        assert trace["rollout_logp"][-len(output_ids) :] == logprobs
        assert sum(trace["loss_mask"]) == sum(len(sampled(e)[0]) for e in witness.exchanges)
    assert cached[1] >= len(witness.exchanges[0].asked()["input_ids"])
    assert cached == sorted(cached)  # the worker's prefix cache grows with the held prefix


def test_the_router_and_the_worker_tokenize_alike(client, router_url):
    ask(client, [SYSTEM, {"role": "user", "content": "Hi"}], stream=False)
    with urllib.request.urlopen(f"{router_url}/workers", timeout=60) as reply:
        (worker,) = json.load(reply)["workers"]
    assert worker["is_token_exact"] is True
    assert worker["context_len"] == 2048


def test_generate_with_text_extends_what_was_sampled(router_url, witness):
    text = "def radix(tree):\n"
    first = post(f"{router_url}/generate", {"text": text, "sampling_params": {"max_new_tokens": 8}})
    assert "output_token_logprobs" not in first["meta_info"]  # nobody asked for them
    prompt = witness.exchanges[-1].asked()["input_ids"]
    more = text + first["text"] + "\n    return tree"
    post(f"{router_url}/generate", {"text": more, "sampling_params": {"max_new_tokens": 4}})
    held = prompt + first["output_ids"]
    assert witness.exchanges[-1].asked()["input_ids"][: len(held)] == held
    trace = post(f"{router_url}/retrieve_from_text", {"text": text + first["text"]})
    assert trace["tokens"] == held
    assert trace["loss_mask"] == [0] * len(prompt) + [1] * 8
    assert trace["rollout_logp"][len(prompt) :] == sampled(witness.exchanges[0])[1]


def test_generate_hands_unknown_fields_and_meta_info_through(router_url, witness):
    body = {
        "input_ids": [30, 40, 50],
        "rid": "mine-1",
        "sampling_params": {"max_new_tokens": 3, "temperature": 0},
        "return_logprob": True,
        "top_logprobs_num": 2,
        "my_field": {"a": [1]},
    }
    reply = post(f"{router_url}/generate", body)
    asked = witness.exchanges[-1].asked()
    assert asked["my_field"] == {"a": [1]}
    assert asked["rid"].endswith(":mine-1")
    said = witness.exchanges[-1].items()[0]
    assert reply == {**said, "meta_info": {**said["meta_info"], "id": "mine-1"}}
    assert len(reply["meta_info"]["output_top_logprobs"]) == 3


def test_generate_batches_and_streams(router_url):
    body = {
        "input_ids": [[30, 40], [50, 60]],
        "sampling_params": {"max_new_tokens": 3, "temperature": 0, "n": 2},
    }
    replies = post(f"{router_url}/generate", body)
    assert len(replies) == 4
    assert replies[0]["output_ids"] == replies[1]["output_ids"]
    request = urllib.request.Request(
        f"{router_url}/generate", json.dumps({**body, "stream": True}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        events = [line[6:] for line in reply.read().decode().split("\n") if line.startswith("data")]
    assert events[-1] == "[DONE]"
    last: dict[int, Any] = {}
    for event in events[:-1]:
        item = json.loads(event)
        last[item["index"]] = item["output_ids"]
    assert [last[index] for index in range(4)] == [item["output_ids"] for item in replies]


async def test_the_async_client_streams_and_asks_for_usage(async_client):
    stream = await async_client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    )
    chunks = [chunk async for chunk in stream]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 5
    entries = [e for c in chunks for x in c.choices if x.logprobs for e in x.logprobs.content or []]
    assert len(entries) == 5
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


async def test_four_choices_are_four_samples(async_client):
    reply = await async_client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=6, n=4
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 24


def test_a_grammar_reaches_the_worker(client):
    reply = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Say it"}],
        max_tokens=30,
        extra_body={"regex": "(HAVING|having) fun"},
    )
    assert reply.choices[0].message.content in ("HAVING fun", "having fun")
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"input_ids": [8192]}),
        ("/generate", {"input_ids": [-1]}),
        ("/generate", {"input_ids": [2**40]}),
        ("/generate", {"input_ids": []}),
        ("/generate", {"text": ""}),
        ("/generate", {"input_ids": [1], "return_logprob": True, "top_logprobs_num": 9000}),
        ("/v1/chat/completions", {"messages": [], "max_tokens": 1}),
        (
            "/v1/chat/completions",
            {"messages": [SYSTEM], "logprobs": True, "top_logprobs": 9000, "max_tokens": 1},
        ),
        ("/v1/chat/completions", {"input_ids": [9000], "messages": [SYSTEM], "max_tokens": 1}),
    ],
)
def test_what_would_kill_the_worker_is_a_400_and_the_worker_lives(router_url, witness, path, body):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{router_url}{path}", body)
    caught.value.close()
    assert caught.value.code == 400
    assert not witness.exchanges  # nothing reached it
    reply = post(
        f"{router_url}/generate", {"input_ids": [1], "sampling_params": {"max_new_tokens": 1}}
    )
    assert len(reply["output_ids"]) == 1


def test_a_prompt_over_the_context_says_so_in_openais_words(router_url):
    body = {"messages": [{"role": "user", "content": "word " * 4000}], "max_tokens": 4}
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{router_url}/v1/chat/completions", body)
    error = json.load(caught.value)["error"]
    caught.value.close()
    assert caught.value.code == 400
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is 2048 tokens.")


async def test_a_client_that_leaves_frees_the_worker(async_client, router_url, sglang_url):
    stream = await async_client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Talk on and on"}],
        max_tokens=1900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for _ in stream:
        break
    await stream.close()

    def loads() -> tuple[int, int]:
        with urllib.request.urlopen(f"{router_url}/metrics", timeout=60) as reply:
            in_flight = json.load(reply)["router"]["total_in_flight"]
        with urllib.request.urlopen(f"{sglang_url}/v1/loads", timeout=60) as reply:
            running = sum(load["num_running_reqs"] for load in json.load(reply)["loads"])
        return in_flight, running

    deadline = time.monotonic() + 60
    while await asyncio.to_thread(loads) != (0, 0):
        assert time.monotonic() < deadline, "the generation runs on without a reader"
        await asyncio.sleep(0.05)


def test_everything_else_passes_through(router_url, sglang_url):
    for path in ("/model_info", "/v1/loads"):
        with (
            urllib.request.urlopen(f"{router_url}{path}", timeout=60) as ours,
            urllib.request.urlopen(f"{sglang_url}{path}", timeout=60) as theirs,
        ):
            assert json.load(ours).keys() == json.load(theirs).keys()
