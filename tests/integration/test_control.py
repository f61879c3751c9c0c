"""Control routes: one order, all workers, one answer that says what each of them said."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tracemalloc
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from yarl import URL

from slime_router.api.errors import openai_error
from slime_router.edge.plugin_guard import PluginGuard
from slime_router.errors import RouterError
from slime_router.generation.admission import AdmissionQueue
from slime_router.generation.weight_versions import WeightVersions
from slime_router.pool.pool import WorkerPool
from slime_router.server.control_routes import ControlRoutes
from slime_router.server.together.aborts import Aborts
from slime_router.server.together.registry import Registry
from slime_router.siblings.siblings import Siblings
from slime_router.testing import FakeWorker
from tests.clock import Clock
from tests.integration.gateway import until
from tests.relayed import Relayed


class Router:
    """The control routes on a server; `http` has its URL as base, `updates` what they reported."""

    def __init__(self, pool, client, http):
        self.pool = pool
        self.client = client
        self.http = http
        self.updates = []

    def on_weights(self, worker, version, flushes):
        assert version is None or worker.weight_version == version
        self.updates.append((worker.url, version, flushes))

    async def tell(self, path, body=b"{}", method="POST", **options):
        """Status and parsed body of the answer."""
        url = URL(path, encoded=True)
        async with self.http.request(method, url, data=body, **options) as answer:
            raw = await answer.read()
            assert answer.content_type == "application/json"
            return answer.status, orjson.loads(raw)


def no_limit():
    return AdmissionQueue(max_running=1000, max_waiting=0, timeout_s=5)


@asynccontextmanager
async def router(*urls, request_timeout_s=60.0):
    pool = WorkerPool(urls)

    @web.middleware
    async def boundary(request, handler):
        try:
            return await handler(request)
        except RouterError as error:
            return openai_error(error)

    async with AsyncExitStack() as stack:
        client = Relayed(pool, capture="off", request_timeout_s=request_timeout_s)
        await stack.enter_async_context(client)
        running = Router(pool, client, None)
        app = web.Application(client_max_size=2**30, middlewares=[boundary])
        alone = Siblings(None)
        aborts = Aborts(pool, client.relay, no_limit(), PluginGuard(60.0), alone)
        registry = Registry(pool, WeightVersions(), alone, on_weights=running.on_weights)
        for method, path, handler in ControlRoutes(pool, client, aborts, registry).routes():
            app.router.add_route(method, path, handler)
        server = await stack.enter_async_context(TestServer(app, handler_cancellation=True))
        running.http = await stack.enter_async_context(
            aiohttp.ClientSession(server.make_url("/"), auto_decompress=False)
        )
        yield running
        assert pool.total_in_flight == 0


@asynccontextmanager
async def serving(handler):
    """The URL of a worker that answers everything with `handler`."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app, handler_cancellation=True) as server:
        yield str(server.make_url("")).rstrip("/")


def saying(status, body, content_type="application/json"):
    async def handler(request):
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        return web.Response(status=status, body=raw, content_type=content_type)

    return handler


@asynccontextmanager
async def workers_saying(*answers):
    """A router before one worker for each `(status, body)`."""
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(saying(*answer))) for answer in answers]
        yield await stack.enter_async_context(router(*urls)), urls


DONE = {"success": True, "message": "Succeeded."}
FAILED = {"success": False, "message": "no such path"}


# Which workers get what


@pytest.mark.parametrize("count", [1, 3])
async def test_method_query_headers_and_bytes_reach_every_worker_as_they_came(count):
    heard = []

    async def handler(request):
        heard.append((request.method, request.raw_path, await request.read(), request.headers))
        return web.json_response({})

    body = b'{ "mode":\t"abort",\r\n"unknown": [1.50, NaN] }'
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(handler)) for _ in range(count)]
        running = await stack.enter_async_context(router(*urls))
        headers = [
            ("Authorization", "Bearer admin"),
            ("X-Twice", "1"),
            ("X-Twice", "2"),
            ("Content-Type", "application/json; charset=utf-8"),
            ("Connection", "X-Hop"),
            ("X-Hop", "1"),
        ]
        status, _ = await running.tell("/pause_generation?x=%7E&x=1", body, headers=headers)
    assert status == 200
    assert len(heard) == count
    for method, target, got, names in heard:
        assert (method, target, got) == ("POST", "/pause_generation?x=%7E&x=1", body)
        assert "Authorization" not in names, "a client's key is for the router alone"
        assert names.getall("X-Twice") == ["1", "2"]
        assert names["Content-Type"] == "application/json; charset=utf-8"
        assert names["Content-Length"] == str(len(body))
        assert "X-Hop" not in names


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rid", ["a"]),
        ("rid", {"a": 1}),
        ("rid", 5),
        ("rid", 0),
        ("rid", []),
        ("rid", "half a pair: \ud83d"),
        ("abort_all", 0),
        ("abort_all", "yes"),
        ("abort_all", [1]),
    ],
)
async def test_an_abort_of_a_wrong_type_is_refused_before_it_reaches_a_worker(field, value):
    heard = []

    async def handler(request):
        heard.append(request.path)
        return web.Response()

    async with serving(handler) as url, router(url) as running:
        status, answer = await running.tell("/abort_request", json.dumps({field: value}).encode())
    assert (status, answer["error"]["param"]) == (400, field)
    assert not heard


