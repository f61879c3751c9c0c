"""A worker that cannot take a request, or fails at it: another one gives the one reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from slime_router.testing import FakeWorker
from tests.clock import Clock
from tests.integration.gateway import CHAT, Served, served, until, user
from tests.integration.storytellers import (
    down,
    fleet,
    miss_probes,
    only_turn,
    request_of,
    story,
    streamed,
    text_of,
)

BODY = request_of()


async def told(router: Served, *, stream: bool) -> str:
    text, _ = await router.chat([user("Tell me")], max_tokens=8, stream=stream)
    return text


def check_one_reply(router: Served, workers: list[FakeWorker], text: str) -> None:
    """The client and the trainer have what one worker says, once."""
    turn = only_turn(router)
    sampled, logprobs = story(turn.prompt_ids.tolist(), 8)
    assert turn.output_ids.tolist() == sampled
    assert turn.logprobs is not None
    assert turn.logprobs.tolist() == logprobs
    assert text == text_of(sampled)


def answers(status: int, body: bytes = b"x") -> Callable[[FakeWorker], None]:
    return lambda worker: worker.answer_next(status, body)


FAULTS: dict[str, Callable[[FakeWorker], None]] = {
    "reset": lambda worker: worker.drop_next(),
    "500": answers(500),
    "502": answers(502),
    "503": answers(503),
    "504": answers(504),
    "429": answers(429),
    "garbage": answers(200),
    "empty": answers(200, b""),
    "no object": answers(200, b"[1]"),
    "cut body": lambda worker: worker.drop_next(after_bytes=20),
    "dead": lambda worker: worker.die_next(),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_fails_before_the_first_token_goes_to_another_worker(fault, stream):
    """One reply, nothing doubled, counted; each try under its own rid."""
    async with fleet(2) as (router, workers):
        FAULTS[fault](workers[0])
        text = await told(router, stream=stream)
        check_one_reply(router, workers, text)
        counts = router.gateway.relay.counts
        assert counts["retried"] >= 1
        assert counts["moved"] == 0
        rids = [request.body["rid"] for worker in workers for request in worker.requests]
        assert 1 < len(rids) == len(set(rids)) <= counts["retried"] + 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_worker_that_refuses_connections_is_left_at_once(stream):
    """Nobody has seen the request: it keeps its rid."""
    async with fleet(2, health_check_interval_s=60.0) as (router, workers):
        await workers[0].refuse_connections()
        text = await told(router, stream=stream)
        check_one_reply(router, workers, text)
        (request,) = workers[1].requests
        assert "~" not in request.body["rid"]
        await until(lambda: down(router) == [workers[0].url])


async def test_a_worker_that_hangs_is_given_up_and_its_request_moves():
    clock = Clock()
    async with fleet(2, health_failure_threshold=2) as (router, workers):
        workers[0].hang()
        asked = asyncio.create_task(told(router, stream=False))
        await miss_probes(router, workers[0], clock)
        text = await asked
        check_one_reply(router, workers, text)
        assert down(router) == [workers[0].url]
        assert router.gateway.fleet.health.deaths == 1
        workers[0].recover()  # or the router waits for the end of its abort when it closes


async def test_a_refusal_is_handed_on_at_once_and_counts_against_nobody():
    async with fleet(2, cb_failure_threshold=1) as (router, workers):
        for _ in range(4):
            for worker in workers:
                worker.answer_next(422, b'{"error": {"message": "no"}}')
            status, body = await router.post(CHAT, BODY)
            assert (status, body["error"]["message"]) == (422, "no")
            for worker in workers:
                worker._answers.clear()
        assert sum(len(worker.requests) for worker in workers) == 4
        assert router.gateway.relay.counts["retried"] == 0
        states = [router.gateway.pool.breaker_state(w) for w in router.gateway.pool.list()]
        assert states == ["closed", "closed"]


async def test_a_request_that_breaks_four_workers_is_given_up():
    """It may be the request that kills them: the fifth is spared."""
    async with fleet(5) as (router, workers):
        for worker in workers:
            worker.answer_next(500, b"")
        status, body = await router.post(CHAT, BODY)
        assert status == 502
        assert body["error"]["code"] == "upstream_error"
        assert sum(len(worker.requests) for worker in workers) == 4


async def test_an_error_that_several_workers_give_counts_against_none():
    """One client's bad requests must not take the workers out of service for all others."""
    async with fleet(3, cb_failure_threshold=1) as (router, workers):
        for _ in range(5):
            for worker in workers:
                for _ in range(2):
                    worker.answer_next(500, b'{"error": {"message": "TypeError"}}')
            assert (await router.post(CHAT, BODY))[0] == 502
            for worker in workers:
                worker._answers.clear()
        known = router.gateway.pool.list()
        assert [router.gateway.pool.breaker_state(w) for w in known] == ["closed"] * 3
        assert (await router.post(CHAT, BODY))[0] == 200


