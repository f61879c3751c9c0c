"""Workers that cannot serve: each is not ready, says why, and comes back when it fits."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from slime_router.config import Config
from slime_router.errors import SetupError
from slime_router.failover.greetings import PROBE_TEXT
from slime_router.pool.backoff import Backoff
from slime_router.server.app import Gateway
from slime_router.testing import FakeWorker
from tests.integration.gateway import (
    CHAT,
    OtherWords,
    Served,
    Words,
    checkpoint,
    serving,
    tiny_worker,
    until,
    user,
)
from tests.stack import tiny_tokenizer

BODY = {"model": "tiny", "messages": [user("hi")], "max_tokens": 2}
QUICK: dict[str, Any] = {"health_check_interval_s": 0.01, "retry_initial_backoff_ms": 1.0}


@asynccontextmanager
async def server(answer: Callable[[web.Request], web.Response]) -> AsyncIterator[str]:
    """The URL of something else than a worker."""

    async def handle(request: web.Request) -> web.Response:
        return answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def card(router: Served, url: str) -> dict[str, Any]:
    _, body = await router.get("/workers")
    [found] = [worker for worker in body["workers"] if worker["url"] == url]
    return dict(found)


def misfits(router: Served) -> list[str]:
    return [worker.url for worker in router.gateway.pool.list() if worker.misfit]


def vllm(request: web.Request) -> web.Response:
    """It tokenizes as we do, and lists models."""
    if request.path == "/health":
        return web.Response()
    return web.json_response({"detail": "Not Found"}, status=404)


def page(_: web.Request) -> web.Response:
    return web.Response(text="<html>It works!</html>", content_type="text/html")


def guarded(request: web.Request) -> web.Response:
    if request.path == "/health":
        return web.Response()
    return web.json_response({"error": "Unauthorized"}, status=401)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(vllm, "not an SGLang worker"), (page, "not an SGLang worker"), (guarded, "key")],
)
async def test_what_is_not_a_worker_is_not_ready_and_says_why(answer, reason, caplog):
    async with (
        server(answer) as url,
        tiny_worker() as good,
        serving(url, good.url) as router,
    ):
        await until(lambda: misfits(router) == [url])
        known = await card(router, url)
        assert (known["status"], known["is_healthy"]) == ("not_ready", False)
        assert reason in known["reason"]
        assert (await card(router, good.url))["reason"] is None
        for _ in range(6):
            assert (await router.post(CHAT, BODY))[0] == 200
        assert len(good.requests) == 6
        assert (await router.get("/readiness"))[0] == 200
        assert (await router.get("/metrics"))[1]["fleet"]["unfit"] == 1
    assert any(url in line and reason in line for line in caplog.messages)


async def test_a_fleet_that_does_not_fit_answers_at_once_with_the_reason():
    async with server(vllm) as url, serving(url, worker_wait_s=60.0) as router:
        await until(lambda: misfits(router) == [url])
        status, body = await router.post(CHAT, BODY)
        assert status == 503
        assert "not an SGLang worker" in body["error"]["message"]
        assert "127.0.0.1" not in body["error"]["message"]
        status, body = await router.get("/readiness")
        assert status == 503
        assert "not an SGLang worker" in body["workers"][0]["reason"]


async def test_a_worker_that_comes_to_fit_serves():
    is_there = False

    def changing(request: web.Request) -> web.Response:
        if request.path == "/model_info" and is_there:
            return web.json_response({"model_path": "x"})
        return vllm(request)

    async with server(changing) as url, serving(url, **QUICK) as router:
        await until(lambda: misfits(router) == [url])
        is_there = True
        await until(lambda: misfits(router) == [])
        assert (await card(router, url))["status"] == "ready"


async def test_a_worker_whose_place_another_took_between_two_probes_is_looked_at_again():
    named, words = "/models/a", Words()

    def changing(request: web.Request) -> web.Response:
        if request.path == "/tokenize":
            return web.json_response({"tokens": words.encode(PROBE_TEXT)})
        return web.json_response({"tokenizer_path": named})

    async with server(changing) as url, serving(url, **QUICK) as router:
        [known] = router.gateway.pool.list()
        await until(lambda: known.is_token_exact is True)
        named, words = "/models/b", OtherWords()
        await until(lambda: misfits(router) == [url])
        assert known.is_up
        assert "other tokens" in (await card(router, url))["reason"]


@pytest.mark.parametrize("allows", [False, True])
async def test_a_worker_that_makes_other_tokens_serves_only_where_that_is_allowed(allows, caplog):
    async with (
        tiny_worker(tokenizer=OtherWords()) as other,
        tiny_worker() as good,
        serving(other.url, good.url, allow_token_mismatch=allows) as router,
    ):
        known = router.gateway.pool.get(other.url)
        await until(lambda: known.is_token_exact is False)
        assert (known.misfit is None) is allows
        for _ in range(8):
            assert (await router.post(CHAT, BODY))[0] == 200
        assert bool(other.requests) is allows
        fleet = (await router.get("/metrics"))[1]["fleet"]
        assert (fleet["token_mismatch"], fleet["unfit"]) == (1, int(not allows))
        async with router.http.get("/metrics/prometheus") as response:
            assert "slime_router_workers_token_mismatch 1.0" in await response.text()
        if not allows:
            assert "other tokens" in (await card(router, other.url))["reason"]
    assert any(other.url in line and "tokenizes otherwise" in line for line in caplog.messages)


async def test_a_worker_without_a_tokenizer_or_info_route_serves():
    """It skips its tokenizer, or speaks an older version of the protocol."""

    async def generate(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/generate", generate)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with serving(url, greeting_delays_s=(0, 0)) as router:
            await until(router.gateway.pool.can_serve)
            assert misfits(router) == []
            assert (await card(router, url))["status"] == "ready"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [401, 403, 404, 405, 501])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_generate_route_that_is_not_there_or_closed_is_the_workers_fault(status, stream):
    async with (
        tiny_worker() as broken,
        tiny_worker() as good,
        serving(
            broken.url, good.url, policy="round_robin", cb_failure_threshold=2, **QUICK
        ) as router,
    ):
        for _ in range(12):
            broken.answer_next(status, b'{"detail": "Not Found"}')
        for _ in range(12):
            async with router.http.post(CHAT, json={**BODY, "stream": stream}) as response:
                assert response.status == 200
                await response.read()
        known = router.gateway.pool.get(broken.url)
        assert router.gateway.pool.breaker_state(known) == "open"
        assert len(broken.requests) == 2


@pytest.mark.parametrize("code", [401, 403, 404])
@pytest.mark.parametrize("path", [CHAT, "/generate"])
async def test_a_lone_worker_without_generate_is_a_bad_gateway(code, path):
    """To its client a 401 would say that the client's own key is wrong."""
    async with tiny_worker() as broken, serving(broken.url, retry_max_retries=1) as router:
        for _ in range(4):
            broken.answer_next(code, b'{"error": "Unauthorized"}')
        status, body = await router.post(path, BODY if path == CHAT else {"input_ids": [5]})
        assert status == 502
        assert str(code) in body["error"]["message"]


