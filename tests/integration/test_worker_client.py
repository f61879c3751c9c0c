"""The worker client against a worker that keeps the recorded contract, over real sockets."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from slime_router.engine.connector import Connector
from slime_router.engine.exchange import NotTaken
from slime_router.errors import BadRequest, NoWorker, WorkerFailed, WorkerRefused, WorkerTimeout
from slime_router.pool.pool import WorkerPool
from slime_router.testing import FakeWorker
from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    NativeCall,
    Prompt,
    Receipt,
    Sampling,
    token_ids,
)
from slime_router.values import replace
from tests.clock import Clock
from tests.relayed import Relayed

PROMPT = (1, 5, 6)
JSON = {"Content-Type": "application/json"}


def call(ids=PROMPT, **fields):
    prompt = Prompt(token_ids(ids), Receipt("fresh", 0, len(ids), "t", ""))
    given = {"rid": "r", "turn_id": "t", "prompt": prompt, "stream": True, **fields}
    return NativeCall(**given) if "body" in fields else GenerateCall(**given)


def client_of(*workers, **settings):
    return Relayed(WorkerPool(worker.url for worker in workers), **settings)


async def collect(client, given):
    async with aclosing(client.relay.generate(given)) as chunks:
        return [chunk async for chunk in chunks]


async def drain(chunks):
    async for _ in chunks:
        pass


async def until(is_true):
    async with asyncio.timeout(60):
        while not is_true():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 3])
async def test_the_tokens_are_the_workers_own_however_they_come(incremental, stream, chunk_tokens):
    async with FakeWorker(incremental=incremental, chunk_tokens=chunk_tokens) as worker:
        worker.script([7, 8, 9, 10, 2], logprobs=[-0.5, None, -0.25, -1.0, -2.0])
        async with client_of(worker) as client:
            chunks = await collect(client, call(stream=stream))
    assert [token for chunk in chunks for token in chunk.output_ids] == [7, 8, 9, 10, 2]
    assert [lp for chunk in chunks for lp in chunk.logprobs] == [-0.5, None, -0.25, -1.0, -2.0]
    assert chunks[-1].finish == Finish("stop", matched=2)
    assert [chunk.prompt is not None for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert {chunk.worker_url for chunk in chunks} == {worker.url}
    assert chunks[-1].prompt_tokens == 3
    assert chunks[-1].weight_versions[0].end == 5
    assert worker.requests[0].body["input_ids"] == list(PROMPT)
    assert worker.requests[0].body["rid"] == "#1:r"
    assert worker.aborted == []
    assert client.pool.total_in_flight == 0


async def test_a_long_prompt_goes_out_whole():
    """More than a megabyte of ids, which must not be written in one piece."""
    ids = list(range(1000, 31_000)) * 10
    async with FakeWorker(context_len=10**6) as worker, client_of(worker) as client:
        await collect(client, call(ids, sampling=Sampling(max_tokens=1)))
    assert worker.requests[0].body["input_ids"] == ids


async def test_the_clients_headers_reach_the_worker():
    async with FakeWorker() as worker, client_of(worker) as client:
        await collect(client, call(headers={"X-SMG-Routing-Key": "k", "content-type": "x/y"}))
    headers = worker.requests[0].headers
    assert headers["X-SMG-Routing-Key"] == "k"
    assert headers["Content-Type"] == "application/json"


async def test_one_connection_serves_request_after_request():
    """What comes after the finish, and later, is read too: else every stream costs a connection.

    The caller need not read beyond the finish for that.
    """
    item = (
        b'{"output_ids":[7],"meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"}}}'
    )

    async def handler(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: %s\n\n" % item)
        for _ in range(20):
            await asyncio.sleep(0)
        await response.write(b"data: [DONE]\n\n")
        ports.add(request.transport.get_extra_info("peername"))
        return response

    ports: set[object] = set()
    app = web.Application()
    app.router.add_post("/generate", handler)
    async with TestServer(app) as server:
        pool = WorkerPool([str(server.make_url(""))])
        async with Relayed(pool, capture="off", request_timeout_s=60.0) as client:
            for _ in range(3):
                async with aclosing(client.relay.generate(call())) as chunks:
                    assert (await anext(chunks)).finish == Finish("length")
    assert len(ports) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_the_workers_refusal_comes_back_with_its_body(stream):
    async with FakeWorker(context_len=8) as worker, client_of(worker) as client:
        with pytest.raises(WorkerRefused) as caught:
            await collect(client, call(range(9), stream=stream))
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.message.startswith("This model's maximum context length is 8 tokens.")
    assert b"longer than the model's context length" in caught.value.body
    assert client.pool.total_in_flight == 0


async def test_a_refused_request_is_not_aborted():
    async with FakeWorker() as worker, client_of(worker) as client:
        worker.answer_next(503, b'{"object":"error","message":"The request queue is full."}')
        with pytest.raises(WorkerRefused, match="queue is full") as caught:
            await collect(client, call())
    assert caught.value.status == 503
    assert worker.aborted == []


async def test_a_dead_worker_is_passed_over():
    async with FakeWorker() as dead, FakeWorker() as alive, client_of(dead, alive) as client:
        await dead.refuse_connections()
        chunks = await collect(client, call())
    assert chunks[-1].worker_url == alive.url
    assert client.pool.loads == {dead.url: 0, alive.url: 0}


async def test_a_fleet_of_dead_workers_is_no_worker_and_names_none():
    async with FakeWorker() as one, FakeWorker() as two, client_of(one, two) as client:
        await one.refuse_connections()
        await two.refuse_connections()
        with pytest.raises(NoWorker) as caught:
            await collect(client, call())
    assert caught.value.message == "No worker could be reached: the connection failed."
    assert client.aborts_sent == 0
    assert client.pool.total_in_flight == 0


async def test_a_kept_connection_that_went_stale_is_no_failure(caplog):
    """The worker closes an idle connection just as the next request goes out on it."""
    caplog.set_level("INFO", "slime_router.failover.attempts")
    async with FakeWorker() as worker, client_of(worker) as client:
        await collect(client, call())
        worker.drop_next()
        chunks = await collect(client, call())
        assert chunks[-1].finish is not None
        assert client.relay.counts["retried"] == 1
        (line,) = caplog.records
    assert line.levelname == "INFO"
    words = f"retrying: worker={worker.url} tokens=0 reason=the connection was closed"
    assert line.getMessage() == words
    assert len(worker.requests) == 3
    assert worker.aborted == []


async def test_a_request_that_breaks_fresh_connections_is_not_spread():
    """A worker that dies of a request must not take the next one with it."""
    async with FakeWorker() as one, FakeWorker() as two, client_of(one, two) as client:
        one.drop_next()
        with pytest.raises(WorkerFailed):
            await collect(client, call())
        assert two.requests == []
        assert client.pool.total_in_flight == 0


async def test_an_id_outside_the_vocabulary_kills_the_worker():
    """The fake keeps this trap so that the router's guard can be shown to work."""
    async with FakeWorker(vocab_size=10) as worker, client_of(worker) as client:
        for given, error in ((call([10]), WorkerFailed), (call(), NoWorker)):
            with pytest.raises(error):
                await collect(client, given)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_dies_in_the_middle_is_said(stream):
    """What had come before is handed on first."""
    async with FakeWorker() as worker, client_of(worker) as client:
        worker.drop_next(after_bytes=600)
        worker.script(list(range(10, 90)))
        chunks = client.relay.generate(call(stream=stream))
        if stream:
            assert (await anext(chunks)).output_ids == [10]
        with pytest.raises(WorkerFailed) as caught:
            await drain(chunks)
        assert "127.0.0.1" not in caught.value.message
        assert client.pool.total_in_flight == 0


