"""A worker that sends what it cannot have sampled: it is left, and none of it gets anywhere."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import numpy as np
import orjson
import pytest

from slime_router.testing import FakeWorker
from slime_router.testing.malformed import LyingWorker
from tests.integration.gateway import Served, Words, serving, tiny_worker, user
from tests.integration.random_replies import PATHS
from tests.stack import tiny_tokenizer
from tests.tiny import CONTEXT_LEN

ROUNDS = 200
SEEDS = (1, 2)
ASKS: dict[str, dict[str, Any]] = {
    "chat": {"messages": [user("Hi")], "logprobs": True, "top_logprobs": 2},
    "completions": {"prompt": "Hi", "max_tokens": 8},
    "generate": {
        "text": "Hi",
        "sampling_params": {"max_new_tokens": 8},
        "return_logprob": True,
    },
    "messages": {"messages": [user("Hi")], "max_tokens": 8},
    "responses": {"input": "Hi"},
}
RECKLESS: dict[str, Any] = {  # the liar stays in the rotation, so that every request meets it
    "enable_circuit_breaker": False,
    "policy": "round_robin",
    "resume_aborted": "all",
    "retry_max_retries": 50,
    "retry_max_backoff_ms": 1.0,
}


def liar(seed: int, **settings: Any) -> LyingWorker:
    tokenizer = tiny_tokenizer()
    return LyingWorker(
        Random(seed),
        vocab_size=tokenizer.vocab_size,
        context_len=CONTEXT_LEN,
        eos_ids=sorted(tokenizer.eos_ids),
        tokenizer=Words(),
        **settings,
    )


async def ask(router: Served, door: str, *, stream: bool) -> tuple[int, bytes]:
    body = {"model": "m", **ASKS[door], "stream": stream}
    async with router.http.post(PATHS[door], json=body) as response:
        return response.status, await response.read()


def check_kept(router: Served) -> None:
    """Every token that is stored is in the vocabulary, with a logprob that can be one."""
    size = tiny_tokenizer().vocab_size
    store = router.gateway.store
    for turn in store._turns.values():
        assert all(0 <= token < size for token in turn.output_ids)
        assert turn.logprobs is not None
        values = turn.logprobs
        assert np.all((values > -100) & (values <= 0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_good_worker_serves_all(seed: int, stream: bool) -> None:
    random = Random(seed)
    async with (
        liar(seed, incremental=seed % 2 == 1) as bad,
        tiny_worker(incremental=seed % 2 == 1) as good,
        serving(bad.url, good.url, **RECKLESS) as router,
    ):
        for _ in range(ROUNDS):
            door = random.choice(list(ASKS))
            status, raw = await ask(router, door, stream=stream)
            assert status == 200, (door, raw)
            assert b"error" not in raw.replace(b'"error":null', b""), (door, raw)
        assert bad.spoiled > ROUNDS // 3
        check_kept(router)
        for worker in (bad, good):
            for request in worker.requests:
                ids = request.body["input_ids"]
                assert all(type(i) is int and 0 <= i < tiny_tokenizer().vocab_size for i in ids)


async def test_no_good_worker_is_left() -> None:
    """An error in the API's form, before the first byte; never a 500."""
    async with liar(3) as bad, serving(bad.url, **RECKLESS) as router:
        for door in ASKS:
            status, raw = await ask(router, door, stream=False)
            assert status == 502, (door, raw)
            assert b"orjson" not in raw
        assert len(router.gateway.store) == 0
        counted = (await router.get("/metrics"))[1]
        assert orjson.dumps(counted)


NO_SCORES: tuple[Any, ...] = ("x", [], [5], {}, [[-0.5, 3, None]] * 99)


class _OfPrompts(FakeWorker):
    """Lies about the prompt alone: `lies` are fields of its `meta_info`."""

    lies: dict[str, Any]

    def write(self, item: Any) -> bytes:
        return super().write({**item, "meta_info": {**item["meta_info"], **self.lies}})


@pytest.mark.parametrize("is_alone", [False, True])
@pytest.mark.parametrize(
    "lies",
    [
        *({"input_token_logprobs": bad} for bad in NO_SCORES),
        *({"input_token_logprobs": [[None, 1], [bad, 2]]} for bad in ("x", 1e300, True, None)),
        *(
            {"input_top_logprobs": bad}
            for bad in ("x", [5], [None, [[1e300, 1]]], [None, [[-1, -5]]])
        ),
    ],
    ids=str,
)
async def test_a_worker_that_lies_about_the_prompt_is_not_believed(lies, is_alone):
    settings: dict[str, Any] = {"vocab_size": 300, "context_len": CONTEXT_LEN, "tokenizer": Words()}
    async with _OfPrompts(**settings) as bad, tiny_worker() as good:
        bad.lies = lies
        urls = [bad.url] if is_alone else [bad.url, good.url]
        async with serving(*urls, **{**RECKLESS, "retry_max_retries": 2}) as router:
            body = {"prompt": [1, 2], "echo": True, "max_tokens": 4, "logprobs": 2}
            for _ in range(2):
                status, _ = await router.post("/v1/completions", body)
                assert status == (502 if is_alone else 200)
            assert len(router.gateway.store) == (0 if is_alone else 2)
        assert len(bad.requests) >= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_mixes_up_two_requests_is_not_believed(stream):
    """One tenant would read, and train on, what was sampled for another."""
    async with tiny_worker() as worker, serving(worker.url) as router:
        worker.hold()
        one = asyncio.create_task(ask(router, "completions", stream=False))
        await worker.wait_running(1)
        mixed_up = {
            "text": "secret",
            "output_ids": [7, 8],
            "meta_info": {
                "id": worker.running[0],
                "finish_reason": {"type": "length", "length": 2},
                "prompt_tokens": 3,
                "completion_tokens": 2,
                "output_token_logprobs": [[-0.5, 7, None], [-0.5, 8, None]],
            },
        }
        raw = orjson.dumps(mixed_up)
        if stream:
            worker.answer_next(200, b"data: %s\n\ndata: [DONE]\n\n" % raw, "text/event-stream")
        else:
            worker.answer_next(200, raw)
        two = asyncio.create_task(ask(router, "messages", stream=stream))
        await worker.wait_running(2)  # it was asked again
        worker.release()
        answers = await asyncio.gather(one, two)
        assert [status for status, _ in answers] == [200, 200]
        assert all(b"secret" not in body for _, body in answers)
        assert len(worker.requests) == 3
