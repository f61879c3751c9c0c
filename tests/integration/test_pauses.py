"""Pauses, aborts and sleeps: requests wait, go on, or end as their owner asked."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp
import orjson
import pytest

from slime_router.generation.prompts.made_prompt import MadePrompt
from slime_router.generation.prompts.prompt_maker import PromptMaker
from slime_router.types import Finish, GenerateCall, VersionSpan
from tests.integration.gateway import CHAT, until, user
from tests.integration.scripted import events
from tests.integration.storytellers import fleet, only_turn, request_of, story, streamed
from tests.integration.test_resume import COUNT, PROMPT, native
from tests.tiny import CONTEXT_LEN


async def held_stream(router: Any, worker: Any, path: str, body: Any) -> asyncio.Task[Any]:
    """A stream under way of which two tokens are sent."""
    worker.hold(after_tokens=2)
    asked = asyncio.create_task(streamed(router, path, body))
    await until(lambda: any(run.count == 2 for run in worker._engine.runs.values()))
    return asked


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_chat_goes_on_after_a_pause_with_new_weights(stream):
    """Each token has the version that sampled it; the client sees one reply."""
    async with fleet(1, {"weight_version": "v1"}) as (router, (worker,)):
        worker.hold(after_tokens=2)
        body = request_of(max_tokens=COUNT, stream=stream)
        asked = asyncio.create_task(router.http.post(CHAT, json=body))
        await until(lambda: any(run.count == 2 for run in worker._engine.runs.values()))
        assert (await router.post("/pause_generation", {"mode": "abort"}))[0] == 200
        worker.release()
        await until(lambda: router.gateway.relay.counts["waited"] == 1)
        assert len(worker.requests) == 1, "nothing is sent while it is paused"
        assert (await router.post("/update_weight_version", {"new_version": "v2"}))[0] == 200
        assert (await router.post("/continue_generation", {}))[0] == 200
        async with await asked as response:
            assert response.status == 200
            await response.read()
        turn = only_turn(router)
        ids, logprobs = story(turn.prompt_ids.tolist(), COUNT)
        assert turn.output_ids.tolist() == ids
        assert turn.logprobs is not None
        assert turn.logprobs.tolist() == logprobs
        assert turn.weight_versions == (VersionSpan("v1", 0, 2), VersionSpan("v2", 2, COUNT))
        assert router.gateway.relay.counts["resumed"] == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_an_abort_with_the_last_token_is_no_abort(stream):
    """A worker says `abort` though it has just sampled the end: nothing is sampled after it."""
    async with fleet(1) as (router, (worker,)):
        worker.hold(after_tokens=3)
        body = request_of(max_tokens=3, stream=stream)
        asked = asyncio.create_task(router.http.post(CHAT, json=body))
        await until(lambda: any(run.count == 3 for run in worker._engine.runs.values()))
        [rid] = worker.running
        worker._engine.abort(rid)
        async with await asked as response:
            assert b'"finish_reason":"length"' in await response.read()
        turn = only_turn(router)
        assert turn.finish == Finish("length")
        assert len(turn.output_ids) == 3
        assert len(worker.requests) == 1


async def test_what_a_reply_under_a_grammar_loses_is_counted_and_said(caplog):
    """It cannot go on in the middle: it starts over, and what was sampled is nobody's."""
    async with fleet(1) as (router, (worker,)):
        worker.hold(after_tokens=2)
        grammar = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
        body = request_of(max_tokens=COUNT, response_format=grammar)
        asked = asyncio.create_task(router.post(CHAT, body))
        await until(lambda: any(run.count == 2 for run in worker._engine.runs.values()))
        [rid] = worker.running
        worker._engine.abort(rid)
        await until(lambda: len(worker.requests) == 2)
        worker.release()
        assert (await asked)[0] == 200
        turn = only_turn(router)
        assert turn.output_ids.tolist() == story(turn.prompt_ids.tolist(), COUNT)[0]
        _, figures = await router.get("/metrics")
        assert figures["fleet"]["dropped_tokens"] == 2
    assert any("2 tokens are dropped" in line for line in caplog.messages)


