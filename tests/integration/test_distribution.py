"""What tokens were sampled from: asked for where sampling truncates, kept, and shown in rows."""

from __future__ import annotations

import logging
from base64 import b64encode
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pytest

from tests.integration.gateway import CHAT, Served, served, serving, tiny_worker, user

TOP_K: dict[str, Any] = {"temperature": 1.0, "top_k": 3, "max_tokens": 8}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
NUCLEUS: dict[str, Any] = {"temperature": 1.0, "top_p": 0.5, "max_tokens": 8}


async def rows_of(router: Served, session: str = "s") -> tuple[list[dict[str, Any]], Any]:
    status, body = await router.get(f"/sessions/{session}/rows")
    assert status == 200
    return body["rows"], body["stats"]


async def say(router: Served, session: str = "s", **fields: Any) -> Any:
    body = {"messages": [user("Hi")], **fields}
    async with router.http.post(f"/sessions/{session}{CHAT}", json=body) as response:
        assert (response.status, bool(await response.read())) == (200, True)
        return orjson.loads(response.headers.get("x-slime-receipt", "{}"))


def masks_of(row: dict[str, Any]) -> list[list[int]]:
    bounds = row["mask_offsets"]
    return [row["mask_ids"][start:end] for start, end in pairwise(bounds)]


def check_masks(row: dict[str, Any], width: int) -> None:
    """Each sampled token has a mask with itself in it, and nothing else has any."""
    masks = masks_of(row)
    assert len(masks) == len(row["tokens"]) == len(row["sampling_logprobs"])
    for token, mask, is_sampled, logprob in zip(
        row["tokens"], masks, row["loss_mask"], row["sampling_logprobs"], strict=True
    ):
        assert len(mask) == (width if is_sampled else 0)
        assert not is_sampled or token in mask
        assert (logprob < 0) == (bool(is_sampled) and width > 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 3])
async def test_a_session_that_truncates_has_the_masks_of_its_tokens(
    stream, incremental, chunk_tokens
):
    settings = {"incremental": incremental, "chunk_tokens": chunk_tokens}
    async with served(settings) as (router, worker):
        worker.script([11, 12, 13, 14, 15])
        await say(router, stream=stream, **TOP_K)
        sent = worker.requests[0].body
        assert sent["return_sampling_mask"] is True
        assert sent["sampling_logprobs_mode"] == "selected"
        [row], stats = await rows_of(router)
        check_masks(row, 3)
        assert masks_of(row)[-1] == [15, 16, 17]
        assert row["sampling_logprobs"][-5:] == [-0.25, -0.5, -0.75, -1.0, -0.25]
        assert row["truncated_sampling"] is False
        assert stats["truncated_sampling"] == {}


async def test_greedy_tokens_were_sampled_from_themselves_alone():
    async with served() as (router, worker):
        worker.script([11, 12])
        await say(router, **GREEDY)
        [row], _ = await rows_of(router)
        check_masks(row, 1)
        assert row["sampling_logprobs"] == [0.0] * len(row["tokens"])


async def test_where_nothing_is_cut_off_nothing_is_asked_and_nothing_is_said():
    async with served() as (router, worker):
        await say(router, temperature=0.7, top_p=1.0, top_k=-1, min_p=0.0)
        assert "return_sampling_mask" not in worker.requests[0].body
        [row], stats = await rows_of(router)
        assert row["truncated_sampling"] is False
        assert "mask_offsets" not in row
        assert stats["truncated_sampling"] == {}


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [(NUCLEUS, "no_top_k"), ({"min_p": 0.1, "max_tokens": 4}, "no_top_k")],
)
async def test_a_row_of_an_unknown_part_of_the_vocabulary_says_so(sampling, reason, caplog):
    caplog.set_level(logging.WARNING)
    async with served() as (router, worker):
        for _ in range(2):
            await say(router, **sampling)
        assert "return_sampling_mask" not in worker.requests[0].body
        rows, stats = await rows_of(router)
        assert [row["truncated_sampling"] for row in rows] == [True] * len(rows)
        assert stats["truncated_sampling"] == {reason: len(rows)}
        warned = [line for line in caplog.messages if "under top_p" in line]
        assert len(warned) == 1, "once a session"
        await say(router, "other", **sampling)
        assert len([line for line in caplog.messages if "under top_p" in line]) == 2
        _, metrics = await router.get("/metrics")
        assert metrics["trajectories"]["recorded_truncated_sampling"] == 3