async def test_a_stream_that_ends_without_a_finish_is_a_failed_worker():
    async with FakeWorker() as worker, client_of(worker) as client:
        worker.answer_next(200, b"data: [DONE]\n\n", "text/event-stream")
        with pytest.raises(WorkerFailed, match="ended before"):
            await collect(client, call())


async def test_a_batch_answer_is_not_taken_for_one_generation():
    async with FakeWorker() as worker, client_of(worker) as client:
        worker.answer_next(200, b"[]")
        with pytest.raises(WorkerFailed):
            await collect(client, call(stream=False))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_hangs_is_a_timeout_and_is_told_to_stop(stream):
    clock = Clock()
    async with FakeWorker(notices_disconnect=False) as worker:
        worker.hold(after_tokens=1)
        async with client_of(worker, request_timeout_s=5.0) as client:
            collected = asyncio.create_task(collect(client, call(stream=stream)))
            await worker.wait_running(1)
            clock.put_forward(5.0)
            with pytest.raises(WorkerTimeout):
                await collected
            assert client.pool.total_in_flight == 0
        await worker.wait_running(0)
    assert worker.aborted == ["#1:r"]


async def test_a_client_that_leaves_frees_the_lease_at_once_and_the_worker_soon():
    async with FakeWorker(notices_disconnect=False) as worker, client_of(worker) as client:
        worker.hold(after_tokens=2)
        async with aclosing(client.relay.generate(call(rid="their-own"))) as chunks:
            await anext(chunks)
            assert client.pool.loads == {worker.url: 1}
        assert client.pool.loads == {worker.url: 0}
        await worker.wait_running(0)
        assert worker.aborted == ["#9:their-own"]
        await until(lambda: not client._aborts)
        assert (client.aborts_sent, client.aborts_failed) == (1, 0)