@pytest.mark.parametrize("tags", [5, True, {"kv_cache": 1}, "kv", ["weights"], [["kv_cache"]]])
async def test_tags_that_do_not_name_the_cache_wake_nobody(tags):
    async with workers_saying((200, DONE)) as (running, _):
        await running.tell("/release_memory_occupation", b"{}")
        status, _ = await running.tell("/resume_memory_occupation", orjson.dumps({"tags": tags}))
        assert status == 200
        assert [worker.is_asleep for worker in running.pool.list()] == [True]


ROUTES = """
    POST flush_cache, POST abort_request, POST pause_generation,
    POST continue_generation, POST update_weights_from_disk, POST update_weights_from_tensor,
    POST update_weights_from_distributed, POST update_weights_from_ipc,
    POST init_weights_update_group, POST destroy_weights_update_group, POST begin_weight_update,
    POST end_weight_update, POST update_weight_version, POST release_memory_occupation,
    POST resume_memory_occupation, POST load_lora_adapter, POST unload_lora_adapter,
    POST start_profile, POST stop_profile, POST set_internal_state, PUT set_internal_state
"""


@pytest.mark.parametrize("route", [route.strip() for route in ROUTES.split(",")])
async def test_every_control_route_reaches_all_workers(route):
    method, name = route.split()
    heard = []

    async def handler(request):
        heard.append((request.method, request.path))
        return web.json_response({})

    async with serving(handler) as one, serving(handler) as two, router(one, two) as running:
        body = None if method == "GET" else b"{}"
        assert (await running.tell(f"/{name}", body, method))[0] == 200
    assert heard == [(method, f"/{name}")] * 2


@pytest.mark.parametrize("path", ["/open_session", "/close_session", "/get_weights_by_name"])
async def test_what_one_worker_answers_is_no_control_route(path):
    async with router() as running, running.http.post(path) as answer:
        assert answer.status == 404


async def test_a_packed_body_is_unpacked_and_no_longer_said_to_be_packed():
    """Our server has unpacked it: a worker that was told otherwise could not read it."""
    heard = []

    async def handler(request):
        heard.append((await request.read(), "Content-Encoding" in request.headers))
        return web.json_response({})

    async with serving(handler) as url, router(url) as running:
        packed = gzip.compress(b'{"rid": "x"}')
        await running.tell("/abort_request", packed, headers={"Content-Encoding": "gzip"})
    assert heard == [(b'{"rid": "x"}', False)]


async def test_no_worker_is_503():
    async with router() as running:
        status, reply = await running.tell("/flush_cache")
    assert (status, reply["error"]["code"]) == (503, "no_available_workers")


# One worker: its own answer


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (200, b"Cache flushed.\n", "text/plain"),
        (400, b'{"success": false,  "message": "no"}', "application/json"),
        (200, b"", "application/octet-stream"),
    ],
)
async def test_one_workers_answer_comes_as_it_is(status, body, content_type):
    async with (
        serving(saying(status, body, content_type)) as url,
        router(url) as running,
        running.http.post("/flush_cache") as answer,
    ):
        assert (answer.status, await answer.read()) == (status, body)
        assert answer.content_type == content_type
        assert len(answer.headers.getall("Date")) == 1