async def test_an_abort_is_handed_to_the_trainer():
    """slime's partial rollout goes on by itself."""
    async with fleet(1) as (router, (worker,)):
        asked = await held_stream(router, worker, "/generate", native())
        await router.post("/pause_generation", {"mode": "abort"})
        last = (await asked)[-1]
        assert last["meta_info"]["finish_reason"]["type"] == "abort"
        assert last["output_ids"] == story(PROMPT, 2)[0]
        await router.post("/continue_generation", {})
        assert len(worker.requests) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_all_aborts_are_resumed_where_that_is_wanted(stream):
    async with fleet(1, resume_aborted="all") as (router, (worker,)):
        expected = await streamed(router, "/generate", native(rid="before"))
        worker.hold(after_tokens=2)
        asked = asyncio.create_task(router.http.post("/generate", json=native(stream=stream)))
        await until(lambda: any(run.count == 2 for run in worker._engine.runs.values()))
        await router.post("/pause_generation", {"mode": "abort"})
        worker.release()
        await router.post("/continue_generation", {})
        async with await asked as response:
            raw = await response.text()
        last = raw.strip().removesuffix("data: [DONE]").strip().rpartition("data: ")[2]
        got, want = orjson.loads(last), expected[-1]
        assert (got["text"], got["output_ids"]) == (want["text"], want["output_ids"])
        names = ("completion_tokens", "output_token_logprobs", "output_top_logprobs",
                 "finish_reason", "prompt_tokens", "weight_versions")  # fmt: skip
        assert [got["meta_info"][n] for n in names] == [want["meta_info"][n] for n in names]
        assert got["meta_info"]["id"] == "mine"


