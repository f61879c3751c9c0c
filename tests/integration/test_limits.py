"""How much a worker is asked for: never its own default, never more than the context holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from slime_router.testing import FakeWorker
from slime_router.tokens.libraries import TokenizersLibrary
from slime_router.types import TokenIds
from tests.integration.gateway import CHAT, Served, Words, served, serving, tiny_worker, until, user
from tests.stack import tiny_tokenizer

CONTEXT_LEN = 64
HELLO = tiny_tokenizer().encode("Hello").tolist()
COMPLETIONS, MESSAGES, RESPONSES = "/v1/completions", "/v1/messages", "/v1/responses"
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    CHAT: ("max_tokens", {"messages": [user("Hi")]}),
    COMPLETIONS: ("max_tokens", {"prompt": "Hi"}),
    MESSAGES: ("max_tokens", {"messages": [user("Hi")]}),
    RESPONSES: ("max_output_tokens", {"input": "Hi"}),
}
LONG = "again " * 200


async def told(router: Served, count: int = 1) -> None:
    """Waits until the workers have said how long their context is."""
    workers = router.gateway.pool.list
    await until(lambda: sum(w.context_len is not None for w in workers()) == count)


@asynccontextmanager
async def two_contexts(long_len: int) -> AsyncIterator[tuple[Served, FakeWorker, FakeWorker]]:
    """A router, a worker with a context of `long_len` tokens, and one with the usual context."""
    async with (
        tiny_worker(context_len=long_len) as long,
        tiny_worker(context_len=CONTEXT_LEN) as short,
        serving(long.url, short.url) as router,
    ):
        await told(router, 2)
        yield router, long, short


def wanted(worker: FakeWorker, index: int = -1) -> Any:
    return worker.requests[index].body["sampling_params"]["max_new_tokens"]


def room(worker: FakeWorker) -> int:
    return CONTEXT_LEN - len(worker.requests[-1].body["input_ids"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
async def test_more_than_the_context_holds_is_what_is_left_of_it(path, stream):
    """Agents say 32000 to every model."""
    name, body = ASKED[path]
    async with served({"context_len": CONTEXT_LEN}) as (router, worker):
        await told(router)
        worker.script(HELLO)
        async with router.http.post(
            path, json={**body, name: 32_000, "stream": stream}
        ) as response:
            assert response.status == 200, await response.text()
            assert b"Hello" in await response.read() or stream
        [_] = worker.requests
        assert wanted(worker) == room(worker)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
async def test_a_context_that_nobody_has_told_is_found_out(path, stream):
    """The worker refuses, inside its stream too; the client is not troubled with it."""
    name, body = ASKED[path]
    async with (
        FakeWorker(context_len=CONTEXT_LEN, vocab_size=tiny_tokenizer().vocab_size) as worker,
        serving(worker.url) as router,
    ):
        worker.script(HELLO)
        async with router.http.post(
            path, json={**body, name: 32_000, "stream": stream}
        ) as response:
            assert response.status == 200, await response.text()
            await response.read()
        assert [wanted(worker, i) for i in (0, 1)] == [32_000, None]
        assert len(worker.requests) == 2


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_nothing_said_runs_to_the_end_of_the_context(path, is_told):
    """A worker that gets no limit stops at 128."""
    kwargs = {"tokenizer": Words()} if is_told else {"tokenizer": None}
    async with (
        tiny_worker(context_len=400, **kwargs) as worker,
        serving(worker.url) as router,
    ):
        if is_told:
            await told(router)
        worker.script([HELLO[0]] * 399)
        status, reply = await router.post(path, ASKED[path][1])
    assert status == 200
    prompt_len = len(worker.requests[0].body["input_ids"])
    assert wanted(worker) == (400 - prompt_len if is_told else None)
    usage = reply["usage"]
    assert usage["total_tokens"] == 400


async def test_what_fits_is_asked_for_as_it_was_said():
    async with served({"context_len": CONTEXT_LEN}) as (router, worker):
        await told(router)
        worker.script(HELLO)
        await router.post(CHAT, {"messages": [user("Hi")], "max_tokens": 5, "min_tokens": 2})
        assert worker.requests[0].body["sampling_params"]["min_new_tokens"] == 2
        assert wanted(worker) == 5


async def test_the_least_is_cut_with_the_most():
    async with served({"context_len": CONTEXT_LEN}) as (router, worker):
        await told(router)
        worker.script(HELLO)
        body = {"messages": [user("Hi")], "max_tokens": 900, "min_tokens": 800}
        assert (await router.post(CHAT, body))[0] == 200
        assert worker.requests[0].body["sampling_params"]["min_new_tokens"] == room(worker)


@pytest.mark.parametrize("asked", [{"max_tokens": 32_000}, {}], ids=["more", "all"])
async def test_the_context_of_the_worker_that_is_asked_counts(asked):
    """Whatever those of the others are: neither is cut to the shortest of the fleet."""
    async with two_contexts(300) as (router, long, short):
        for worker in (long, short):
            worker.script(HELLO)
            headers = {"x-smg-target-worker": worker.url}
            body = {"messages": [user("Hi")], **asked}
            assert (await router.post(CHAT, body, headers=headers))[0] == 200
        assert wanted(long) == 300 - len(long.requests[-1].body["input_ids"])
        assert wanted(short) == room(short)


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
async def test_a_prompt_that_does_not_fit_is_a_400_that_agents_know(path, stream, is_told):
    name, body = ASKED[path]
    key = {CHAT: "messages", MESSAGES: "messages", COMPLETIONS: "prompt", RESPONSES: "input"}[path]
    said = [user(LONG)] if key == "messages" else LONG
    async with (
        tiny_worker(context_len=CONTEXT_LEN, **({} if is_told else {"tokenizer": None})) as worker,
        serving(worker.url) as router,
    ):
        if is_told:
            await told(router)
        before = router.footprint()
        status, reply = await router.post(path, {**body, key: said, name: 8, "stream": stream})
        assert status == 400
        assert len(worker.requests) == (0 if is_told else 1)
        assert router.footprint()[0] == before[0], "no turn"
    error = reply["error"]
    if path == MESSAGES:
        assert "prompt is too long" in error["message"]
    else:
        assert error["code"] == "context_length_exceeded"
        assert error["message"].startswith(
            f"This model's maximum context length is {CONTEXT_LEN} tokens."
        )


async def test_the_worker_s_own_words_are_not_touched():
    """A trainer on /generate sees what its worker says."""
    async with served({"context_len": CONTEXT_LEN}) as (router, worker):
        await told(router)
        native = {"input_ids": HELLO, "sampling_params": {"max_new_tokens": 32_000}}
        status, reply = await router.post("/generate", native)
        assert status == 400
        assert "Requested token count exceeds" in orjson.dumps(reply).decode()
        assert [wanted(worker, i) for i in range(len(worker.requests))] == [32_000]


async def test_no_worker_gets_what_it_would_cut():
    """With `--allow-auto-truncate` it would read a part, and the turn would claim all of it."""
    async with served({"context_len": CONTEXT_LEN}) as (router, worker):
        await told(router)
        native = {"input_ids": [1] * CONTEXT_LEN, "sampling_params": {"max_new_tokens": 1}}
        status, reply = await router.post("/generate", native)
        assert status == 400
        assert "is longer than the model's context length" in orjson.dumps(reply).decode()
        assert not worker.requests


IDS = {"input_ids": [HELLO, [1] * CONTEXT_LEN]}
BATCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "texts": (COMPLETIONS, {"prompt": ["Hi", LONG]}),
    "ids": (COMPLETIONS, {"prompt": [HELLO, [1] * CONTEXT_LEN], "n": 2}),
    "native texts": ("/generate", {"text": ["Hi", LONG]}),
    "native ids": ("/generate", IDS),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), BATCHES.values(), ids=BATCHES)
async def test_a_prompt_of_several_that_does_not_fit_is_refused_before_any_is_sent(
    path, body, stream
):
    async with served({"context_len": CONTEXT_LEN}) as (router, worker):
        await told(router)
        before = router.footprint()
        status, reply = await router.post(path, {**body, "stream": stream})
        assert (status, worker.requests) == (400, [])
        assert router.footprint() == before
    assert reply["error"]["message"].startswith(
        f"This model's maximum context length is {CONTEXT_LEN} tokens."
    )
    if path == COMPLETIONS:
        error = reply["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


async def test_prompts_that_fit_are_all_sent():
    texts = ["Hi", "again " * 40]  # more bytes than the context has tokens
    async with served({"context_len": 2 * CONTEXT_LEN}) as (router, worker):
        await told(router)
        assert (await router.post(COMPLETIONS, {"prompt": texts, "max_tokens": 2}))[0] == 200
        assert len(worker.requests) == 2


async def test_a_prompt_of_several_that_only_some_worker_has_room_for_is_left_to_it():
    """As a prompt that comes alone is."""
    async with two_contexts(2000) as (router, long, short):
        await router.post(COMPLETIONS, {"prompt": ["Hi", LONG], "max_tokens": 2})
        sent = [*long.requests, *short.requests]
        assert max(len(request.body["input_ids"]) for request in sent) > CONTEXT_LEN


HOPELESS = "again " * 4000  # long enough to look at before it is encoded
PROMPT_KEYS = {CHAT: "messages", MESSAGES: "messages", COMPLETIONS: "prompt", RESPONSES: "input"}
HOPELESS_ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    CHAT: (CHAT, {"messages": [user(HOPELESS)]}),
    "samples": (CHAT, {"messages": [user(HOPELESS)], "n": 2}),
    "template": (CHAT, {"messages": [user(HOPELESS)], "history": "template"}),
    MESSAGES: (MESSAGES, {"messages": [user(HOPELESS)], "max_tokens": 8}),
    COMPLETIONS: (COMPLETIONS, {"prompt": HOPELESS, "truncate_prompt_tokens": 9}),
    "batch": (COMPLETIONS, {"prompt": ["Hi", HOPELESS]}),
    RESPONSES: (RESPONSES, {"input": HOPELESS, "truncation": "auto"}),
    "native": ("/generate", {"text": HOPELESS}),
    "native batch": ("/generate", {"text": ["Hi", HOPELESS]}),
}


@pytest.fixture
def encoded(monkeypatch):
    """The lengths of the texts that are encoded."""
    lengths: list[int] = []
    encode = TokenizersLibrary.encode

    def noted(library: TokenizersLibrary, texts: Sequence[str]) -> list[TokenIds]:
        lengths.append(sum(map(len, texts)))
        return encode(library, texts)

    monkeypatch.setattr(TokenizersLibrary, "encode", noted)
    return lengths


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), HOPELESS_ASKS.values(), ids=HOPELESS_ASKS)
async def test_a_text_that_cannot_fit_is_refused_without_being_encoded(path, body, stream, encoded):
    async with served({"context_len": CONTEXT_LEN}) as (router, worker):
        await told(router)
        before = router.footprint()
        status, reply = await router.post(path, {**body, "stream": stream})
        assert (status, worker.requests) == (400, [])
        assert router.footprint() == before
    assert max(encoded, default=0) < len(HOPELESS)  # short ones may be known from before
    error = reply["error"]
    words = f"This model's maximum context length is {CONTEXT_LEN} tokens. The input (at least "
    assert words in error["message"]
    assert "is longer than the model's context length (64 tokens)." in error["message"]
    if path == MESSAGES:
        assert error["type"] == "invalid_request_error"
        assert error["message"].startswith("prompt is too long")
    elif path != "/generate":
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == PROMPT_KEYS[path]


async def test_what_follows_held_tokens_is_refused_too(encoded):
    talk = [user("Hi")]
    async with served({"context_len": CONTEXT_LEN}) as (router, worker):
        await told(router)
        worker.script(HELLO)
        _, reply = await router.post(CHAT, {"messages": talk})
        talk += [reply["choices"][0]["message"], user(HOPELESS)]
        before = router.footprint()
        status, reply = await router.post(CHAT, {"messages": talk})
        assert (status, len(worker.requests)) == (400, 1)
        assert router.footprint() == before
        assert reply["error"]["code"] == "context_length_exceeded"
        assert max(encoded, default=0) < len(HOPELESS)


@pytest.mark.parametrize("path", [CHAT, "/generate"])
async def test_a_text_that_may_fit_some_worker_is_encoded(path, encoded):
    body = {"messages": [user(HOPELESS)]} if path == CHAT else {"text": HOPELESS}
    async with (
        tiny_worker(context_len=CONTEXT_LEN) as told_it,
        tiny_worker(context_len=CONTEXT_LEN, tokenizer=None) as silent,
        serving(told_it.url, silent.url) as router,
    ):
        await told(router)
        assert (await router.post(path, body))[0] == 400
        assert len(told_it.requests) + len(silent.requests) == 1
        assert max(encoded) >= len(HOPELESS)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": HOPELESS}),
        ("/v1/messages/count_tokens", {"messages": [user(HOPELESS)]}),
    ],
)
async def test_what_is_only_counted_may_be_longer(path, body):
    async with served({"context_len": CONTEXT_LEN}) as (router, _):
        await told(router)
        status, reply = await router.post(path, body)
        assert status == 200
        assert reply.get("count", reply.get("input_tokens")) > CONTEXT_LEN