async def test_a_worker_alone_with_its_error_is_at_fault():
    async with fleet(
        2, cb_failure_threshold=1, policy="round_robin", health_check_interval_s=60.0
    ) as (
        router,
        workers,
    ):
        workers[0].fail_all(500)
        for _ in range(4):
            assert (await router.post(CHAT, BODY))[0] == 200
        states = {w.url: router.gateway.pool.breaker_state(w) for w in router.gateway.pool.list()}
        assert states == {workers[0].url: "open", workers[1].url: "closed"}


async def test_errors_of_different_kinds_count_against_each():
    async with fleet(
        2, cb_failure_threshold=1, retry_max_retries=1, health_check_interval_s=60.0
    ) as (router, workers):
        workers[0].fail_all(500)
        workers[1].fail_all(501)
        assert (await router.post(CHAT, BODY))[0] == 502
        known = router.gateway.pool.list()
        assert [router.gateway.pool.breaker_state(w) for w in known] == ["open"] * 2


async def test_retries_are_bounded_and_the_last_answer_is_told():
    async with fleet(2, retry_max_retries=3) as (router, workers):
        for worker in workers:
            for _ in range(2):
                worker.answer_next(503, b"{}")
        status, body = await router.post(CHAT, BODY)
        assert status == 503
        assert body["error"]["type"] == "service_unavailable_error"
        assert sum(len(worker.requests) for worker in workers) == 4
        await told(router, stream=False)


async def test_without_retries_the_first_failure_is_told():
    async with fleet(2, retry_max_retries=0, health_check_interval_s=60.0) as (router, workers):
        workers[0].fail_all(503)
        workers[1].fail_all(503)
        status, _ = await router.post(CHAT, BODY)
        assert status == 503
        assert sum(len(worker.requests) for worker in workers) == 1


async def test_the_delay_grows_where_nobody_else_can_be_asked(monkeypatch):
    """With one worker the tries are further and further apart."""
    delays: list[float] = []
    async with fleet(1, retry_jitter_factor=0.0, retry_max_backoff_ms=3.0) as (router, (worker,)):
        backoff = type(router.gateway.relay._dispatcher.backoff)
        plain = backoff.delay_s

        def noted(self: Any, retry: int, random: Callable[[], float]) -> float:
            delays.append(plain(self, retry, random))
            return delays[-1]

        monkeypatch.setattr(backoff, "delay_s", noted)
        for _ in range(4):
            worker.answer_next(429, b"")
        await told(router, stream=False)
    assert delays == pytest.approx([0.001, 0.0015, 0.00225, 0.003])


async def test_a_request_waits_for_a_worker_that_comes_in_time():
    async with fleet(1) as (router, (worker,)):
        await worker.refuse_connections()
        await until(lambda: down(router) == [worker.url])
        asked = asyncio.create_task(told(router, stream=True))
        await until(lambda: router.gateway.relay.counts["waited"] == 1)
        await worker.accept_connections()
        check_one_reply(router, [worker], await asked)


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_request_that_no_worker_takes_in_time_is_told_when_the_next_probe_is_due(is_known):
    given: dict[str, Any] = {"worker_wait_s": 0.05, "retry_max_retries": 1}
    async with fleet(1, health_check_interval_s=7.0, **given) as (router, (worker,)):
        await worker.refuse_connections()
        if is_known:
            router.gateway.pool.mark_down(router.gateway.pool.list()[0])
        async with router.http.post(CHAT, json=BODY) as response:
            assert response.status == 503
            assert response.headers["retry-after"] == "7"
            assert (await response.json())["error"]["code"] == "no_available_workers"


async def test_a_client_that_leaves_while_its_request_waits_leaves_nothing():
    async with fleet(1) as (router, (worker,)):
        await worker.refuse_connections()
        await until(lambda: down(router) == [worker.url])
        asked = asyncio.create_task(router.post(CHAT, BODY))
        await until(lambda: router.gateway.relay.running == 1)
        asked.cancel()
        await asyncio.wait([asked])
        await until(lambda: router.gateway.relay.running == 0)
        assert router.gateway.pool.total_in_flight == 0


async def test_too_many_failures_open_the_breaker_and_a_trial_closes_it():
    settings: dict[str, Any] = {
        "cb_failure_threshold": 2, "cb_success_threshold": 1, "cb_timeout_s": 60.0,
        "retry_max_retries": 0, "worker_wait_s": 0.0,
    }  # fmt: skip
    clock = Clock()
    async with fleet(1, **settings) as (router, (worker,)):
        router.gateway.pool._clock = clock
        (known,) = router.gateway.pool.list()
        for _ in range(2):
            worker.answer_next(500, b"")
            assert (await router.post(CHAT, BODY))[0] == 502
        assert router.gateway.pool.breaker_state(known) == "open"
        assert (await router.post(CHAT, BODY))[0] == 503
        assert len(worker.requests) == 2
        clock.put_forward(60.0)
        assert router.gateway.pool.breaker_state(known) == "half_open"
        await told(router, stream=False)
        assert router.gateway.pool.breaker_state(known) == "closed"