@pytest.mark.parametrize("query", ["json", "jsonl", "slime", "npz", "safetensors", "parquet"])
async def test_every_format_says_that_a_row_is_truncated(query):
    async with served() as (router, _):
        await say(router, **NUCLEUS)
        async with router.http.get(f"/sessions/s/rows?format={query}") as response:
            raw = await response.read()
        assert b"truncated_sampling" in raw
        if query in ("json", "jsonl", "slime"):
            assert b'"truncated_sampling":true' in raw
        async with router.http.post("/sessions/s/samples", json={}) as response:
            assert b'"truncated_sampling":true' in await response.read()


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_worker_refuses_for_its_masks_is_asked_without_them(stream):
    async with served({"mask_cap": 2}) as (router, worker):
        worker.script([11, 12])
        await say(router, stream=stream, **TOP_K)
        assert len(worker.requests) == 2
        assert "return_sampling_mask" not in worker.requests[1].body
        [row], stats = await rows_of(router)
        assert row["tokens"][-2:] == [11, 12]
        assert row["truncated_sampling"] is True
        assert stats["truncated_sampling"] == {"refused": 1}
        _, metrics = await router.get("/metrics")
        assert metrics["fleet"]["masks_refused"] == 1
        assert metrics["fleet"]["retried"] == 0


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("path", [CHAT, "/generate"])
async def test_a_mask_that_is_too_wide_in_the_middle_ends_no_reply(status, path):
    """SGLang aborts the request then; the rest is sampled without masks."""
    words = "Sampling support exceeds --sampling-mask-max-tokens=4096, commonly because of ties."
    async with served() as (router, worker):
        worker.script([11, 12], finish={"type": "abort", "message": words, "status_code": status})
        worker.script([13, 14])
        params = {"temperature": 1.0, "top_k": 3}
        body: dict[str, Any] = {"stream": True, "messages": [user("Hi")], **params}
        if path == "/generate":
            body = {"stream": True, "input_ids": [5, 6], "sampling_params": params}
        async with router.http.post(f"/sessions/s{path}", json=body) as response:
            raw = await response.read()
        assert response.status == 200
        assert b"error" not in raw
        assert b"sampling_mask" not in raw
        [row], stats = await rows_of(router)
        assert row["tokens"][-4:] == [11, 12, 13, 14]
        assert masks_of(row)[-4:] == [[11, 12, 13], [12, 13, 14], [], []]
        assert row["sampling_logprobs"][-4:] == [-0.25, -0.5, -9999.0, -9999.0]
        assert row["truncated_sampling"] is True
        assert stats["truncated_sampling"] == {"refused": 1}


async def test_an_old_worker_that_gives_no_masks_is_noticed():
    async with served({"mask_cap": None}) as (router, _):
        await say(router, **TOP_K)
        [row], stats = await rows_of(router)
        assert row["truncated_sampling"] is True
        assert stats["truncated_sampling"] == {"not_given": 1}


@pytest.mark.parametrize(
    ("preferred", "reason"),
    [({"top_p": 0.9}, {"no_top_k": 1}), ({"top_p": 0.9, "top_k": 4}, {}), ({"top_p": 1.0}, {})],
)
async def test_what_a_worker_prefers_by_itself_counts(preferred, reason):
    async with served({"preferred": preferred}) as (router, worker):
        [registered] = router.gateway.pool.list()
        while not registered.was_greeted:
            await router.get("/readiness")
        await say(router, max_tokens=4)
        assert ("return_sampling_mask" in worker.requests[-1].body) == ("top_k" in preferred)
        [row], stats = await rows_of(router)
        assert stats["truncated_sampling"] == reason
        assert row["truncated_sampling"] is bool(reason)