class Locked(FakeWorker):
    """It wants a key where no probe looks."""

    async def _control(self, request: web.Request) -> web.Response:
        if request.path == "/get_weights_by_name":
            return web.Response(status=401)
        return await super()._control(request)


async def test_a_key_that_a_worker_refuses_on_a_route_passed_on_is_not_the_clients():
    async with Locked(vocab_size=500, context_len=2048) as worker, serving(worker.url) as router:
        status, body = await router.get("/get_weights_by_name")
        assert (status, body["error"]["code"]) == (502, "upstream_error")
        assert "key" in body["error"]["message"]


class Draining(FakeWorker):
    """It shuts down, and says so; what it has goes on. Older ones have no `/ping`."""

    drains = False
    has_ping = True
    failed_once = False  # its own check of its health

    async def _control(self, request: web.Request) -> web.Response:
        if request.path == "/ping":
            if not self.has_ping:
                return web.Response(status=404)
            if self.drains or self.failed_once:
                return web.Response(status=503)
        if request.path == "/health" and self.drains:
            return web.Response(status=503)
        return await super()._control(request)


@pytest.mark.parametrize("has_ping", [True, False])
async def test_a_worker_whose_health_says_503_is_left_while_it_drains(has_ping):
    settings: dict[str, Any] = {"vocab_size": 500, "context_len": 2048}
    leaving = Draining(**settings)
    leaving.has_ping = has_ping
    async with (
        leaving,
        tiny_worker() as good,
        serving(leaving.url, good.url, policy="round_robin", **QUICK) as router,
    ):
        known = router.gateway.pool.get(leaving.url)
        leaving.drains = True
        await until(lambda: known.is_refusing)
        assert (await card(router, leaving.url))["status"] == "not_ready"
        assert "503" in (await card(router, leaving.url))["reason"]
        before = len(leaving.requests)
        for _ in range(6):
            assert (await router.post(CHAT, BODY))[0] == 200
        assert len(leaving.requests) == before
        assert router.gateway.fleet.health.deaths == 0
        leaving.drains = False
        await until(lambda: not known.is_refusing)
        assert (await card(router, leaving.url))["status"] == "ready"


