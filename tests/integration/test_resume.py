"""A worker that dies in the middle: another goes on, and nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.types import VersionSpan
from tests.integration.gateway import CHAT, until
from tests.integration.storytellers import fleet, only_turn, request_of, story, streamed, text_of

PROMPT = [70, 71, 72]
COUNT = 6
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def native(**fields: Any) -> dict[str, Any]:
    return {"input_ids": PROMPT, "rid": "mine", "return_logprob": True, "top_logprobs_num": 2,
            "sampling_params": {"max_new_tokens": COUNT}, **fields}  # fmt: skip


def same(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items without what names the worker."""
    others = {"weight_version", "weight_versions", "cached_tokens"}
    return [
        {**item, "meta_info": {k: v for k, v in item["meta_info"].items() if k not in others}}
        for item in items
    ]


@pytest.mark.parametrize("k", range(1, COUNT))
async def test_a_chat_stream_goes_on_unbroken_after_any_token(k):
    """The client's events, the turn and its logprobs are those of one worker."""
    body = request_of(max_tokens=COUNT, logprobs=True, top_logprobs=2)
    async with fleet(1) as (router, _):
        expected = await streamed(router, CHAT, body)
    async with fleet(2) as (router, workers):
        workers[0].weight_version, workers[1].weight_version = "v1", "v2"
        workers[0].die_next(after_tokens=k)
        got = await streamed(router, CHAT, body)
        turn = only_turn(router)
        assert router.gateway.relay.counts["moved"] == 1
        assert len(workers[1].requests) == 1
        sent = workers[1].requests[0].body
    ids, logprobs = story(turn.prompt_ids.tolist(), COUNT)
    assert turn.output_ids.tolist() == ids
    assert turn.logprobs is not None
    assert turn.logprobs.tolist() == logprobs
    assert turn.weight_versions == (VersionSpan("v1", 0, k), VersionSpan("v2", k, COUNT))
    assert sent["input_ids"] == turn.prompt_ids.tolist() + ids[:k]
    assert sent["sampling_params"]["max_new_tokens"] == COUNT - k

    def said(events: list[dict[str, Any]]) -> tuple[str, list[Any], str | None]:
        choices = [event["choices"][0] for event in events if event["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        entries = [e for c in choices for e in (c.get("logprobs") or {}).get("content") or ()]
        return text, entries, choices[-1]["finish_reason"]

    assert said(got) == said(expected)
    assert said(got)[0] == text_of(ids)
    assert len(said(got)[1]) == COUNT


@pytest.mark.parametrize("knows", [True, False], ids=["seen before", "first stream"])
@pytest.mark.parametrize("incremental", [False, True], ids=["cumulative", "incremental"])
@pytest.mark.parametrize("k", range(1, COUNT))
async def test_a_native_stream_goes_on_item_by_item(k, incremental, knows):
    """Text, ids, logprobs, top logprobs, counts and the rid: each item as one worker writes it."""
    settings = {"incremental": incremental}
    async with fleet(1, settings) as (router, _):
        expected = await streamed(router, "/generate", native())
    async with fleet(2, settings) as (router, workers):
        for index in range(2 if knows else 0):
            await streamed(router, "/generate", native(rid=f"before-{index}"))
        workers[0].die_next(after_tokens=k)
        got = await streamed(router, "/generate", native())
        assert router.gateway.relay.counts["moved"] == 1
    if knows or not incremental or 1 < k < COUNT - 1:
        assert same(got) == same(expected)
    # What nothing has shown yet is waited for; where nothing ever shows it, items repeat all.
    whole = [id for item in got for id in item["output_ids"]] if incremental else []
    last = got[-1]
    assert last["meta_info"]["completion_tokens"] == COUNT
    assert last["meta_info"]["finish_reason"] == {"type": "length", "length": COUNT}
    assert last["meta_info"]["weight_versions"] == [
        {"version": "default", "start": 0, "end": COUNT}
    ]
    assert story(PROMPT, COUNT)[0] in (whole, last["output_ids"])


@pytest.mark.parametrize("path", [CHAT, "/generate"])
async def test_a_whole_reply_is_asked_anew(path):
    async with fleet(2) as (router, workers):
        workers[0].die_next(after_tokens=2)
        body = request_of(max_tokens=COUNT) if path == CHAT else native()
        status, reply = await router.post(path, body)
        assert status == 200
        ids = reply["output_ids"] if path == "/generate" else only_turn(router).output_ids.tolist()
        prompt = workers[1].requests[-1].body["input_ids"]
        assert ids == story(prompt, COUNT)[0]
        if path == "/generate":
            assert reply["meta_info"]["id"] == "mine"


async def test_three_workers_die_one_after_the_other_and_the_stream_goes_on():
    async with fleet(4) as (router, workers):
        for worker in workers[:3]:
            worker.die_next(after_tokens=1)
        events = await streamed(router, "/generate", native())
        assert events[-1]["output_ids"] == story(PROMPT, COUNT)[0]
        assert router.gateway.relay.counts["moved"] == 3
        rids = [request.body["rid"] for worker in workers for request in worker.requests]
        assert len(set(rids)) == 4
        await until(lambda: router.gateway.fleet.health.deaths == 3)


async def test_a_grammar_cannot_begin_in_the_middle():
    """Never silently shortened: the stream ends with an error."""
    body = request_of(max_tokens=COUNT, response_format=SCHEMA, stream=True)
    async with fleet(2) as (router, workers):
        workers[0].die_next(after_tokens=2)
        async with router.http.post(CHAT, json=body) as response:
            raw = await response.read()
            assert response.status == 200
        assert b'"upstream_error"' in raw
        assert workers[1].requests == []


async def test_a_whole_reply_under_a_grammar_begins_anew():
    body = request_of(max_tokens=COUNT, response_format=SCHEMA)
    async with fleet(2) as (router, workers):
        workers[0].die_next(after_tokens=2)
        status, _ = await router.post(CHAT, body)
        assert status == 200
        turn = only_turn(router)
        assert turn.output_ids.tolist() == story(turn.prompt_ids.tolist(), COUNT)[0]


async def test_when_nobody_is_left_the_stream_ends_with_an_error():
    """What came is recorded, undelivered."""
    async with fleet(1, worker_wait_s=0.05) as (router, (worker,)):
        worker.die_next(after_tokens=2)
        async with router.http.post(CHAT, json=request_of(stream=True)) as response:
            raw = await response.read()
        assert b'"no_available_workers"' in raw
        turn = only_turn(router)
        assert len(turn.output_ids) == 2
        assert not router.gateway.store.is_delivered(turn.id)


async def test_rows_of_a_session_have_every_token_once_after_a_failover():
    headers = {"X-Session-ID": "s"}
    async with fleet(2) as (router, workers):
        workers[0].weight_version, workers[1].weight_version = "v1", "v2"
        workers[0].die_next(after_tokens=3)
        body = request_of(max_tokens=COUNT, stream=True)
        async with router.http.post(CHAT, json=body, headers=headers) as response:
            await response.read()
        _, rows = await router.get("/sessions/s/rows")
        turn = only_turn(router)
    (row,) = rows["rows"]
    prompt_len = len(turn.prompt_ids)
    assert row["tokens"][prompt_len:] == story(row["tokens"][:prompt_len], COUNT)[0]
    assert sum(row["loss_mask"]) == COUNT
    assert row["weight_versions"][-COUNT:] == ["v1"] * 3 + ["v2"] * 3
