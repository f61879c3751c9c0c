"""Prompts of very many ids: what the worker and the rows get is what the client sent."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from tests.integration.gateway import serving, tiny_worker

NATIVE, TOKENS = "/generate", "/inference/v1/generate"
MANY = 20_000


def body(path: str, ids: list[Any]) -> dict[str, Any]:
    if path == NATIVE:
        return {"input_ids": ids, "sampling_params": {"max_new_tokens": 4, "stop": ["\n"]}}
    return {"token_ids": ids, "sampling_params": {"max_tokens": 4}}


def output_ids(path: str, reply: dict[str, Any]) -> list[int]:
    ids: list[int] = reply["output_ids"] if path == NATIVE else reply["choices"][0]["token_ids"]
    return ids


@pytest.mark.parametrize("is_spaced", [True, False])
@pytest.mark.parametrize("path", [NATIVE, TOKENS])
async def test_a_conversation_in_ids_grows_exactly(path, is_spaced):
    """Each turn sends all before it again, as text that was read before."""
    ids = Random(0).choices(range(1, 500), k=MANY)
    prompts: list[list[int]] = []
    held_len = 0
    async with (
        tiny_worker(context_len=2 * MANY) as worker,
        serving(worker.url) as router,
    ):
        for turn in range(4):
            prompts.append(list(ids))
            text = json.dumps(body(path, ids), separators=None if is_spaced else (",", ":"))
            headers = {"Content-Type": "application/json", "x-session-id": "s"}
            async with router.http.post(path, data=text, headers=headers) as response:
                assert response.status == 200, await response.text()
                receipt = json.loads(response.headers["x-slime-receipt"])
                reply = await response.json()
            assert receipt["status"] == ("extended" if turn else "fresh")
            assert receipt["reused"] == held_len
            ids += output_ids(path, reply)
            held_len = len(ids)
            ids += [7, 8]
        sent = [each.body["input_ids"] for each in worker.requests]
        assert sent == prompts
        _, rows = await router.get("/sessions/s/rows")
    [row] = rows["rows"]
    assert row["tokens"] == ids[:-2]


ODD = {
    "outside": (10**6, "outside the vocabulary"),
    "negative": (-1, "outside the vocabulary"),
    "huge": (10**30, "a list of integers"),
    "fraction": (1.5, "a list of integers"),
    "true": (True, "a list of integers"),
    "text": ("5", "a list of integers"),
    "null": (None, "a list of integers"),
}


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("path", [NATIVE, TOKENS])
async def test_one_odd_id_among_many_is_a_400_that_names_the_field(path, odd, where):
    value, words = ODD[odd]
    ids: list[Any] = [5] * MANY
    ids[0 if where == "first" else -1] = value
    async with tiny_worker(context_len=2 * MANY) as worker, serving(worker.url) as router:
        before = router.footprint()
        status, error = await router.post(path, body(path, ids))
        assert status == 400
        text = json.dumps(error)
        assert words in text
        assert ("input_ids" if path == NATIVE else "token_ids") in text
        assert worker.requests == []
        assert router.footprint() == before
