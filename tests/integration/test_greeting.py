"""The router compares its tokens with those of every worker that is registered."""

from __future__ import annotations

import logging

from slime_router.failover.greetings import GREETING_DELAYS_S
from tests.integration.gateway import OtherWords, serving, tiny_worker, until, user

FOREVER_S = 1e6


def tokenize_count(worker) -> int:
    return sum(request.path == "/tokenize" for request in worker.controls)


async def card(router):
    _, body = await router.get("/workers")
    return body["workers"][0]


async def greeted(router, worker):
    """Until nobody is being greeted any more: `worker` was."""
    await until(lambda: tokenize_count(worker) > 0 and not len(router.gateway.fleet.greetings))


async def test_a_worker_is_asked_again_until_it_answers():
    """A worker is often registered while it still loads its weights."""
    async with tiny_worker(context_len=1024) as worker:
        await worker.refuse_connections()
        async with serving(worker.url, greeting_delays_s=[0] + [0.001] * 10_000) as router:
            assert (await card(router))["is_token_exact"] is None
            await worker.accept_connections()
            known = router.gateway.pool.list()[0]
            await until(lambda: known.is_token_exact is True)
            assert (await card(router))["context_len"] == 1024
            _, models = await router.get("/v1/models")
            assert models["data"][0]["max_model_len"] == 1024
            await until(lambda: not len(router.gateway.fleet.greetings))
        assert tokenize_count(worker) == 1, "an answer is enough"


async def test_a_worker_that_does_not_answer_is_asked_once_for_each_delay():
    async with tiny_worker(tokenizer=None) as worker:  # has no such route
        async with serving(worker.url, greeting_delays_s=(0, 0, 0)) as router:
            await greeted(router, worker)
            assert (await card(router))["is_token_exact"] is None
        assert tokenize_count(worker) == 3
    assert list(GREETING_DELAYS_S) == sorted(GREETING_DELAYS_S), "the delays grow"


async def test_a_worker_is_asked_again_when_it_comes_up_and_not_before_the_delay_is_over():
    async with (
        tiny_worker(tokenizer=None) as worker,
        serving(worker.url, greeting_delays_s=(0, FOREVER_S)) as router,
    ):
        await until(lambda: tokenize_count(worker) == 1)
        await router.chat([user("Hi")])
        assert tokenize_count(worker) == 1
        greetings, [known] = router.gateway.fleet.greetings, router.gateway.pool.list()
        assert len(greetings) == 1
        greetings.greet(known)
        await until(lambda: not len(greetings))
        assert tokenize_count(worker) == 2


async def test_the_same_tokens_are_said_once(caplog):
    caplog.set_level(logging.INFO, "slime_router")
    async with tiny_worker() as worker, serving(worker.url) as router:
        await greeted(router, worker)
        greetings, [known] = router.gateway.fleet.greetings, router.gateway.pool.list()
        greetings.greet(known)
        await until(lambda: not len(greetings))
        assert tokenize_count(worker) == 2
    assert sum("makes the same tokens" in line for line in caplog.messages) == 1


async def test_a_removed_worker_is_asked_no_more():
    delays_s = [0, *[0.001] * 10_000]
    async with (
        tiny_worker(tokenizer=None) as worker,
        serving(worker.url, greeting_delays_s=delays_s) as router,
    ):
        await until(lambda: tokenize_count(worker) > 1)
        await router.post("/remove_worker", {"url": worker.url})
        await until(lambda: not len(router.gateway.fleet.greetings))


async def test_another_tokenizer_is_warned_of_once(caplog):
    caplog.set_level(logging.WARNING, "slime_router")
    async with tiny_worker(tokenizer=OtherWords()) as worker, serving(worker.url) as router:
        for _ in range(2):
            await greeted(router, worker)
            assert (await card(router))["is_token_exact"] is False
            await router.post("/add_worker", {"url": worker.url})  # trainers do so again and again
        await until(lambda: not len(router.gateway.fleet.greetings))
    assert sum("tokenizes otherwise" in line for line in caplog.messages) == 1


async def test_a_context_length_that_is_none_is_not_believed():
    """SGLang hands on what the tokenizer's files say, which can be 1e30."""
    async with tiny_worker(context_len=1e30) as worker, serving(worker.url) as router:
        await greeted(router, worker)
        assert (await card(router))["is_token_exact"] is True
        assert (await card(router))["context_len"] is None