async def test_one_workers_packed_answer_stays_packed_and_says_so():
    async def handler(request):
        assert request.headers["Accept-Encoding"] == "gzip"
        return web.Response(body=gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"})

    async with serving(handler) as url, router(url) as running:
        ask = running.http.post("/flush_cache", headers={"Accept-Encoding": "gzip"})
        async with ask as answer:
            assert gzip.decompress(await answer.read()) == b"{}"
            assert answer.headers["Content-Encoding"] == "gzip"


async def test_one_worker_that_is_gone_is_502_and_one_that_hangs_504():
    clock = Clock()

    async def hang(request):
        clock.put_forward(60)
        await asyncio.Event().wait()

    async with router(f"http://127.0.0.1:{unused_port()}") as running:
        assert (await running.tell("/flush_cache"))[0] == 502
    async with serving(hang) as url, router(url, request_timeout_s=60) as running:
        assert (await running.tell("/flush_cache"))[0] == 504


# Several workers: what each of them said


async def test_when_all_went_well_the_first_ones_fields_stand_at_the_top():
    """Old callers read them there."""
    async with workers_saying((200, {**DONE, "rank": 0}), (201, {**DONE, "rank": 1})) as (
        running,
        (one, two),
    ):
        status, reply = await running.tell("/begin_weight_update")
    assert status == 200
    assert reply == {
        **DONE,
        "rank": 0,
        "workers": {
            one: {"status": 200, "body": {**DONE, "rank": 0}},
            two: {"status": 201, "body": {**DONE, "rank": 1}},
        },
    }
    assert list(reply["workers"]) == [one, two]


async def test_answers_that_are_no_objects_stand_in_the_list_only():
    async with workers_saying((200, b"Cache flushed.\n", "text/plain"), (200, b"[1]")) as (
        running,
        (one, two),
    ):
        status, reply = await running.tell("/flush_cache")
    assert (status, reply) == (
        200,
        {
            "workers": {
                one: {"status": 200, "body": "Cache flushed.\n"},
                two: {"status": 200, "body": [1]},
            }
        },
    )


@pytest.mark.parametrize("failing", [(400, FAILED), (200, FAILED)])
async def test_when_some_fail_the_reply_is_207_and_no_success(failing):
    """The top says why; a worker that reports its failure with 200 failed anyway."""
    async with workers_saying((200, DONE), failing, (200, DONE)) as (running, urls):
        status, reply = await running.tell("/load_lora_adapter")
    assert status == 207
    assert (reply["success"], reply["message"]) == (False, "no such path")
    assert [reply["workers"][url]["status"] for url in urls] == [200, failing[0], 200]
    assert [reply["workers"][url]["body"]["success"] for url in urls] == [True, False, True]


async def test_a_worker_that_is_gone_is_502_among_the_others():
    async with (
        FakeWorker() as worker,
        FakeWorker() as gone,
        router(gone.url, worker.url) as running,
    ):
        await gone.refuse_connections()
        status, reply = await running.tell("/flush_cache")
    assert (status, reply["success"]) == (207, False)
    assert reply["workers"][gone.url]["status"] == 502
    assert reply["workers"][gone.url]["body"]["error"]["code"] == "upstream_error"
    assert reply["workers"][worker.url] == {"status": 200, "body": "Cache flushed.\n"}
    assert [control.path for control in worker.controls] == ["/flush_cache"]


async def test_after_an_update_that_failed_nobody_knows_which_weights_a_worker_has():
    """SGLang answers 400 where the weights were changed and the cache could not be flushed."""
    async with workers_saying((200, DONE), (400, FAILED)) as (running, _):
        for worker in running.pool.list():
            worker.observed("old", known=None)
        await running.tell("/update_weights_from_disk", b'{"weight_version": "v2"}')
        assert [worker.weight_version for worker in running.pool.list()] == ["v2", None]


async def test_when_all_fail_the_status_is_the_first_ones():
    async with workers_saying((418, FAILED), (400, FAILED)) as (running, _):
        status, reply = await running.tell("/begin_weight_update")
    assert (status, reply["success"], len(reply["workers"])) == (418, False, 2)
    async with FakeWorker() as one, FakeWorker() as two, router(one.url, two.url) as running:
        await one.refuse_connections()
        await two.refuse_connections()
        assert (await running.tell("/flush_cache"))[0] == 502


async def test_answers_that_are_to_be_read_are_not_asked_for_packed():
    async def handler(request):
        return web.json_response({"asked": request.headers.get("Accept-Encoding")})

    async with serving(handler) as one, serving(handler) as two, router(one, two) as running:
        _, reply = await running.tell("/flush_cache", headers={"Accept-Encoding": "gzip"})
    assert reply["asked"] is None


async def test_a_slow_worker_does_not_hold_up_the_others_and_is_timed_out_alone():
    clock = Clock()
    entered, released = [], asyncio.Event()

    async def slow(request):
        entered.append("slow")
        await released.wait()
        return web.json_response(DONE)

    async def quick(request):
        entered.append("quick")
        if len(entered) == 3:
            released.set()
        return web.json_response(DONE)

    async with serving(slow) as one, serving(quick) as two, serving(quick) as three:
        async with router(one, two, three) as running:
            assert (await running.tell("/begin_weight_update"))[0] == 200
        assert len(entered) == 3, "the slow one was told first, and answered last"
        released.clear()
        async with router(one, two, three, request_timeout_s=60) as running:
            order = asyncio.create_task(running.tell("/begin_weight_update"))
            await until(lambda: len(entered) == 6 and len(running.client._exchanges) == 1)
            clock.put_forward(60)
            status, reply = await order
    assert status == 207
    assert [entry["status"] for entry in reply["workers"].values()] == [504, 200, 200]


async def test_a_client_that_leaves_ends_what_its_order_began():
    entered, left = asyncio.Event(), asyncio.Event()

    async def hang(request):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with (
        serving(hang) as one,
        serving(saying(200, DONE)) as two,
        router(two, one) as running,
        asyncio.timeout(60),
    ):
        order = b'{"new_version": "v2"}'
        task = asyncio.create_task(running.tell("/update_weight_version", order))
        await entered.wait()
        while not running.updates:  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0)
        task.cancel()
        await left.wait()
    assert running.updates == [(two, "v2", False)], "who had done it is known to have"