async def test_a_request_waits_for_a_breaker_that_will_let_it_through():
    """It is a matter of time; meanwhile the router does not say that it is ready."""
    settings: dict[str, Any] = {
        "cb_failure_threshold": 1, "cb_success_threshold": 1, "cb_timeout_s": 30.0,
        "retry_max_retries": 0, "worker_wait_s": 60.0,
    }  # fmt: skip
    clock = Clock()
    async with fleet(1, **settings) as (router, (worker,)):
        router.gateway.pool._clock = clock
        worker.answer_next(500, b"")
        assert (await router.post(CHAT, BODY))[0] == 502
        assert (await router.get("/readiness"))[0] == 503
        asked = asyncio.create_task(told(router, stream=False))
        await until(lambda: router.gateway.relay.counts["waited"] == 1)
        clock.put_forward(30.0)
        await asked
        assert (await router.get("/readiness"))[0] == 200


async def test_a_pinned_request_goes_nowhere_else():
    """Its worker is waited for; the other is never asked."""
    async with fleet(2, worker_wait_s=0.05) as (router, workers):
        await workers[0].refuse_connections()
        need = {"X-SMG-Target-Worker": workers[0].url}
        async with router.http.get("/echo", headers=need) as response:
            assert response.status == 503
        need = {"X-SMG-Target-Worker": workers[1].url}
        async with router.http.get("/echo", headers=need) as response:
            assert response.status == 200
        async with router.http.post(CHAT, json=BODY, headers=need) as response:
            assert response.status == 200
        need = {"X-SMG-Target-Worker": workers[0].url}
        async with router.http.post(CHAT, json=BODY, headers=need) as response:
            assert response.status == 503
        assert [len(worker.requests) for worker in workers] == [0, 1]


async def test_the_key_of_a_worker_is_sent_and_the_clients_never():
    async with served(worker_api_key="w-secret") as (router, worker):
        headers = {"Authorization": "Bearer client", "x-api-key": "client"}
        async with router.http.post(CHAT, json=BODY, headers=headers) as response:
            assert response.status == 200
        async with router.http.get("/echo", headers=headers) as response:
            heard = (await response.json())["headers"]
        await router.http.post("/flush_cache", headers=headers)
        seen = [request.headers for request in (*worker.requests, *worker.controls)]
        assert {headers.get("Authorization") for headers in seen} == {"Bearer w-secret"}
        assert ["Authorization", "Bearer w-secret"] in heard
        assert "client" not in str([seen, heard])


async def test_a_draining_worker_gets_nothing_new_and_goes_behind_its_last_request():
    async with fleet(2) as (router, workers):
        workers[0].hold(after_tokens=1)
        asked = asyncio.create_task(told(router, stream=True))
        await workers[0].wait_running(1)
        router.gateway.pool.drain(workers[0].url)
        for _ in range(3):
            await router.post(CHAT, request_of("Another"))
        assert len(workers[0].requests) == 1
        assert len(router.gateway.pool) == 2
        workers[0].release()
        assert len(await asked) == 8
        await until(lambda: len(router.gateway.pool) == 1)


@pytest.mark.parametrize(
    ("policy", "allowed"), [(0, {"v2"}), (1, {"v1", "v2"}), (None, {"v1", "v2"})]
)
async def test_requests_go_to_workers_whose_weights_are_new_enough(policy, allowed):
    settings = {"weight_version": "v1"}
    async with fleet(2, settings, version_policy=policy) as (router, workers):
        known = router.gateway.pool.list()
        await until(lambda: {worker.weight_version for worker in known} == {"v1"})
        router.gateway.weights.set_current("v1")
        router.gateway.weights.set_current("v2")
        workers[0].weight_version = "v2"
        await until(lambda: known[0].weight_version == "v2")
        for index in range(4):
            await router.post(CHAT, request_of(f"Question {index}"))
        used = {worker.weight_version for worker in workers if worker.requests}
        assert used == allowed


async def test_a_request_waits_for_new_weights_when_all_lag():
    async with fleet(1, {"weight_version": "v1"}, version_policy=0) as (router, (worker,)):
        (known,) = router.gateway.pool.list()
        await until(lambda: known.weight_version == "v1")
        router.gateway.weights.set_current("v1")
        router.gateway.weights.set_current("v2")
        asked = asyncio.create_task(told(router, stream=False))
        await until(lambda: router.gateway.relay.counts["waited"] == 1)
        worker.weight_version = "v2"
        assert len(await asked) == 8


async def test_other_requests_are_passed_over_too():
    async with fleet(2, health_check_interval_s=60.0) as (router, workers):
        await workers[0].refuse_connections()
        for _ in range(3):
            assert (await router.get("/echo"))[0] == 200


async def test_failures_of_the_last_hope_are_told_in_a_stream_too():
    """Before the first token the status line still says it."""
    async with served(retry_max_retries=0) as (router, worker):
        worker.answer_next(200, b"x")
        async with router.http.post(CHAT, json={**BODY, "stream": True}) as response:
            assert response.status == 502


async def test_a_burst_while_a_worker_dies_loses_nothing():
    async with fleet(3) as (router, workers):
        workers[0].die_next(after_tokens=3)
        replies = await asyncio.gather(
            *(streamed(router, CHAT, request_of(f"Question {i}")) for i in range(12))
        )
        for events in replies:
            text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events)
            assert len(text) == 8
        assert len(router.gateway.store) == 12