@pytest.mark.parametrize("incremental", [False, True], ids=["cumulative", "incremental"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_meta_info_of_a_resumed_chat_is_that_of_one_worker(stream, incremental):
    """Trainers read ids and logprobs there: those of the last part alone would be another reply."""
    body = request_of(max_tokens=COUNT, return_meta_info=True, stream=stream)

    async def told(response: aiohttp.ClientResponse) -> dict[str, Any]:
        raw = await response.read()
        last = events(raw)[-2] if stream else orjson.loads(raw)
        meta: dict[str, Any] = last["choices"][0]["meta_info"]
        assert meta["id"] == last["id"]
        return {name: meta[name] for name in meta.keys() - {"id", "cached_tokens"}}

    async with fleet(1, {"incremental": incremental}) as (router, (worker,)):
        async with router.http.post(CHAT, json=body) as response:
            expected = await told(response)
        worker.hold(after_tokens=2)
        asked = asyncio.create_task(router.http.post(CHAT, json=body))
        await until(lambda: any(run.count == 2 for run in worker._engine.runs.values()))
        await router.post("/pause_generation", {"mode": "abort"})
        worker.release()
        await router.post("/continue_generation", {})
        async with await asked as response:
            assert await told(response) == expected
        assert router.gateway.relay.counts["resumed"] == 1
    assert expected["completion_tokens"] == COUNT
    if not (stream and incremental):
        assert len(expected["output_token_logprobs"]) == COUNT


async def test_no_abort_is_resumed_where_that_is_wanted():
    async with fleet(1, resume_aborted="none") as (router, (worker,)):
        worker.hold(after_tokens=2)
        body = request_of(max_tokens=COUNT, stream=True)
        asked = asyncio.create_task(router.http.post(CHAT, json=body))
        await until(lambda: any(run.count == 2 for run in worker._engine.runs.values()))
        await router.post("/pause_generation", {"mode": "abort"})
        async with await asked as response:
            raw = await response.read()
        assert b"generation was aborted" in raw
        assert len(worker.requests) == 1


async def test_a_worker_that_always_aborts_is_not_asked_for_ever():
    async with fleet(1) as (router, (worker,)):
        for _ in range(20):
            worker.script([], finish="abort")
        status, _ = await router.post(CHAT, request_of())
        assert status == 503
        assert len(worker.requests) == 2


def _has_one(run: Any) -> bool:
    return bool(run.count == 1)


def _is_idle(worker: Any) -> bool:
    return not worker._engine.runs


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_abort_that_no_update_explains_is_handed_over(stream, workers):
    """slime ends surplus rollouts at the engines themselves, every few seconds."""
    async with fleet(workers) as (router, others):
        for worker in others:
            worker.hold(after_tokens=1)
        body = request_of(max_tokens=COUNT, stream=stream)
        asked = asyncio.create_task(router.http.post(CHAT, json=body))
        for _ in range(2):
            await until(lambda: any(w._engine.runs for w in others))
            [run] = [run for w in others for run in w._engine.runs.values()]
            await until(partial(_has_one, run))
            [busy] = [w for w in others if w._engine.runs]
            busy._engine.abort(run.rid)
            await until(partial(_is_idle, busy))
        async with await asked as response:
            raw = await response.read()
        assert b"generation was aborted" in raw
        assert sum(len(w.requests) for w in others) == 2
        assert router.gateway.relay.counts["resumed"] == 1
        assert len(only_turn(router).output_ids) == 2, "what was sampled is kept"


@pytest.mark.parametrize("by", ["a new version", "a pause", "an update without a name"])
async def test_an_abort_that_an_update_explains_is_resumed_each_time(by):
    async with fleet(1, {"weight_version": "v1"}) as (router, (worker,)):
        worker.hold(after_tokens=1)
        body = request_of(max_tokens=COUNT, stream=False)
        asked = asyncio.create_task(router.http.post(CHAT, json=body))
        for number in range(4):
            await until(lambda: bool(worker._engine.runs))
            [run] = worker._engine.runs.values()
            await until(partial(_has_one, run))
            if by == "a pause":
                await router.post("/pause_generation", {"mode": "abort"})
            elif by != "a new version":  # AReaL's; it ends what runs
                await router.post("/update_weights_from_disk", {"model_path": "x"})
            worker._engine.abort(run.rid)
            await until(lambda: not worker._engine.runs)
            if by == "a pause":
                await router.post("/continue_generation", {})
            elif by == "a new version":
                worker.weight_version = f"v{number + 2}"
        worker.release()
        async with await asked as response:
            assert response.status == 200, await response.read()
        assert router.gateway.relay.counts["resumed"] == 4
        ids, _ = story(only_turn(router).prompt_ids.tolist(), COUNT)
        assert only_turn(router).output_ids.tolist() == ids


@pytest.mark.parametrize("order", [{"rid": "mine"}, {"abort_all": True}], ids=["rid", "all"])
async def test_what_a_client_aborts_is_not_resumed(order):
    """It reaches the owner under the name that the generation has there now."""
    async with fleet(2, resume_aborted="all") as (router, workers):
        workers[0].die_next(after_tokens=1)
        asked = await held_stream(router, workers[1], "/generate", native())
        assert [request.body["rid"] for request in workers[1].requests] == ["##6:2~mine"]
        async with router.http.post("/abort_request", json=order) as response:
            assert response.status in (200, 207)
        last = (await asked)[-1]
        assert last["meta_info"]["finish_reason"]["type"] == "abort"
        assert last["meta_info"]["id"] == "mine"
        assert last["output_ids"] == story(PROMPT, 3)[0]
        assert workers[1].aborted == ["##6:2~mine"]
        assert len(workers[1].requests) == 1


async def test_between_two_tries_no_worker_has_the_generation():
    """Its abort is nobody's to hear: the worker that had it runs others by now."""
    async with fleet(1, resume_aborted="all") as (router, (worker,)):
        body = native(stream=True)
        asked = await held_stream(router, worker, "/generate", body)
        await router.post("/pause_generation", {"mode": "abort"})
        await until(lambda: router.gateway.relay.counts["waited"] == 1)
        assert router.gateway.relay.cancel("mine") == []
        assert (await asked)[-1]["meta_info"]["finish_reason"]["type"] == "abort"


async def test_what_is_aborted_while_it_waits_for_a_worker_ends_at_once():
    async with fleet(1) as (router, (worker,)):
        await router.post("/pause_generation", {"mode": "retract"})
        asked = asyncio.create_task(router.post("/generate", native()))
        await until(lambda: router.gateway.relay.counts["waited"] == 1)
        await router.http.post("/abort_request", json={"rid": "mine"})
        status, reply = await asked
        assert status == 200
        assert reply["meta_info"]["finish_reason"]["type"] == "abort"
        assert worker.requests == []


async def test_what_waits_for_a_worker_can_be_aborted_when_there_is_none_any_more():
    async with fleet(1, max_concurrent_requests=1) as (router, (worker,)):
        first = await held_stream(router, worker, CHAT, request_of(max_tokens=COUNT))
        asked = asyncio.create_task(router.http.post("/generate", json=native()))
        await until(lambda: router.gateway.admission.figures.waiting == 1)
        router.gateway.pool.remove(worker.url)
        assert (await router.http.post("/abort_request", json={"rid": "mine"})).status == 503
        async with await asked as response:
            assert (await response.json())["meta_info"]["finish_reason"]["type"] == "abort"
        worker.release()
        await first


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("order", [{"rid": "mine"}, {"abort_all": True}], ids=["rid", "all"])
async def test_what_is_aborted_in_the_admission_queue_ends_as_one_that_waits_for_a_worker(
    order, stream
):
    async def aborted(router: Any, is_there: Any) -> Any:
        asked = asyncio.create_task(router.http.post("/generate", json=native(stream=stream)))
        await until(is_there)
        await router.http.post("/abort_request", json=order)
        async with await asked as response:
            return response.status, await response.text()

    async with fleet(1) as (router, _):
        await router.post("/pause_generation", {"mode": "retract"})
        expected = await aborted(router, lambda: router.gateway.relay.counts["waited"] == 1)
        assert b'"type":"abort"' in expected[1].encode()
    async with fleet(1, max_concurrent_requests=1) as (router, (worker,)):
        first = await held_stream(router, worker, CHAT, request_of(rid="first", max_tokens=COUNT))
        figures = router.gateway.admission.figures
        got = await aborted(router, lambda: router.gateway.admission.figures.waiting == 1)
        assert got == expected
        assert (router.gateway.admission.figures.waiting, figures.refused) == (0, 0)
        worker.release()
        if "rid" in order:
            await first
            await router.chat([{"role": "user", "content": "the slot is free"}])
        else:
            await asyncio.wait([first])
        assert "#4:mine" not in {request.body["rid"] for request in worker.requests}


async def test_a_chat_that_is_aborted_in_the_admission_queue_is_told_as_any_other():
    async with fleet(1, max_concurrent_requests=1) as (router, (worker,)):
        first = await held_stream(router, worker, CHAT, request_of(max_tokens=COUNT))
        asked = asyncio.create_task(router.http.post(CHAT, json=request_of(rid="mine")))
        await until(lambda: router.gateway.admission.figures.waiting == 1)
        await router.http.post("/abort_request", json={"rid": "another"})
        assert router.gateway.admission.figures.waiting == 1
        await router.http.post("/abort_request", json={"rid": "mine"})
        async with await asked as response:
            reply = await response.json()
        assert (response.status, reply["error"]["code"]) == (503, "upstream_error")
        assert "Abort in waiting queue" in reply["error"]["message"]
        # An SDK that asks again would begin what is to end.
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers
        worker.release()
        await first


@pytest.mark.parametrize("order", [{"rid": "mine"}, {"abort_all": True}], ids=["rid", "all"])
@pytest.mark.parametrize("path", [CHAT, "/generate"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_abort_reaches_what_has_no_prompt_yet(path, stream, order):
    """Long prompts are made a few at a time, so it may take long."""
    async with fleet(1) as (router, (worker,)):
        maker = router.gateway.path.maker
        may_go_on = asyncio.Event()

        async def slow(call: GenerateCall, context_len: int | None = None) -> MadePrompt:
            await may_go_on.wait()
            return await PromptMaker.make(maker, call, context_len)

        maker.make = slow  # type: ignore[method-assign]
        body = request_of(rid="mine", stream=stream)
        if path == "/generate":
            body = {"text": "hello", "rid": "mine", "stream": stream}
        asked = asyncio.create_task(router.http.post(path, json=body))
        await until(lambda: len(router.gateway.admission.preparing) == 1)
        await router.http.post("/abort_request", json={"rid": "another"})
        await router.http.post("/abort_request", json=order)
        may_go_on.set()
        async with await asked as response:
            raw = await response.read()
        assert b"Abort in waiting queue" in raw
        assert response.status == (200 if path == "/generate" else 503)
        assert worker.requests == []
        assert router.gateway.admission.preparing == set()
        await router.chat([{"role": "user", "content": "the slot is free"}])


@pytest.mark.parametrize("order", [{"rid": "mine"}, {"abort_all": True}], ids=["rid", "all"])
async def test_an_abort_reaches_the_second_try_of_what_asked_for_too_much(order):
    """It runs under another rid, and the client knows but its own."""
    async with fleet(1) as (router, (worker,)):
        router.gateway.pool.list()[0].context_len = None
        worker.hold(after_tokens=2)
        body = request_of(rid="mine", max_tokens=10 * CONTEXT_LEN, stream=True)
        asked = asyncio.create_task(router.http.post(CHAT, json=body))
        await until(lambda: any(run.count == 2 for run in worker._engine.runs.values()))
        assert worker.running == ["##10:again-mine"]
        assert (await router.http.post("/abort_request", json=order)).status == 200
        async with await asked as response:
            assert b"generation was aborted" in await response.read()
        assert "##10:again-mine" in worker.aborted
        assert [request.body["rid"] for request in worker.requests] == [
            "#4:mine",
            "##10:again-mine",
        ]


@pytest.mark.parametrize(
    ("stop", "start"),
    [("/pause_generation", "/continue_generation"),
     ("/release_memory_occupation", "/resume_memory_occupation")],
)  # fmt: skip
async def test_requests_wait_while_everything_is_paused(stop, start):
    async with fleet(2) as (router, workers):
        assert (await router.post(stop, {"mode": "retract"}))[0] == 200
        asked = [asyncio.create_task(router.post(CHAT, request_of(f"Q{i}"))) for i in range(3)]
        await until(lambda: router.gateway.relay.counts["waited"] == 3)
        assert [worker.requests for worker in workers] == [[], []]
        assert (await router.post(start, {}))[0] == 200
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 3


@pytest.mark.parametrize("path", ["/server_info", "/model_info", "/v1/loads", "/nowhere"])
async def test_what_only_asks_a_worker_is_answered_while_everything_is_paused(path):
    async with fleet(2, pause_wait_s=0) as (router, _):
        before, _ = await router.get(path)
        assert before < 500
        await router.post("/pause_generation", {"mode": "in_place"})
        assert (await router.get(path))[0] == before
        assert (await router.post("/v1/unknown", {"text": "hi"}))[0] == 503


async def test_a_pause_that_lasts_too_long_is_told():
    async with fleet(1, pause_wait_s=0.05) as (router, _):
        await router.post("/pause_generation", {"mode": "retract"})
        async with router.http.post(CHAT, json=request_of()) as response:
            assert response.status == 503
            assert response.headers["retry-after"]
            assert "paused" in (await response.json())["error"]["message"]
        await router.post("/continue_generation", {})


async def test_one_paused_worker_is_passed_over():
    async with fleet(2) as (router, workers):
        (known, _) = router.gateway.pool.list()
        router.gateway.pool.rest(known, is_paused=True, is_asleep=False)
        for index in range(3):
            await router.post(CHAT, request_of(f"Q{index}"))
        assert workers[0].requests == []


@pytest.mark.parametrize("endpoint", ["/model_info", "/health"])
async def test_a_paused_worker_is_not_mistaken_for_a_dead_one(endpoint):
    """It hangs its own `/health`; its front end still answers."""
    async with fleet(1, health_check_endpoint=endpoint) as (router, (worker,)):
        asked = await held_stream(router, worker, CHAT, request_of(max_tokens=COUNT))
        await router.post("/pause_generation", {"mode": "in_place"})
        seen = len(worker.controls)
        await until(lambda: len(worker.controls) > seen + 12)
        assert router.gateway.fleet.health.deaths == 0
        await router.post("/continue_generation", {})
        worker.release()
        await asked
        assert len(worker.requests) == 1


async def test_a_client_that_leaves_during_a_pause_leaves_nothing():
    async with fleet(1) as (router, (worker,)):
        await router.post("/pause_generation", {"mode": "retract"})
        asked = asyncio.create_task(router.post(CHAT, request_of()))
        await until(lambda: router.gateway.relay.running == 1)
        asked.cancel()
        await asyncio.wait([asked])
        await until(lambda: router.gateway.relay.running == 0)
        await router.post("/continue_generation", {})
        assert worker.requests == []


async def test_what_was_to_be_aborted_does_not_move_when_its_worker_dies():
    """The worker dies before it heard of the abort: the generation ends as aborted."""
    async with fleet(2, resume_aborted="all") as (router, workers):
        asked = await held_stream(router, workers[0], "/generate", native())
        router.gateway.relay.cancel("mine")
        await workers[0].refuse_connections()
        last = (await asked)[-1]
        assert last["meta_info"]["finish_reason"]["type"] == "abort"
        assert last["output_ids"] == story(PROMPT, 2)[0]
        assert workers[1].requests == []
        assert router.gateway.relay.cancel("mine") == []


SEVERAL = {
    CHAT: {"messages": [user("Hi")], "n": 12},
    "/v1/completions": {"prompt": ["a", "b"], "n": 6},
    "/generate": {"input_ids": PROMPT, "sampling_params": {"n": 12}},
}


@pytest.mark.parametrize(("path", "asked"), SEVERAL.items(), ids=SEVERAL)
async def test_no_rid_at_a_worker_begins_with_another(path, asked):
    """SGLang aborts all that begin with the rid it is given: one sample would end others."""
    async with fleet(1) as (router, (worker,)):
        worker.hold(after_tokens=1)
        asking = asyncio.create_task(router.http.post(path, json={**asked, "rid": "mine"}))
        await worker.wait_running(12)
        await router.post("/pause_generation", {"mode": "abort"})
        await router.post("/continue_generation", {})
        if path != "/generate":  # aborts are handed over there
            await until(lambda: len(worker.requests) == 24)
        worker.release()
        async with await asking as response:
            assert response.status == 200
        rids = {request.body["rid"] for request in worker.requests}
        assert len(rids) == len(worker.requests)
        assert not [(a, b) for a in rids for b in rids if a != b and b.startswith(a)]


@pytest.mark.parametrize(("path", "asked"), SEVERAL.items(), ids=SEVERAL)
async def test_an_abort_by_rid_ends_all_samples_also_those_that_wait(path, asked):
    async with fleet(1, max_concurrent_requests=5) as (router, (worker,)):
        worker.hold(after_tokens=1)
        body = {**asked, "rid": "mine", "stream": True}
        asking = asyncio.create_task(router.http.post(path, json=body))
        await worker.wait_running(5)
        await until(lambda: router.gateway.admission.figures.waiting == 7)
        assert (await router.http.post("/abort_request", json={"rid": "mine"})).status == 200
        worker.release()
        async with await asking as response:
            assert b"bort" in await response.read()
        assert len(worker.requests) == 5
