"""The fake worker keeps the contract that was recorded from a real one."""

from __future__ import annotations

import asyncio

import aiohttp
import orjson
import pytest

from slime_router.testing import FakeWorker
from tests.integration.gateway import until


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(http, worker, path="/generate", **body):
    async with http.post(worker.url + path, json=body) as answer:
        raw = await answer.read()
        if answer.content_type == "text/event-stream":
            events = [line[6:] for line in raw.split(b"\n") if line]
            assert events.pop() == b"[DONE]"
            return answer.status, [orjson.loads(event) for event in events]
        return answer.status, orjson.loads(raw)


def reason(item):
    return item["meta_info"]["finish_reason"]


async def test_equal_prompts_get_equal_answers_and_a_cached_prefix(http):
    async with FakeWorker() as worker:
        _, first = await ask(http, worker, input_ids=[1, 3, 4])
        _, again = await ask(http, worker, input_ids=[1, 3, 4])
        _, longer = await ask(http, worker, input_ids=[1, 3, 4, *first["output_ids"], 8, 9])
    assert first["output_ids"] == again["output_ids"]
    assert first["output_ids"][-1] == 2
    assert reason(first) == {"type": "stop", "matched": 2}
    cached = [item["meta_info"]["cached_tokens"] for item in (first, again, longer)]
    assert cached == [0, 2, 3 + len(first["output_ids"]) - 1]


async def test_a_stop_token_is_in_the_ids_but_not_in_the_text(http):
    async with FakeWorker() as worker:
        worker.script([5, 6, 7])
        _, item = await ask(http, worker, input_ids=[1], sampling_params={"stop_token_ids": [6]})
        worker.script([5, 6, 7])
        params = {"stop_token_ids": [6], "no_stop_trim": True}
        _, kept = await ask(http, worker, input_ids=[1], sampling_params=params)
    assert (item["output_ids"], item["text"]) == ([5, 6], "<5>")
    assert (kept["output_ids"], kept["text"]) == ([5, 6], "<5><6>")


async def test_a_stop_string_cuts_the_text_and_keeps_its_token(http):
    async with FakeWorker() as worker:
        worker.script([5, 67, 8])
        _, item = await ask(http, worker, input_ids=[1], sampling_params={"stop": "6"})
    assert (item["output_ids"], item["text"]) == ([5, 67], "<5><")
    assert reason(item) == {"type": "stop", "matched": "6"}


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ({}, 128),
        ({"max_new_tokens": None}, 200),
        ({"max_new_tokens": 3}, 3),
        ({"max_new_tokens": 0}, 0),
    ],
)
async def test_a_worker_that_is_not_told_stops_at_128(http, params, count):
    async with FakeWorker() as worker:
        worker.script([5] * 200)
        _, item = await ask(http, worker, input_ids=[1], sampling_params=params)
    assert len(item["output_ids"]) == count
    assert reason(item) == {"type": "length", "length": count}


@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_have_the_workers_shapes(http, stream):
    async with FakeWorker(context_len=10) as worker:
        unknown = await ask(http, worker, input_ids=[1], sampling_params={"foo": 1}, stream=stream)
        empty = await ask(http, worker, input_ids=[], stream=stream)
    assert unknown[0] == 400
    assert unknown[1]["error"].startswith("unknown field `foo`, expected one of `")
    if stream:
        assert (empty[0], empty[1][0]["error"]["code"]) == (200, 400)
    else:
        assert (empty[0], list(empty[1]["error"])) == (400, ["message"])


async def test_batches_and_n_are_arrays_and_streams_of_indexed_items(http):
    params = {"n": 2, "max_new_tokens": 2}
    async with FakeWorker() as worker:
        _, several = await ask(http, worker, input_ids=[[1], [3]], sampling_params=params, rid="r")
        _, one = await ask(http, worker, input_ids=[[1]])
        _, events = await ask(http, worker, input_ids=[1], sampling_params=params, stream=True)
    assert len(several) == 4
    assert len({item["meta_info"]["id"] for item in several} - {"r"}) == 4
    assert len(one) == 1
    assert [item["index"] for item in events] == [0, 1, 0, 1]


async def test_a_live_rid_cannot_be_used_twice_and_can_be_aborted(http):
    async with FakeWorker() as worker:
        worker.hold()
        first = asyncio.create_task(ask(http, worker, input_ids=[1], rid="r"))
        await worker.wait_running(1)
        status, body = await ask(http, worker, input_ids=[1], rid="r")
        assert (status, body["error"]["message"]) == (400, "Duplicate request ID detected: r")
        async with http.post(worker.url + "/abort_request", json={"rid": "r"}) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        _, item = await first
    assert reason(item) == {"type": "abort", "message": "Abort in waiting queue"}
    assert "prompt_tokens" not in item["meta_info"]


async def test_a_client_that_goes_away_is_noticed(http):
    async with FakeWorker() as worker:
        worker.hold()
        task = asyncio.create_task(ask(http, worker, input_ids=[1], rid="r"))
        await worker.wait_running(1)
        task.cancel()
        await worker.wait_running(0)
    assert worker.disconnected == ["r"]


async def test_it_comes_back_on_the_same_port(http):
    async with FakeWorker() as worker:
        await worker.refuse_connections()
        with pytest.raises(aiohttp.ClientConnectionError):
            await ask(http, worker, input_ids=[1])
        await worker.accept_connections()
        assert (await ask(http, worker, input_ids=[1]))[0] == 200


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_an_update_in_mid_reply_shows_in_its_spans(http, stream):
    """Each token has the version that sampled it, named once, with the last item."""
    async with FakeWorker(weight_version="v1") as worker:
        worker.script([5, 6, 7, 8])
        worker.hold(after_tokens=2)
        asked = asyncio.create_task(ask(http, worker, input_ids=[1], stream=stream))
        await until(lambda: any(run.count == 2 for run in worker._engine.runs.values()))
        worker.weight_version = "v2"
        worker.release()
        _, items = await asked
    last = items[-1] if stream else items
    assert last["meta_info"]["weight_version"] == "v2"
    assert last["meta_info"]["weight_versions"] == [
        {"version": "v1", "start": 0, "end": 2},
        {"version": "v2", "start": 2, "end": 4},
    ]
    if stream:
        assert all("weight_versions" not in item["meta_info"] for item in items[:-1])