async def test_a_long_body_is_not_copied_for_each_worker():
    got = []

    async def handler(request):
        size = 0
        async for piece in request.content.iter_any():
            size += len(piece)
        got.append(size)
        return web.json_response(DONE)

    tensors = b'{"serialized_named_tensors":["' + b"A" * (16 * 2**20) + b'"],"weight_version":"v2"}'
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(handler)) for _ in range(8)]
        running = await stack.enter_async_context(router(*urls))
        tracemalloc.start()
        try:
            status, _ = await running.tell("/update_weights_from_tensor", io.BytesIO(tensors))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert status == 200
    assert got == [len(tensors)] * 8
    assert {version for _, version, _ in running.updates} == {"v2"}
    assert peak < 5 * len(tensors), "read once and parsed once, however many workers there are"


# Weights


@pytest.mark.parametrize(
    ("path", "body", "version", "flushes"),
    [
        ("/update_weights_from_disk", {"model_path": "x", "weight_version": "v2"}, "v2", True),
        ("/update_weights_from_tensor", {"weight_version": "3", "flush_cache": False}, "3", False),
        ("/update_weights_from_distributed", {"names": [], "weight_version": None}, None, True),
        ("/update_weights_from_ipc", {"zmq_handles": {}}, None, True),
        ("/update_weight_version", {"new_version": "v2"}, "v2", False),
        ("/update_weight_version", {"new_version": 7}, 7, False),
        ("/update_weight_version", {"new_version": True}, None, False),
        ("/end_weight_update", {}, None, False),
        ("/end_weight_update", [1], None, False),
        ("/end_weight_update", "[" * 100_000, None, False),
        ("/update_weights_from_disk", "no JSON", None, True),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
async def test_a_weight_update_is_told_for_each_worker_that_took_it(
    path, body, version, flushes, count
):
    async with workers_saying(*[(200, DONE)] * count) as (running, urls):
        for worker in running.pool.list():
            worker.observed("old", known=None)
        await running.tell(path, body.encode() if isinstance(body, str) else orjson.dumps(body))
        known = {worker.weight_version for worker in running.pool.list()}
    assert sorted(running.updates) == sorted((url, version, flushes) for url in urls)
    assert known == {version or "old"}


@pytest.mark.parametrize("name", ["weight_version", "new_version"])
@pytest.mark.parametrize("version", ["v" * 257, 2**31, -(2**40)])
async def test_a_version_that_no_worker_could_report_is_refused(name, version):
    """Each reply under it would be taken for a lie, and all workers for broken ones."""
    async with workers_saying((200, DONE)) as (running, _):
        order = orjson.dumps({name: version})
        status, reply = await running.tell("/update_weight_version", order)
        assert (status, running.updates) == (400, [])
        assert [worker.weight_version for worker in running.pool.list()] == [None]
    assert f"'{name}'" in str(reply)


async def test_a_worker_that_did_not_take_an_update_runs_what_it_ran():
    answers = (200, DONE), (400, FAILED), (200, FAILED), (500, b"Internal Server Error")
    async with workers_saying(*answers) as (running, urls):
        order = b'{"model_path": "x", "weight_version": "v2"}'
        status, _ = await running.tell("/update_weights_from_disk", order)
        known = [worker.weight_version for worker in running.pool.list()]
    assert status == 207
    assert running.updates == [(urls[0], "v2", True)]
    assert known == ["v2", None, None, None]


@pytest.mark.parametrize("path", ["/flush_cache", "/begin_weight_update", "/pause_generation"])
async def test_what_brings_no_weights_is_not_told_as_an_update(path):
    async with workers_saying((200, DONE), (200, DONE)) as (running, _):
        await running.tell(path, b'{"weight_version": "v2"}')
        assert running.updates == []
        assert {worker.weight_version for worker in running.pool.list()} == {None}


async def test_the_fake_worker_runs_what_it_is_told():
    async with FakeWorker() as one, FakeWorker() as two, router(one.url, two.url) as running:
        status, reply = await running.tell("/update_weight_version", b'{"new_version": "v9"}')
    assert (status, reply["success"], reply["new_version"]) == (200, True, "v9")
    assert (one.weight_version, two.weight_version) == ("v9", "v9")
