"""A session's samples as miles' tracer collects them."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
import safetensors.numpy

from tests.integration.gateway import Served, assistant, served, user
from tests.stack import tiny_tokenizer

HELLO = tiny_tokenizer().encode("Hello there").tolist()
BYE = tiny_tokenizer().encode("Good bye").tolist()
ARRAYS = {
    "tokens": np.int64,
    "loss_mask": np.uint8,
    "rollout_log_probs": np.float64,
    "rollout_routed_experts": np.int32,
    "rollout_indexer_topk": np.int32,
}


async def opened(router: Served) -> tuple[str, str]:
    status, session = await router.post("/sessions", {})
    assert status == 201
    return session["session_id"], f"/sessions/{session['session_id']}"


async def collect(router: Served, path: str, **body: Any) -> tuple[dict[str, Any], Any]:
    async with router.http.post(f"{path}/samples", json=body) as response:
        raw = await response.read()
        assert response.status == 200, raw
    tensors = safetensors.numpy.load(raw)
    meta = tensors.pop("_samples_meta")
    assert meta.dtype == np.uint8
    assert meta.ndim == 1
    return tensors, orjson.loads(meta.tobytes())


def decoded(tensors: dict[str, Any], meta: Any) -> list[dict[str, Any]]:
    """As miles reads it: each array is there with its type, or named among the nulls."""
    samples = []
    for index, sample in enumerate(meta["samples"]):
        for name, dtype in ARRAYS.items():
            if name in sample["nulls"]:
                continue
            values = tensors.pop(f"{name}.{index}")
            assert values.dtype == dtype
            sample[name] = values
        samples.append(sample)
    assert not tensors, "nothing is left over"
    return samples


async def test_the_samples_are_the_rows() -> None:
    async with served() as (router, worker):
        _, path = await opened(router)
        worker.script(HELLO)
        _, _ = await router.chat([user("Hi")], path=f"{path}/v1/chat/completions")
        worker.script(BYE)
        talk = [user("Hi"), assistant("Hello there"), user("Bye")]
        await router.chat(talk, path=f"{path}/v1/chat/completions")
        _, rows = await router.get(f"{path}/rows")
        tensors, meta = await collect(router, path, max_seq_len=None, metadata={"reward": 1})
        (sample,), (row,) = decoded(tensors, meta), rows["rows"]
        start = len(row["tokens"]) - row["response_length"]
        assert sample["tokens"].tolist() == row["tokens"]
        assert sample["loss_mask"].tolist() == row["loss_mask"][start:]
        assert sample["rollout_log_probs"].tolist() == row["logprobs"][start:]
        assert sample["response_length"] == row["response_length"]
        assert sample["response"].startswith("Hello there")
        assert sample["response"].endswith("Good bye")
        assert sample["status"] == "truncated"
        assert sample["weight_versions"] == ["default", "default"]
        assert sample["metadata"]["reward"] == 1
        assert sample["prefix_cache_info"].keys() == {"cached_tokens", "total_prompt_tokens"}
        assert set(sample["nulls"]) == {"rollout_routed_experts", "rollout_indexer_topk"}
        assert (meta["empty_reason"], meta["session_metadata"]["agent"]) == (None, {"reward": 1})


@pytest.mark.parametrize(
    ("asks", "limit", "reason"), [(0, 9, "no_records"), (1, 1, "all_truncated")]
)
async def test_no_samples_have_their_reason(asks: int, limit: int, reason: str) -> None:
    async with served() as (router, worker):
        _, path = await opened(router)
        for _ in range(asks):
            worker.script(HELLO)
            await router.chat([user("Hi")], path=f"{path}/v1/chat/completions")
        tensors, meta = await collect(router, path, max_seq_len=limit)
        assert (tensors, meta["samples"], meta["empty_reason"]) == ({}, [], reason)


async def test_branches_are_samples_of_their_own() -> None:
    async with served() as (router, worker):
        _, path = await opened(router)
        for words in ("One", "Two"):
            worker.script(HELLO)
            await router.chat([user(words)], path=f"{path}/v1/chat/completions")
        samples = decoded(*await collect(router, path))
        assert len(samples) == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_seq_len": 0}, "max_seq_len"),
        ({"max_seq_len": "9"}, "max_seq_len"),
        ({"metadata": []}, "metadata"),
        ({"max_len": 9}, "max_len"),
    ],
)
async def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    async with served() as (router, _):
        _, path = await opened(router)
        status, reply = await router.post(f"{path}/samples", body)
        assert (status, reply["error"]["param"]) == (400, param)


async def test_a_session_that_is_not_there_has_none() -> None:
    async with served() as (router, _):
        status, _ = await router.post("/sessions/nobody/samples", {})
        assert status == 404


@pytest.mark.parametrize(
    "path",
    [
        *("nonsense", "sample", "v1/nonsense", "samples/1", "rows/x", "a/b/c"),
        *("abort_request", "pause_generation", "update_weights_from_disk"),  # they are for all
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_what_a_session_does_not_have_never_goes_to_a_worker(method: str, path: str) -> None:
    async with served() as (router, worker):
        _, session = await opened(router)
        before = len(worker.controls)
        async with router.http.request(method, f"{session}/{path}", json={}) as response:
            assert response.status == 404, await response.text()
            assert (await response.json())["error"]["code"] == "unknown_url"
        assert not [each for each in worker.controls[before:] if path in each.path]
        assert not worker.aborted