async def test_without_a_session_nobody_reads_masks_so_nobody_asks_for_them():
    async with served() as (router, worker):
        await router.chat([user("Hi")], **TOP_K)
        assert "return_sampling_mask" not in worker.requests[0].body


@pytest.mark.parametrize(
    ("capture", "asked", "reason"),
    [("off", False, None), ("tokens", False, "not_asked"), ("distribution", True, None)],
)
async def test_the_capture_decides(capture, asked, reason):
    async with served(capture=capture) as (router, worker):
        await say(router, **TOP_K)
        assert ("return_sampling_mask" in worker.requests[0].body) is asked
        if capture == "off":
            assert (await router.get("/sessions/s/rows"))[0] == 404
        else:
            _, stats = await rows_of(router)
            assert stats["truncated_sampling"] == ({reason: 1} if reason else {})


async def test_capture_distribution_gives_a_nucleus_the_top_k_that_masks_need():
    async with served(capture="distribution", mask_top_k=3) as (router, worker):
        receipt = await say(router, **NUCLEUS)
        params = worker.requests[0].body["sampling_params"]
        assert (params["top_k"], params["top_p"]) == (3, 0.5)
        assert receipt["notes"] == ["top_k 3 added, so that the worker says what it samples from"]
        [row], _ = await rows_of(router)
        check_masks(row, 3)
        await say(router, "plain", temperature=1.0)
        assert "top_k" not in worker.requests[1].body["sampling_params"]
    async with served(capture="distribution", mask_top_k=0) as (router, worker):
        await say(router, **NUCLEUS)
        assert "top_k" not in worker.requests[0].body["sampling_params"]


async def test_masks_live_through_a_death_and_an_abort():
    async with (
        tiny_worker() as first,
        tiny_worker() as second,
        serving(first.url, second.url, policy="round_robin") as router,
    ):
        first.script([11, 12, 13, 14])
        first.die_next(after_tokens=2)
        second.script([13], finish="abort")
        second.script([14])
        await say(router, stream=True, **TOP_K)
        [row], _ = await rows_of(router)
        assert row["tokens"][-4:] == [11, 12, 13, 14]
        assert len(second.requests) == 2
        check_masks(row, 3)
        assert masks_of(row)[-4:] == [[n, n + 1, n + 2] for n in (11, 12, 13, 14)]
        assert row["truncated_sampling"] is False


async def test_a_client_of_generate_sees_masks_only_if_it_asked_for_them():
    params = {"top_k": 2, "max_new_tokens": 2}
    async with served() as (router, worker):
        body: dict[str, Any] = {"input_ids": [5, 6], "sampling_params": params}
        worker.script([11, 12])
        _, plain = await router.post("/sessions/s/generate", body)
        assert worker.requests[0].body["return_sampling_mask"] is True
        assert not [name for name in plain["meta_info"] if "sampling" in name]
        worker.script([11, 12])
        _, asked = await router.post("/sessions/t/generate", {**body, "return_sampling_mask": True})
        assert asked["meta_info"]["output_token_sampling_mask"] == [[11, 12], [12, 13]]
        for session in ("s", "t"):
            [row], _ = await rows_of(router, session)
            check_masks(row, 2)


async def test_a_client_of_chat_sees_masks_in_meta_info_where_it_asks_for_both():
    async with served() as (router, worker):
        body = {"messages": [user("Hi")], **TOP_K, "return_sampling_mask": True}
        worker.script([11, 12])
        status, reply = await router.post(CHAT, {**body, "return_meta_info": True})
        assert (status, worker.requests[0].body["return_sampling_mask"]) == (200, True)
        meta = reply["choices"][0]["meta_info"]
        assert meta["output_token_sampling_mask"] == [[11, 12, 13], [12, 13, 14]]
        for name in ("return_sampling_mask", "return_indexer_topk"):
            status, reply = await router.post(CHAT, {"messages": [user("Hi")], name: True})
            assert (status, reply["error"]["param"]) == (400, name)
        assert len(worker.requests) == 1


