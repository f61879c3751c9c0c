"""Two tenants at one worker: their rids and their parts of its cache are apart."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from tests.integration.any_worker import any_worker
from tests.integration.gateway import CHAT, served, serving, until, user

ANN = {"Authorization": "Bearer ANN"}
BOB = {"Authorization": "Bearer BOB"}
ADMIN = {"Authorization": "Bearer ADMIN"}
ASKED = [
    (CHAT, {"messages": [user("hi")], "max_tokens": 3}),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 3}),
    ("/generate", {"text": "hi", "sampling_params": {"max_new_tokens": 3}}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 3}),
    ("/v1/messages", {"messages": [user("hi")], "max_tokens": 3, "model": "m"}),
    (
        "/inference/v1/generate",
        {"token_ids": [1, 2], "sampling_params": {"max_tokens": 3}, "request_id": "victim-1"},
    ),
]
NAMED = [asked for asked in ASKED if asked[0] in (CHAT, "/v1/completions", "/generate")]


@pytest.fixture
def keys(tmp_path) -> dict[str, Any]:
    path = tmp_path / "keys"
    path.write_text("ann: ANN\nbob: BOB\n")
    return {"api_keys_file": str(path), "admin_api_key": "ADMIN"}


@pytest.mark.parametrize(("path", "body"), ASKED)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_door_serves_named_keys(keys, path, body, stream):
    async with served(**keys) as (router, worker):
        for headers in (ANN, BOB):
            said = {**body, "stream": stream}
            async with router.http.post(path, json=said, headers=headers) as answer:
                raw = await answer.read()
                assert answer.status == 200, raw
        one, other = (r.body["rid"] for r in worker.requests)
    tags = [rid.partition(":")[2][:17] for rid in (one, other)]
    assert tags[0] != tags[1]
    assert not [tag for tag in tags if tag in raw.decode()]


@pytest.mark.parametrize(("path", "body"), NAMED)
async def test_equal_rids_of_two_tenants_are_two_at_the_worker(keys, path, body):
    async with served(**keys) as (router, worker):
        for headers in (ANN, BOB, ANN):
            status, reply = await router.post(path, {**body, "rid": "victim-1"}, headers=headers)
            assert status == 200
            shown = reply["meta_info"]["id"] if path == "/generate" else reply["id"]
            assert shown == "victim-1"
    one, other, again = (r.body["rid"] for r in worker.requests)
    assert one == again != other
    assert one.endswith(".victim-1")
    assert not other.startswith(one[:16])


async def test_no_rid_of_one_tenant_begins_one_of_another(keys):
    """A worker aborts whatever begins with the rid that it gets."""
    async with served(**keys) as (router, worker):
        await router.post("/generate", {"text": "hi", "rid": "v"}, headers=ANN)
        rids = [worker.requests[-1].body["rid"]]
        for rid in ("v1", rids[0], "0", "."):
            await router.post("/generate", {"text": "hi", "rid": rid}, headers=BOB)
            rids.append(worker.requests[-1].body["rid"])
    assert [rid for rid in rids[1:] if rid.startswith(rids[0]) or rids[0].startswith(rid)] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_every_item_shows_the_rid_as_it_was_sent(keys, stream):
    body = {"text": ["a", "b"], "rid": ["x", "y"], "stream": stream}
    async with (
        served({"chunk_tokens": 1}, **keys) as (router, _),
        router.http.post("/generate", json=body, headers=ANN) as answer,
    ):
        raw = await answer.read()
    if stream:
        events = [e.removeprefix(b"data: ") for e in raw.split(b"\n\n") if e.startswith(b"data: {")]
        items = [orjson.loads(event) for event in events]
    else:
        items = orjson.loads(raw)
    assert {item["meta_info"]["id"] for item in items} == {"x", "y"}


async def test_who_hangs_up_ends_no_generation_of_another(keys):
    body = {"text": "hi", "rid": "victim-1", "sampling_params": {"max_new_tokens": 3}}
    async with served(**keys) as (router, worker):
        worker.hold(after_tokens=1)
        tasks = [asyncio.create_task(router.post("/generate", body, headers=h)) for h in (ANN, BOB)]
        await worker.wait_running(2)
        tasks[1].cancel()
        await until(lambda: bool(worker.aborted))
        worker.release()
        status, reply = await tasks[0]
        assert (status, reply["meta_info"]["finish_reason"]["type"]) == (200, "length")
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_abort_by_rid_is_for_the_owner_it_names(keys):
    body = {"text": "hi", "rid": "r", "sampling_params": {"max_new_tokens": 3}}
    async with served(**keys) as (router, worker):
        worker.hold(after_tokens=1)
        tasks = [asyncio.create_task(router.post("/generate", body, headers=h)) for h in (ANN, BOB)]
        await worker.wait_running(2)
        order = {"rid": "r", "more": 2**70}  # of a field that nobody here knows
        await router.post("/abort_request", order, headers={**ADMIN, "x-slime-owner": "bob"})
        worker.release()
        replies = [reply for _, reply in await asyncio.gather(*tasks)]
    ends = [reply["meta_info"]["finish_reason"]["type"] for reply in replies]
    assert ends == ["length", "abort"]


@pytest.mark.parametrize("settings", [{}, {"api_key": "ANN"}], ids=["no-key", "one-key"])
async def test_without_names_a_rid_can_be_read_at_the_worker(settings):
    async with served(**settings) as (router, worker):
        await router.post("/generate", {"text": "hi", "rid": "mine"}, headers=ANN)
        assert worker.requests[-1].body["rid"] == "#4:mine"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), NAMED)
async def test_an_abort_leaves_rids_that_begin_with_its_own(path, body, stream):
    """A worker aborts whatever begins with the rid that it gets."""
    uuid = "0f8fad5b-d9cb-469f-a165-70867728950e"
    rids = ["mine", "mine-1", "#4:mine", "4:mine", uuid, uuid.replace("-", ""), f"{uuid}-1"]
    async with served() as (router, worker):
        worker.hold(after_tokens=1)
        asked = [{**body, "rid": rid, "stream": stream} for rid in rids]
        tasks = [asyncio.create_task(_read(router, path, each)) for each in asked]
        await worker.wait_running(len(rids))
        for unknown in ("#", "#4", "4", "min", "m", "0", uuid[:9], uuid[:-1]):
            await router.post("/abort_request", {"rid": unknown})
        await router.post("/abort_request", {"rid": "mine"})
        await until(lambda: len(worker.running) < len(rids))
        worker.release()
        said = await asyncio.gather(*tasks)
    names = {request.body["rid"] for request in worker.requests}
    assert len(names) == len(rids)
    assert not [each for each in worker.aborted for name in names - {each} if name.startswith(each)]
    assert ["abort" in each for each in said] == [True] + [False] * (len(rids) - 1)
    assert all(f'"{rid}"' in each for rid, each in zip(rids[1:], said[1:], strict=True))


async def _read(router: Any, path: str, body: dict[str, Any]) -> str:
    async with router.http.post(path, json=body) as answer:
        return str(await answer.text())


@pytest.mark.parametrize(
    ("path", "body", "two", "taken"),
    [
        (CHAT, {"messages": [user("hi")]}, {"n": 2}, "1-a"),
        ("/v1/completions", {"prompt": "hi"}, {"n": 2}, "1-a"),
        ("/generate", {"text": "hi"}, {"sampling_params": {"n": 2}}, "1_a"),
    ],
)
async def test_no_rid_of_a_client_is_that_of_a_sample(path, body, two, taken):
    """SGLang refuses a rid that it is answering already."""
    async with served() as (router, worker):
        worker.hold(after_tokens=1)
        asked = [{**body, **two, "rid": "a"}]
        asked += [{**body, "rid": rid} for rid in (taken, f"-{taken}", f"##3:{taken}")]
        tasks = [asyncio.create_task(router.post(path, each)) for each in asked]
        await worker.wait_running(5)
        names = [request.body["rid"] for request in worker.requests]
        await router.post("/abort_request", {"rid": "a"})
        await until(lambda: len(worker.running) == 3)
        worker.release()
        said = [str(reply) for _, reply in await asyncio.gather(*tasks)]
    assert len(set(names)) == len(names)
    assert not [each for each in names for name in names if each != name and name.startswith(each)]
    assert ["abort" in each for each in said] == [True, False, False, False]


async def test_an_abort_for_a_tenant_does_not_begin_what_another_runs(keys):
    for_bob = {**ADMIN, "x-slime-owner": "bob"}
    async with served(**keys) as (router, worker):
        await router.post("/generate", {"text": "hi", "rid": "v"}, headers=ANN)
        anns = worker.requests[-1].body["rid"]
        # Workers name what has no rid, as what is passed on for a tenant: perhaps "f...".
        for rid in (*(anns[:length] for length in range(1, len(anns) + 1)), "f"):
            assert (await router.post("/abort_request", {"rid": rid}, headers=for_bob))[0] == 200
    assert len(worker.aborted) == len(anns) + 1
    assert not [rid for rid in worker.aborted if anns.startswith(rid) or rid == "f"]


async def test_what_is_passed_on_has_no_rid_of_a_tenants_choice(keys):
    async with any_worker() as worker, serving(worker.url, **keys) as router:
        body = {"input": "a", "rid": "victim-1", "user": "u"}
        for headers in (ANN, BOB):
            async with router.http.post("/v1/embeddings", json=body, headers=headers) as answer:
                assert answer.status == 200
        assert [orjson.loads(h.body) for h in worker.heard] == [{"input": "a", "user": "u"}] * 2


@pytest.mark.parametrize(
    ("rid", "at_worker"),
    [
        ("mine", "mine"),
        ("1", "#1:1"),
        ("0f8fad5b-d9cb", "#13:0f8fad5b-d9cb"),
        ("0f8fad5b-x", "0f8fad5b-x"),
        ("#1:1", "#4:#1:1"),
        ("0f8fad5b-d9cb-469f-a165-70867728950e", "0f8fad5b-d9cb-469f-a165-70867728950e"),
    ],
)
async def test_an_abort_of_what_is_passed_on_ends_no_uuid_that_begins_so(rid, at_worker):
    async with any_worker() as worker, serving(worker.url) as router:
        body = {"input": "a", "rid": rid}
        async with router.http.post("/v1/embeddings", json=body) as answer:
            assert answer.status == 200
        await router.http.post("/abort_request", json={"rid": rid})
        assert [orjson.loads(each.body)["rid"] for each in worker.heard] == [at_worker] * 2


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_isolated_tenants_have_parts_of_the_workers_cache(keys, path, body):
    async with served(isolate_tenants=True, **keys) as (router, worker):
        for headers in (ANN, BOB, ANN):
            for more in ({}, {"extra_key": "k"}):
                assert (await router.post(path, {**body, **more}, headers=headers))[0] == 200
    ann, ann_k, bob, bob_k, again, _ = (r.body["extra_key"] for r in worker.requests)
    assert ann == again != bob
    assert (ann_k, bob_k) == (f"{ann}k", f"{bob}k")
    assert "ann" not in ann


async def test_tenants_share_caches_unless_told_otherwise(keys):
    async with served(**keys) as (router, worker):
        await router.post(*ASKED[0], headers=ANN)
    assert "extra_key" not in worker.requests[-1].body
