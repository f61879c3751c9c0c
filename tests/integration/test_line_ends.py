"""Line ends of Unicode in streams and lines: `str.splitlines` sees none that is not one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.integration.gateway import CHAT, served, user
from tests.stack import tiny_tokenizer

TEXT = "a\x85b\u2028c\u2029d"
DOORS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [user("Hi")]},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 99},
    "/v1/messages": {"messages": [user("Hi")], "max_tokens": 99},
    "/v1/responses": {"input": "Hi"},
    "/generate": {"text": "Hi"},
}


@pytest.mark.parametrize("step", [1, 99])
@pytest.mark.parametrize("door", DOORS)
async def test_each_line_of_a_stream_is_whole(door, step):
    ids = [*tiny_tokenizer().encode(TEXT).tolist(), max(tiny_tokenizer().eos_ids)]
    async with served({"chunk_tokens": step}) as (router, worker):
        worker.script(ids)
        body = {"model": "tiny", "stream": True, **DOORS[door]}
        async with router.http.post(door, json=body) as response:
            lines = (await response.text()).splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert len(data) == len([line for line in lines if line and not line.startswith("event: ")])
    said = [orjson.loads(each) for each in data if each != "[DONE]"]
    assert "\u2028" in "".join(map(str, _strings(said)))


async def test_each_line_of_rows_is_whole():
    async with served() as (router, worker):
        worker.script([max(tiny_tokenizer().eos_ids)])
        body = {"session_id": "s", "metadata": {"task": TEXT}}
        await router.post("/sessions", json=body)
        await router.post(f"/sessions/s{CHAT}", json={"messages": [user(TEXT)]})
        async with router.http.get("/sessions/s/rows?format=jsonl") as response:
            row, _ = map(orjson.loads, (await response.text()).splitlines())
    assert row["metadata"]["task"] == TEXT


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) else []
