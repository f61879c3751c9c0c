"""The likeliest tokens at each sampled one: kept where a session or a flag asks for them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.integration.gateway import CHAT, Served, served, serving, tiny_worker, user

FLAT = "return_flat_raw_output_top_logprobs"
Tops = list[list[tuple[int, float]]]


async def opened(router: Served, **fields: Any) -> None:
    status, body = await router.post("/sessions", {"session_id": "s", **fields})
    assert status == 201, body


async def say(router: Served, **fields: Any) -> Any:
    body = {"messages": [user("Hi")], **fields}
    async with router.http.post(f"/sessions/s{CHAT}", json=body) as response:
        raw = await response.read()
        assert response.status == 200, raw
        return raw


async def generate(router: Served, **fields: Any) -> Any:
    params = {"max_new_tokens": 2}
    body = {"input_ids": [5, 6], "sampling_params": params, **fields}
    status, reply = await router.post("/sessions/s/generate", body)
    assert status == 200, reply
    return reply["meta_info"]


async def row_of(router: Served, session: str = "s") -> dict[str, Any]:
    _, body = await router.get(f"/sessions/{session}/rows")
    [row] = body["rows"]
    return dict(row)


def tops_of(row: dict[str, Any]) -> Tops:
    """Those of the response; the prompt has none."""
    offsets, ids, values = row["top_offsets"], row["top_ids"], row["top_logprobs"]
    assert len(offsets) == len(row["tokens"]) + 1
    assert offsets[-1] == len(ids) == len(values)
    pairs = list(zip(ids, values, strict=True))
    found = [pairs[start:end] for start, end in pairwise(offsets)]
    start = len(found) - row["response_length"]
    assert found[:start] == [[]] * start
    return found[start:]


def given(*tokens: int, count: int = 3) -> Tops:
    """What a worker without a model says of its first, second, ... token."""
    return [
        [(token + rank, -0.5 * (step + 1)) for rank in range(count)]
        for step, token in enumerate(tokens)
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("lays_tops_flat", [False, True])
async def test_a_session_that_asks_has_the_likeliest_tokens_in_its_rows(
    stream, incremental, lays_tops_flat
):
    settings = {"incremental": incremental, "lays_tops_flat": lays_tops_flat}
    async with served(settings) as (router, worker):
        await opened(router, top_logprobs=3)
        worker.script([11, 12, 13])
        said = await say(router, stream=stream)
        sent = worker.requests[0].body
        assert sent["top_logprobs_num"] == 3
        assert sent.get(FLAT, False) is (not stream)
        row = await row_of(router)
        assert tops_of(row) == given(11, 12, 13)
        assert row["logprobs"][-3:] == [-0.5, -1.0, -1.5]
        assert b'"top_logprobs"' not in said


@pytest.mark.parametrize("stream", [False, True])
async def test_the_client_of_chat_sees_as_many_as_it_asked_for(stream):
    async with served() as (router, worker):
        await opened(router, top_logprobs=3)
        worker.script([11, 12])
        said = await say(router, stream=stream, logprobs=True, top_logprobs=1)
        assert said.count(b'"top_logprobs":[{') == 2
        assert said.count(b'"bytes"') == 4
        assert tops_of(await row_of(router)) == given(11, 12)


async def test_a_client_that_asks_for_more_gets_more_and_all_of_it_is_kept():
    async with served() as (router, worker):
        await opened(router, top_logprobs=1)
        worker.script([11])
        await say(router, logprobs=True, top_logprobs=4)
        assert worker.requests[0].body["top_logprobs_num"] == 4
        assert tops_of(await row_of(router)) == given(11, count=4)


@pytest.mark.parametrize("wanted", [0, 1, 5])
async def test_the_client_of_generate_gets_its_own_and_no_others(wanted):
    async with served() as (router, worker):
        await opened(router, top_logprobs=3)
        worker.script([11, 12])
        meta = await generate(
            router, return_logprob=True, top_logprobs_num=wanted, logprob_start_len=0
        )
        names = [name for name in meta if "top_logprobs" in name]
        if not wanted:
            assert names == []
        else:
            assert [len(row) for row in meta["output_top_logprobs"]] == [wanted] * 2
            assert [len(row or ()) for row in meta["input_top_logprobs"]] == [0, wanted]
        assert tops_of(await row_of(router)) == given(11, 12, count=max(3, wanted))


async def test_a_client_that_reads_flat_ones_gets_what_it_asked_for():
    async with served() as (router, worker):
        await opened(router, top_logprobs=3)
        worker.script([11, 12])
        more = {FLAT: True, "return_flat_raw_top_logprobs_b64": True}
        meta = await generate(router, top_logprobs_num=2, **more)
        assert meta["output_top_logprobs_shape"] == [2, 2]
        assert tops_of(await row_of(router)) == given(11, 12, count=2)


async def test_they_live_through_a_death_and_an_abort():
    async with (
        tiny_worker() as first,
        tiny_worker() as second,
        serving(first.url, second.url, policy="round_robin") as router,
    ):
        await opened(router, top_logprobs=2)
        first.script([11, 12, 13, 14])
        first.die_next(after_tokens=2)
        second.script([13], finish="abort")
        second.script([14])
        await say(router, stream=True)
        row = await row_of(router)
        assert row["tokens"][-4:] == [11, 12, 13, 14]
        assert [[token for token, _ in each] for each in tops_of(row)] == [
            [token, token + 1] for token in (11, 12, 13, 14)
        ]


async def test_an_abort_of_a_whole_reply_is_resumed_with_them():
    async with served() as (router, worker):
        await opened(router, top_logprobs=2)
        worker.script([11, 12], finish="abort")
        worker.script([13])
        await say(router)
        found = tops_of(await row_of(router))
        assert [[token for token, _ in each] for each in found] == [[11, 12], [12, 13], [13, 14]]


async def test_a_flag_asks_for_all_sessions_and_a_session_has_the_last_word():
    async with served(keep_top_logprobs=2) as (router, worker):
        worker.script([11])
        await say(router)
        assert tops_of(await row_of(router)) == given(11, count=2)
        await router.post("/sessions", {"session_id": "none", "top_logprobs": 0})
        await router.post(f"/sessions/none{CHAT}", {"messages": [user("Hi")]})
        assert "top_logprobs_num" not in worker.requests[1].body
        assert "top_offsets" not in await row_of(router, "none")
        await router.chat([user("Hi")])
        assert "top_logprobs_num" not in worker.requests[2].body, "no session, no rows"


async def test_a_session_without_them_has_no_such_fields():
    async with served() as (router, worker):
        worker.script([11])
        await say(router, logprobs=True, top_logprobs=2)
        assert "top_offsets" not in await row_of(router)


@pytest.mark.parametrize(("capture", "asked"), [("off", False), ("tokens", True)])
async def test_the_capture_decides(capture, asked):
    async with served(capture=capture) as (router, worker):
        await opened(router, top_logprobs=2)
        worker.script([11])
        await say(router)
        sent = worker.requests[0].body
        assert ("top_logprobs_num" in sent, sent["return_logprob"]) == (asked, asked)
        if asked:
            assert tops_of(await row_of(router)) == given(11, count=2)


@pytest.mark.parametrize("count", [-1, 129, True, 1.0, "2"])
async def test_how_many_is_checked(count):
    async with served() as (router, _):
        status, body = await router.post("/sessions", {"top_logprobs": count})
        assert (status, body["error"]["param"]) == (400, "top_logprobs")


LIES: dict[str, dict[str, Any]] = {
    "none at all": {"output_top_logprobs_shape": None},
    "too few": {"output_top_logprobs_shape": [1, 2]},
    "another width": {"output_top_logprobs_shape": [2, 3]},
    "no base64": {"output_top_logprobs_idx_flat_b64": "%"},
    "half a number": {"output_top_logprobs_idx_flat_b64": "AAA="},
    "other numbers": {"output_top_logprobs_val_flat_b64_dtype": "float16"},
    "outside the vocabulary": {"output_top_logprobs_idx_flat_b64": "////f////3////9/////fw=="},
    "positive": {"output_top_logprobs_val_flat_b64": "AACAPwAAgD8AAIA/AACAPw=="},
}


@pytest.mark.parametrize("meta", LIES.values(), ids=LIES)
async def test_flat_ones_that_cannot_be_are_a_failure_of_the_worker(meta):
    async with served(retry_max_retries=0) as (router, worker):
        await opened(router, top_logprobs=2)
        worker.script([11, 12], **meta)
        status, body = await router.post(f"/sessions/s{CHAT}", {"messages": [user("Hi")]})
        assert (status, body["error"]["code"]) == (502, "upstream_error")


async def test_those_that_are_not_finite_are_left_out():
    async with served() as (router, worker):
        await opened(router, top_logprobs=2)
        nothing = "AACAvwAAgP8AAIC/AACA/w=="  # -1, -inf, -1, -inf
        worker.script([11, 12], output_top_logprobs_val_flat_b64=nothing)
        await say(router)
        assert tops_of(await row_of(router)) == [[(11, -1.0)], [(12, -1.0)]]