async def test_probes_cost_a_worker_no_tokens():
    """SGLang's `/health` generates one, and needs a second for it."""
    async with tiny_worker() as worker, serving(worker.url, **QUICK) as router:
        await until(lambda: sum(seen.path == "/model_info" for seen in worker.controls) > 3)
        assert router.gateway.pool.list()[0].is_up
        assert not [seen.path for seen in worker.controls if seen.path.startswith("/health")]


async def test_a_worker_that_failed_its_own_check_once_goes_on_serving():
    """It stays unwell at `/ping` until somebody asks for its health again."""
    worker = Draining(vocab_size=tiny_tokenizer().vocab_size, context_len=2048)
    worker.failed_once = True
    async with worker, serving(worker.url, **QUICK) as router:
        await until(lambda: any(seen.path == "/health" for seen in worker.controls))
        assert (await router.post(CHAT, BODY))[0] == 200
        assert not router.gateway.pool.list()[0].is_refusing


async def test_a_worker_that_answers_503_is_not_asked_first_each_time():
    """A full queue: its health is fine, and it serves where there is nobody else."""
    async with (
        tiny_worker() as busy,
        tiny_worker() as good,
        serving(busy.url, good.url, policy="round_robin") as router,
    ):
        for _ in range(20):
            busy.answer_next(503, b'{"message": "The request queue is full."}')
        for _ in range(10):
            assert (await router.post(CHAT, BODY))[0] == 200
        assert len(busy.requests) <= 2
        await router.post("/remove_worker", {"url": good.url})
        busy._answers.clear()
        assert (await router.post(CHAT, BODY))[0] == 200


async def test_a_worker_that_never_finishes_is_asked_less_and_less_often(monkeypatch):
    """Each try brings a token, so no count of tries in a row ends the request."""
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    monkeypatch.setattr("slime_router.failover.attempts.asyncio.sleep", sleep)
    async with (
        tiny_worker() as broken,
        serving(
            broken.url,
            enable_circuit_breaker=False,
            enable_health_check=False,
            retry_initial_backoff_ms=50.0,
            retry_jitter_factor=0.0,
        ) as router,
    ):
        monkeypatch.setattr(router.gateway.pool, "_clock", lambda: sum(slept))
        for _ in range(8):
            broken.drop_next(after_bytes=400)
        async with router.http.post(
            CHAT, json={**BODY, "max_tokens": 64, "stream": True}
        ) as response:
            await response.read()
    growing = [round(delay_s / 0.05, 2) for delay_s in slept if delay_s][:6]
    assert growing == [round(1.5**n, 2) for n in range(len(growing))]
    assert len(growing) == 6


async def test_a_worker_that_keeps_aborting_is_asked_less_and_less_often(monkeypatch):
    """Each try brings a token, as if its weights were updated all the time."""
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    async with (
        tiny_worker() as worker,
        serving(
            worker.url,
            enable_health_check=False,
            retry_initial_backoff_ms=50.0,
            retry_jitter_factor=0.0,
        ) as router,
    ):
        abort = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
        for number in range(8):
            worker.script([100], finish=abort, weight_version=f"v{number}")
        monkeypatch.setattr("slime_router.failover.attempts.asyncio.sleep", sleep)
        status, _ = await router.post(CHAT, {**BODY, "max_tokens": 64})
        assert status == 200
    growing = [round(delay_s / 0.05, 2) for delay_s in slept if delay_s]
    assert growing[:8] == [round(1.5**n, 2) for n in range(8)]


# At start, and what the supervisor is for


def config(**settings: Any) -> Config:
    return Config(hf_checkpoint=str(checkpoint()), port=0, tool_call_parser="none", **settings)


@pytest.mark.parametrize("url", ["http://h:1/v1", "http://gpu7..cluster:30000", "http://h:0"])
def test_a_worker_that_cannot_be_reached_keeps_the_router_from_starting(url):
    with pytest.raises(SetupError) as caught:
        Gateway(config(worker_urls=(url,)))
    assert url in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("path", ["http://a/health", "/he alth", "/health\n", "/h#x", "/\ufffd"])