LIES: dict[str, dict[str, Any]] = {
    "too few": {"output_token_sampling_mask": [[11]]},
    "not lists": {"output_token_sampling_mask": [11, 12]},
    "not ids": {"output_token_sampling_mask": [[11], [12.0]]},
    "outside the vocabulary": {"output_token_sampling_mask": [[11], [12, 10**6]]},
    "without the token": {"output_token_sampling_mask": [[11], [13]]},
    "the token twice": {"output_token_sampling_mask": [[11], [12, 12]]},
    "no logprobs": {"output_token_sampling_logprobs": None},
    "a logprob too few": {"output_token_sampling_logprobs": [-1.0]},
    "a positive logprob": {"output_token_sampling_logprobs": [-1.0, 1.0]},
    "an infinite logprob": {"output_token_sampling_logprobs": [-1.0, None]},
}


@pytest.mark.parametrize("meta", LIES.values(), ids=LIES)
async def test_masks_that_cannot_be_are_a_failure_of_the_worker(meta):
    async with served(retry_max_retries=0) as (router, worker):
        worker.script([11, 12], **meta)
        status, body = await router.post(f"/sessions/s{CHAT}", {"messages": [user("Hi")], **TOP_K})
        assert status == 502, body


async def test_a_row_of_turns_with_and_without_masks_tells_them_apart():
    """An empty mask is the whole vocabulary: there the sampling logprob is the plain one."""
    async with served() as (router, worker):
        worker.script([11, 12])
        await say(router, **TOP_K)
        [row], _ = await rows_of(router)
        worker.script([21, 22])
        body = {"input_ids": [*row["tokens"], 3], "sampling_params": {"max_new_tokens": 2}}
        await router.post("/sessions/s/generate", body)
        [row], stats = await rows_of(router)
        assert masks_of(row)[-5:] == [[11, 12, 13], [12, 13, 14], [], [], []]
        assert row["sampling_logprobs"][-5:] == [-0.25, -0.5, 0.0, -0.5, -1.0]
        assert stats["truncated_sampling"] == {}


async def test_a_pair_is_never_asked_and_its_rows_say_so():
    async with tiny_worker() as prefill, tiny_worker() as decode, serving() as router:
        for worker, kind in ((prefill, "prefill"), (decode, "decode")):
            fields = {"url": worker.url, "worker_type": kind, "bootstrap_port": 7}
            status, body = await router.post("/workers", fields)
            assert status < 300, body
        await say(router, **TOP_K)
        assert "return_sampling_mask" not in decode.requests[0].body
        [row], stats = await rows_of(router)
        assert row["truncated_sampling"] is True
        assert stats["truncated_sampling"] == {"pair": 1}


async def test_what_an_indexer_chose_is_kept_for_the_trainer_alone():
    """Base64 of int32 for each position but the last, from the first one of the conversation on."""

    def encoded(positions: int) -> str:
        values = np.repeat(np.arange(positions, dtype="<i4")[:, None], 2, axis=1)
        return b64encode(values.tobytes()).decode()

    async with served() as (router, worker):
        await router.post("/sessions", {"session_id": "s", "return_indexer_topk": True})
        worker.script([11, 12], indexer_topk=encoded(3))
        body: dict[str, Any] = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 2}}
        _, reply = await router.post("/sessions/s/generate", body)
        assert worker.requests[0].body["return_indexer_topk"] is True
        assert "indexer_topk" not in reply["meta_info"]
        worker.script([13, 14], indexer_topk=encoded(6))
        body["input_ids"] = [5, 6, 11, 12, 7]
        await router.post("/sessions/s/generate", body)
        [row], stats = await rows_of(router)
        assert row["indexer_topk"]["shape"] == [6, 2]
        assert stats["indexer_topk_missing"] == {}