async def test_the_abort_goes_to_the_worker_that_runs_it():
    dead, one, two = FakeWorker(), FakeWorker(), FakeWorker()
    async with dead, one, two:
        client = client_of(dead, one, two)
        await dead.refuse_connections()
        one.hold(after_tokens=1)
        async with client, aclosing(client.relay.generate(call())) as chunks:
            assert (await anext(chunks)).worker_url == one.url
        assert (one.aborted, two.aborted) == (["#1:r"], [])


async def test_an_abort_that_fails_is_counted_and_holds_nobody_up():
    async with FakeWorker() as worker, client_of(worker) as client:
        worker.hold(after_tokens=1)
        async with aclosing(client.relay.generate(call())) as chunks:
            await anext(chunks)
            await worker.refuse_connections()
        await until(lambda: client.aborts_failed)
    assert client.aborts_sent == 1


async def test_an_abort_by_the_trainer_comes_with_what_was_sampled():
    async with FakeWorker() as worker, client_of(worker) as client:
        worker.hold(after_tokens=2)
        worker.script([7, 8, 9])
        async with aclosing(client.relay.generate(call())) as chunks:
            got = [await anext(chunks), await anext(chunks)]
            await client.send(
                client.pool.list()[0], "POST", "/abort_request", headers={}, body=b'{"rid":"#1:r"}',
                timeout_s=1.0,
            )  # fmt: skip
            got += [chunk async for chunk in chunks]
    assert [chunk.output_ids for chunk in got] == [[7], [8], []]
    assert got[-1].finish == Finish("abort", message="Aborted")
    assert worker.aborted == ["#1:r"]


async def test_native_items_are_the_workers_own():
    native = {"input_ids": [1], "sampling_params": {"max_new_tokens": 2}, "extra": 1}
    async with FakeWorker() as worker, client_of(worker, capture="off") as client:
        worker.script([7, 8], routed_experts="abc")
        chunks = await collect(client, call(body=native))
    assert [chunk.item["output_ids"] for chunk in chunks] == [[7], [7, 8]]
    assert chunks[-1].item["meta_info"]["routed_experts"] == "abc"
    assert worker.requests[0].body["extra"] == 1
    assert chunks[-1].logprobs is None


# Weight versions