def test_a_health_endpoint_that_is_not_a_path_keeps_it_from_starting(path):
    with pytest.raises(SetupError, match="--health-check-endpoint"):
        Gateway(config(health_check_endpoint=path))


@pytest.mark.parametrize(
    "url", ["http://h:1/v1", "http://.gpu7:1", "http://\ufffd:1", "http://h:0"]
)
async def test_a_worker_that_cannot_be_reached_is_not_registered(url):
    async with serving() as router:
        for path, body in (("/workers", {"url": url}), ("/add_worker", {"url": url})):
            status, reply = await router.post(path, body)
            assert status == 400
            assert reply["error"]["param"] == "url"
        assert len(router.gateway.pool) == 0


async def test_a_health_endpoint_without_its_slash_is_probed():
    async with (
        tiny_worker() as worker,
        serving(worker.url, health_check_endpoint="health", **QUICK) as router,
    ):
        await until(lambda: any(seen.path == "/health" for seen in worker.controls))
        await until(lambda: router.gateway.pool.list()[0].is_token_exact is True)
        assert router.gateway.supervisor.failures.total() == 0


async def test_a_host_that_cannot_be_looked_up_costs_no_request_and_no_task(caplog):
    """However it came to be registered."""
    caplog.set_level(logging.DEBUG, "slime_router")
    async with tiny_worker() as good, serving(good.url, **QUICK) as router:
        pool = router.gateway.pool
        worker = pool.add("http://gpu7.cluster:1")
        worker.url = "http://gpu7..cluster:1"
        pool._workers[worker.url] = pool._workers.pop("http://gpu7.cluster:1")
        for _ in range(6):
            assert (await router.post(CHAT, BODY))[0] == 200
        await until(lambda: not worker.is_up)
        assert router.gateway.supervisor.failures.total() == 0


async def test_a_background_task_that_keeps_failing_is_counted_and_goes_on(monkeypatch):
    async with serving() as router:
        looks = []

        def broken() -> None:
            looks.append(1)
            raise RuntimeError("once")

        monkeypatch.setattr(router.gateway.supervisor, "_backoff", Backoff(initial_s=0.0))
        router.gateway.supervisor.every(0.001, "look", broken)
        await until(lambda: len(looks) > 2)
        figures = (await router.get("/metrics"))[1]["background"]
        assert figures["failures"] >= 2
        assert figures["tasks"] >= 3


@pytest.mark.parametrize("part", ["_probe", "_ask_load", "_ask_whether_it_drains"])
async def test_a_watch_that_fails_goes_on(part, monkeypatch, caplog):
    async with tiny_worker() as worker, serving(worker.url, **QUICK) as router:
        health, supervisor = router.gateway.fleet.health, router.gateway.supervisor
        await until(lambda: router.gateway.pool.list()[0].is_token_exact is True)
        monkeypatch.setattr(supervisor, "_backoff", Backoff(initial_s=0.0))
        plain = getattr(health, part)
        failures: list[Exception] = [OSError("too many\nfiles"), UnicodeError("label too long")]

        async def broken(*given: Any) -> Any:
            if failures:
                raise failures.pop()
            return await plain(*given)

        monkeypatch.setattr(health, part, broken)
        await until(lambda: supervisor.failures["health watch"] == 2)
        await worker.refuse_connections()
        await until(lambda: not router.gateway.pool.list()[0].is_up)
        await worker.accept_connections()
        await until(lambda: router.gateway.pool.list()[0].is_up)
        assert (await router.post(CHAT, BODY))[0] == 200
        assert (await router.get("/metrics"))[1]["background"]["failures"] == 2
    assert any("UnicodeError: label too long" in line for line in caplog.messages)
    assert any("too many files" in line for line in caplog.messages), "on one line"


async def test_a_greeting_that_fails_is_made_again(monkeypatch):
    async with tiny_worker() as worker, serving(worker.url) as router:
        greetings, supervisor = router.gateway.fleet.greetings, router.gateway.supervisor
        await until(lambda: not len(greetings))
        monkeypatch.setattr(supervisor, "_backoff", Backoff(initial_s=0.0))
        plain, failures = greetings._look, [KeyError("tokens")]

        async def broken(worker: Any) -> bool:
            if failures:
                raise failures.pop()
            return await plain(worker)

        monkeypatch.setattr(greetings, "_look", broken)
        known = router.gateway.pool.list()[0]
        known.judged("unknown")
        greetings.greet(known)
        await until(lambda: known.misfit is None)
        assert supervisor.failures["greeting"] == 1
