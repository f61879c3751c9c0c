"""Workers die, fall silent, come back and leave; the router finds out, and nothing is left over."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from aiohttp import ClientConnectorError, ClientRequest, TCPConnector, web

from slime_router.engine.client import WorkerClient
from slime_router.engine.connector import Connector
from slime_router.failover.health import Health, HealthSettings
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from slime_router.supervisor import Supervisor
from slime_router.testing import FakeWorker
from tests.clock import Clock
from tests.integration.gateway import CHAT, serving, tiny_worker, until
from tests.integration.storytellers import (
    QUICK,
    down,
    fleet,
    miss_a_probe,
    miss_probes,
    only_turn,
    request_of,
    story,
    streamed,
    teller,
)


def paths(worker: FakeWorker) -> list[str]:
    return [control.path for control in worker.controls]


async def test_a_worker_that_dies_is_down_at_once_and_comes_back_as_a_new_one(monkeypatch):
    """It is greeted again, its weights are asked for, and the policy forgot what it held."""
    async with fleet(2, health_check_interval_s=60.0) as (router, workers):
        gateway = router.gateway
        await router.post(CHAT, request_of())
        home = workers[0] if workers[0].requests else workers[1]
        known = gateway.pool.get(home.url)
        forgotten: list[str] = []
        policy = gateway.pool._policy
        plain = policy.forget

        def forget(worker: Worker) -> None:
            forgotten.append(worker.url)
            plain(worker)

        monkeypatch.setattr(policy, "forget", forget)
        await home.refuse_connections()
        for _ in range(2):
            status, _ = await router.post(CHAT, request_of())
            assert status == 200, "elsewhere"
        await until(lambda: down(router) == [home.url])
        assert forgotten == [home.url]
        assert known.weight_version is None
        home.controls.clear()
        home.weight_version = "v9"
        await home.accept_connections()
        await until(lambda: down(router) == [])
        await until(lambda: "/tokenize" in paths(home))
        assert known.weight_version == "v9"
        assert gateway.fleet.health.recoveries == 1


async def test_a_worker_that_falls_silent_loses_what_it_runs():
    """After the threshold; a stream that was under way goes on elsewhere."""
    clock = Clock()
    async with fleet(2, health_failure_threshold=2) as (router, workers):
        workers[0].hold(after_tokens=2)
        asked = asyncio.create_task(router.chat([{"role": "user", "content": "hi"}], stream=True))
        await until(lambda: any(r.count == 2 for r in workers[0]._engine.runs.values()))
        workers[0].hang()
        await miss_probes(router, workers[0], clock)
        text, _ = await asked
        assert text
        assert router.gateway.relay.counts["moved"] == 1
        assert down(router) == [workers[0].url]
        workers[0].recover()
        await until(lambda: down(router) == [])


async def test_a_router_without_descriptors_blames_no_worker(monkeypatch):
    monkeypatch.setattr("slime_router.engine.client.KEEPALIVE_S", 1e-9)  # none is used again
    opened, tries = TCPConnector._create_connection, []

    async def none_left(self: TCPConnector, request: ClientRequest, *args: Any) -> Any:
        if not isinstance(self, Connector):  # the test's own
            return await opened(self, request, *args)
        tries.append(request.url.path)
        error = OSError(errno.EMFILE, "Too many open files")
        raise ClientConnectorError(request.connection_key, error)

    async with fleet(
        1, health_check_interval_s=0.01, health_failure_threshold=1, cb_failure_threshold=1
    ) as (router, _):
        monkeypatch.setattr(TCPConnector, "_create_connection", none_left)
        status, reply = await router.post(CHAT, request_of())
        assert (status, reply["error"]["code"]) == (503, "out_of_descriptors")
        await until(lambda: len(tries) > 3)  # probes, too
        assert down(router) == []
        monkeypatch.setattr(TCPConnector, "_create_connection", opened)
        assert (await router.post(CHAT, request_of()))[0] == 200
        assert router.gateway.fleet.health.deaths == 0


async def test_one_silent_probe_is_no_death():
    clock = Clock()
    async with fleet(1, health_failure_threshold=9) as (router, (worker,)):
        worker.hang()
        asked = asyncio.create_task(router.post(CHAT, request_of()))
        await until(lambda: router.gateway.pool.total_in_flight == 1)
        await miss_a_probe(router, worker, clock)
        worker.recover()
        assert (await asked)[0] == 200
        assert router.gateway.fleet.health.deaths == 0


@pytest.mark.parametrize("status", [401, 404])
async def test_whoever_answers_a_probe_is_alive(status):
    """A worker without that route, or with a key that we do not know."""
    async with fleet(1) as (router, (worker,)):
        worker.fail_all(status)
        seen = len(worker.controls)
        await until(lambda: len(worker.controls) > seen + 8)
        assert down(router) == []


async def test_a_worker_that_answers_probes_with_500_is_down_until_it_does_not():
    async with fleet(1, health_failure_threshold=2) as (router, (worker,)):
        worker.fail_all(500)
        await until(lambda: down(router) == [worker.url])
        worker.recover()
        await until(lambda: down(router) == [])


async def test_it_takes_several_successes_to_come_back_where_that_is_wanted():
    async with fleet(1, health_success_threshold=3) as (router, (worker,)):
        worker.fail_all(500)
        await until(lambda: down(router) == [worker.url])
        worker.controls.clear()
        worker.recover()
        await until(lambda: down(router) == [])
        assert paths(worker).count("/model_info") >= 3


async def test_a_worker_that_was_never_there_is_waited_for():
    async with teller() as worker:
        await worker.refuse_connections()
        async with serving(worker.url, **QUICK) as router:
            await until(lambda: down(router) == [worker.url])
            assert router.gateway.fleet.health.deaths == 0
            asked = asyncio.create_task(router.post(CHAT, request_of()))
            await until(lambda: router.gateway.relay.counts["waited"] == 1)
            await worker.accept_connections()
            assert (await asked)[0] == 200
            assert router.gateway.fleet.health.recoveries == 0


async def test_a_removed_worker_is_watched_no_more():
    async with fleet(2) as (router, workers):
        health = router.gateway.fleet.health
        assert len(health._watches) == 2
        router.gateway.pool.remove(workers[0].url)
        await until(lambda: len(health._watches) == 1)
        seen = len(workers[0].controls)
        others = len(workers[1].controls)
        await until(lambda: len(workers[1].controls) > others + 4)
        assert len(workers[0].controls) == seen


@pytest.mark.parametrize("is_enabled", [True, False])
async def test_a_removed_worker_is_watched_until_its_last_reply_has_ended(is_enabled):
    """With health checks or without: the watch does not outlive the reply."""
    async with fleet(2, enable_health_check=is_enabled) as (router, workers):
        workers[0].hold(after_tokens=2)
        asked = asyncio.create_task(router.chat([{"role": "user", "content": "hi"}], stream=True))
        await until(lambda: any(r.count == 2 for r in workers[0]._engine.runs.values()))
        await router.post(f"/remove_worker?url={workers[0].url}")
        seen = len(workers[0].controls)
        if is_enabled:
            await until(lambda: len(workers[0].controls) > seen + 2)
        assert len(router.gateway.fleet.health._watches) == 2
        workers[0].release()
        await asked
        await until(lambda: len(router.gateway.fleet.health._watches) == 1)
        assert router.gateway.relay.counts["moved"] == 0


async def test_what_a_removed_worker_hangs_with_goes_on_elsewhere():
    clock = Clock()
    async with fleet(2, health_failure_threshold=2) as (router, workers):
        body = request_of(max_tokens=8, stream=True)
        workers[0].hold(after_tokens=2)
        asked = asyncio.create_task(streamed(router, CHAT, body))
        await until(lambda: any(r.count == 2 for r in workers[0]._engine.runs.values()))
        await router.post(f"/remove_worker?url={workers[0].url}")
        workers[0].hang()
        await miss_probes(router, workers[0], clock)
        await asked
        turn = only_turn(router)
        assert turn.output_ids.tolist() == story(turn.prompt_ids.tolist(), 8)[0]
        assert router.gateway.relay.counts["moved"] == 1
        await until(lambda: len(router.gateway.fleet.health._watches) == 1)
        assert [worker.url for worker in router.gateway.pool.list()] == [workers[1].url]
        workers[0].recover()  # or the router waits for the end of its abort when it closes


async def test_without_health_checks_only_a_failure_is_looked_into():
    async with fleet(1, enable_health_check=False) as (router, (worker,)):
        seen = paths(worker).count("/model_info")
        assert seen in (1, 2), "who it is"
        await until(lambda: not len(router.gateway.fleet.greetings))
        seen = paths(worker).count("/model_info")
        await router.post(CHAT, request_of())
        assert paths(worker).count("/model_info") == seen
        await worker.refuse_connections()
        asked = asyncio.create_task(router.post(CHAT, request_of()))
        await until(lambda: down(router) == [worker.url])
        await worker.accept_connections()
        assert (await asked)[0] == 200
        assert down(router) == []


async def test_a_workers_queue_is_known():
    async with fleet(1) as (router, (worker,)):
        (known,) = router.gateway.pool.list()
        worker.queued = [7]
        await until(lambda: known.queued == 7)
        assert known.kv_tokens == 100_000


@pytest.mark.parametrize("loads", [5, True, "x", {"a": 1}, [5], [[]], [{"num_waiting_reqs": "x"}]])
async def test_a_queue_that_a_worker_makes_no_sense_of_is_empty(loads):
    class Odd(FakeWorker):
        async def _control(self, request: web.Request) -> web.Response:
            answer = await super()._control(request)
            is_asked = request.path == "/v1/loads"
            return web.json_response({"loads": loads}) if is_asked else answer

    async with Odd() as worker, serving(worker.url, health_check_interval_s=0.01) as router:
        (known,) = router.gateway.pool.list()
        await until(lambda: paths(worker).count("/v1/loads") > 1)
        assert (known.queued, router.gateway.supervisor.failures.total()) == (0, 0)


async def test_weights_that_a_trainer_changed_behind_our_back_are_found():
    async with fleet(1) as (router, (worker,)):
        (known,) = router.gateway.pool.list()
        worker.weight_version = "v7"
        await until(lambda: known.weight_version == "v7")


async def test_readiness_tells_the_truth_at_once():
    async with fleet(2, health_check_interval_s=60.0) as (router, workers):
        ready = {"status": "ready", "healthy_workers": 2, "total_workers": 2}
        assert await router.get("/readiness") == (200, ready)
        for worker in workers:
            await worker.refuse_connections()
        asked = asyncio.create_task(router.post(CHAT, request_of()))
        await until(lambda: len(down(router)) == 2)
        status, body = await router.get("/readiness")
        assert (status, body["status"]) == (503, "not ready")
        assert (await router.get("/health_generate"))[0] == 503
        async with router.http.get("/liveness") as response:
            assert response.status == 200
        await workers[0].accept_connections()
        assert (await asked)[0] == 200
        await until(router.gateway.pool.can_serve)
        assert (await router.get("/readiness"))[0] == 200
        assert (await router.get("/health_generate"))[0] == 200


async def test_a_worker_is_not_ready_before_somebody_has_spoken_to_it():
    async with tiny_worker() as worker:
        worker.hang()
        async with serving(worker.url, **QUICK, greeting_delays_s=[0] + [0.001] * 10_000) as router:
            status, body = await router.get("/readiness")
            assert (status, body["healthy_workers"]) == (503, 0)
            [unready] = body["workers"]
            assert "not looked at" in unready["reason"]
            [card] = (await router.get("/workers"))[1]["workers"]
            assert (card["status"], card["is_healthy"]) == ("not_ready", False)
            worker.recover()
            await until(router.gateway.pool.can_serve)
            assert (await router.get("/readiness"))[0] == 200


async def test_a_worker_that_was_started_anew_is_looked_at_anew():
    async with fleet(1) as (router, (worker,)):
        assert (await router.get("/readiness"))[0] == 200
        await worker.refuse_connections()
        await until(lambda: down(router) == [worker.url])
        [known] = router.gateway.pool.list()
        assert not known.was_greeted
        await worker.accept_connections()
        await until(lambda: known.was_greeted)
        assert (await router.get("/readiness"))[0] == 200


@pytest.mark.parametrize("steps", range(0, 40, 3))
async def test_no_task_outlives_the_watch(steps):
    """Closed at any moment: in a rest, in a probe, before the first of them."""
    others = asyncio.all_tasks()
    async with FakeWorker() as worker, FakeWorker() as hung:
        hung.hang()
        pool = WorkerPool([worker.url, hung.url])
        client = WorkerClient(vocab_size=1000, capture="full", request_timeout_s=1.0)
        settings = HealthSettings(interval_s=0.001, timeout_s=1.0)
        async with client, Health(pool, client, settings, Supervisor()) as health:
            for _ in range(steps):
                await asyncio.sleep(0)
        assert client._exchanges == {}
        await until(lambda: not health._watches)
    assert asyncio.all_tasks() == others