def answering(worker, version, **meta):
    """The worker's next answer names `version` and, as older workers do, no spans."""
    worker.weight_version = version
    worker.script([7, 8], **{"weight_versions": None, **meta})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_tells_what_its_worker_runs(stream):
    async with FakeWorker() as worker, client_of(worker) as client:
        (known,) = client.pool.list()
        assert known.weight_version is None
        for version in ("v1", 2):
            answering(worker, version)
            await collect(client, call(stream=stream))
            assert known.weight_version == version


async def updated_meanwhile(*, named: str, brought: str) -> GenerateChunk:
    """A whole reply of a worker at v1 that names one version, read after an update to another."""
    chunk: GenerateChunk
    async with FakeWorker() as worker, client_of(worker) as client:
        (known,) = client.pool.list()
        known.observed("v1", known=None)
        answering(worker, named)
        worker.hold(after_tokens=1)
        task = asyncio.create_task(collect(client, call(stream=False)))
        await worker.wait_running(1)
        known.update_taken(brought, before=known.update_started())  # through the router
        worker.release()
        (chunk,) = await task
    assert known.weight_version == brought
    assert chunk.item is not None
    assert chunk.item["meta_info"]["weight_version"] == named, "the item is as the worker wrote it"
    return chunk


async def test_a_whole_reply_that_an_update_overtakes_has_the_version_of_its_dispatch():
    chunk = await updated_meanwhile(named="v2", brought="v2")
    assert (chunk.weight_version, chunk.weight_versions) == ("v1", ())


async def test_a_whole_reply_that_ended_before_an_update_has_the_version_that_it_names():
    """The worker had been updated without the router before that; it is read late."""
    assert (await updated_meanwhile(named="v2", brought="v3")).weight_version == "v2"


async def test_a_stream_that_an_update_overtakes_has_the_version_of_each_chunk():
    async with FakeWorker() as worker, client_of(worker) as client:
        answering(worker, "v1")
        worker.hold(after_tokens=1)
        async with aclosing(client.relay.generate(call())) as chunks:
            got = [await anext(chunks)]
            worker.weight_version = "v2"
            worker.release()
            got += [chunk async for chunk in chunks]
        (known,) = client.pool.list()
    assert [(chunk.output_ids, chunk.weight_version) for chunk in got] == [([7], "v1"), ([8], "v2")]
    assert known.weight_version == "v2"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_late_reply_does_not_set_its_worker_back(stream):
    """It was sampled before the update that we learned of since."""
    async with FakeWorker() as worker, client_of(worker) as client:
        (known,) = client.pool.list()
        answering(worker, "v1")
        worker.hold(after_tokens=1)
        task = asyncio.create_task(collect(client, call(stream=stream)))
        await worker.wait_running(1)
        known.observed("v2", known=known.weight_version)
        worker.release()
        await task
    assert known.weight_version == "v2"


async def test_a_worker_without_versions_is_known_to_run_none():
    async with FakeWorker() as worker, client_of(worker) as client:
        worker.script([7], weight_version=None, weight_versions=None)
        (chunk,) = await collect(client, call(stream=False))
        assert chunk.weight_version is None
        assert client.pool.list()[0].weight_version is None


async def test_routed_experts_come_with_the_position_from_which_they_were_asked_for():
    prompt = Prompt(token_ids(PROMPT), Receipt("extended", 2, 1, "t", ""), "base", 2)
    async with FakeWorker() as worker, client_of(worker) as client:
        worker.script([7, 8], routed_experts="QUJD")
        chunks = await collect(client, call(prompt=prompt, wants_routed_experts=True))
    assert (chunks[-1].routed_experts, chunks[-1].routed_experts_start) == ("QUJD", 1)
    assert worker.requests[0].body["routed_experts_start_len"] == 1


# Whole answers


async def test_an_answer_of_any_status_comes_whole_and_takes_no_lease():
    async with FakeWorker() as worker, client_of(worker) as client:
        answer = await client.ask(client.pool.list()[0], "GET", "/nothing?x=1", headers={})
        assert (answer.status, answer.body) == (404, b'{"detail":"Not Found"}')
        assert answer.headers["Content-Type"].startswith("application/json")
        assert client.pool.list()[0].last_lease == 0


async def test_asking_a_worker_that_is_gone_is_a_failed_worker():
    async with FakeWorker() as worker, client_of(worker) as client:
        await worker.refuse_connections()
        with pytest.raises(WorkerFailed, match="was not reached"):
            await client.ask(client.pool.list()[0], "GET", "/health", headers={})


async def test_the_address_of_a_worker_that_is_not_reached_is_looked_up_again(monkeypatch):
    """The name may lead elsewhere by now: a pod that was made again has another address."""
    forgotten: list[tuple[object, ...]] = []
    monkeypatch.setattr(Connector, "clear_dns_cache", lambda _, *place: forgotten.append(place))
    async with FakeWorker() as worker, client_of(worker) as client:
        await worker.refuse_connections()
        with pytest.raises(WorkerFailed, match="was not reached"):
            await client.ask(client.pool.list()[0], "GET", "/health", headers={})
        url = urlsplit(worker.url)
    assert set(forgotten) == {(url.hostname, url.port)}


async def test_asking_on_a_connection_that_went_stale_asks_again():
    """An update of weights must not fail because a kept connection was closed under it."""
    asked = []

    async def handler(request):
        asked.append(request.path)
        if len(asked) == 2:
            request.transport.abort()
        return web.Response(text=str(len(asked)))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        pool = WorkerPool([str(server.make_url(""))])
        async with Relayed(pool, capture="off", request_timeout_s=60.0) as client:
            (worker,) = pool.list()
            answers = [await client.ask(worker, "POST", "/x", headers={}) for _ in range(2)]
    assert [answer.body for answer in answers] == [b"1", b"3"]


class Letters:
    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


async def test_tokenize_gives_ids_and_context_length_or_none():
    worker, without = FakeWorker(tokenizer=Letters()), FakeWorker()
    async with worker, without, client_of(worker, without) as client:
        able, unable = client.pool.list()
        assert await client.tokenize(able, "ab") == ([97, 98], 2048)
        assert worker.controls[0].body == {"prompt": "ab", "add_special_tokens": False}
        assert await client.tokenize(unable, "ab") is None
        odd: Any
        for odd in ("2048", -1, 0, 2048.5, True, None):
            worker._engine.context_len = odd
            assert await client.tokenize(able, "ab") == ([97, 98], None)
        await worker.refuse_connections()
        assert await client.tokenize(able, "ab") is None


async def test_a_worker_that_is_given_up_before_it_is_reached_has_taken_nothing(monkeypatch):
    """What nobody got may be sent to another, or wait."""
    is_opening = asyncio.Event()

    async def opens_never(*_, **__):
        is_opening.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", opens_never)
    async with FakeWorker() as worker, client_of(worker) as client:
        [target] = client.pool.list()
        asked = client.exchange(target, "GET", "/x", headers={}, timeout_s=60)
        entering = asyncio.create_task(asked.__aenter__())
        await is_opening.wait()
        assert client.give_up(target) == 1
        with pytest.raises(NotTaken, match="before it was reached"):
            await entering


async def test_a_worker_that_is_given_up_later_may_have_taken_it():
    async with FakeWorker() as worker, client_of(worker) as client:
        worker.hold()
        [target] = client.pool.list()
        body = b'{"input_ids": [5], "rid": "r"}'
        asked = client.exchange(target, "POST", "/generate", headers=JSON, body=body, timeout_s=60)
        entering = asyncio.create_task(asked.__aenter__())
        await worker.wait_running(1)
        client.give_up(target)
        with pytest.raises(WorkerFailed, match="given up"):
            await entering


async def test_what_was_never_sent_is_not_aborted():
    deep: object = 1
    for _ in range(300):
        deep = [deep]
    async with FakeWorker() as worker, client_of(worker) as client:
        unwritable = replace(call(), worker_fields={"deep": deep})
        with pytest.raises(BadRequest, match="cannot be written"):
            await anext(client.generate(client.pool.list()[0], unwritable, timeout_s=5.0))
    assert client.aborts_sent == 0
