"""Plain chunks take the short way through the whole router, and nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from slime_router.api.chat.reply import ChatStream
from slime_router.shortcut.shortcut import Shortcut
from slime_router.types import GenerateChunk
from tests.integration.gateway import CHAT, Served, serving, until, user

IDS = [*range(5, 17)]
LOGPROBS = [-0.5 - each for each in range(len(IDS))]


@dataclass
class Stepwise:
    """A worker that writes an item only once it may, so each one is read by itself."""

    is_incremental: bool = True
    may_go_on: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    aborted: int = 0

    async def generate(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for end in range(1, len(IDS) + 1):
            await self.may_go_on.acquire()
            await response.write(b"data: %b\n\n" % self._item(end))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def abort(self, _: web.Request) -> web.Response:
        self.aborted += 1
        return web.Response()

    def _item(self, end: int) -> bytes:
        start = end - 1 if self.is_incremental else 0
        entries = zip(LOGPROBS[start:end], IDS[start:end], [None] * end, strict=False)
        meta = {
            "finish_reason": {"type": "length", "length": end} if end == len(IDS) else None,
            "prompt_tokens": 3,
            "weight_version": "v1",
            "output_token_logprobs": list(entries),
            "completion_tokens": end,
        }
        return orjson.dumps({"text": "", "output_ids": IDS[start:end], "meta_info": meta})


@asynccontextmanager
async def stepwise(worker: Stepwise) -> AsyncIterator[Served]:
    app = web.Application()
    app.router.add_post("/generate", worker.generate)
    app.router.add_post("/abort_request", worker.abort)
    async with TestServer(app) as server, serving(str(server.make_url("")).rstrip("/")) as router:
        yield router


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[GenerateChunk]:
    """The chunks that took the short way."""
    chunks: list[GenerateChunk] = []
    take = Shortcut.take

    def noted(self: Shortcut[GenerateChunk], chunk: GenerateChunk) -> bool:
        if is_taken := take(self, chunk):
            chunks.append(chunk)
        return is_taken

    monkeypatch.setattr(Shortcut, "take", noted)
    return chunks


async def read_stream(router: Served, worker: Stepwise, **fields: Any) -> list[Any]:
    """The events of a chat, each asked for once the one before was read."""
    body = {"model": "m", "messages": [user("hi")], "stream": True, "logprobs": True, **fields}
    read: list[Any] = []
    worker.may_go_on.release()
    async with router.http.post(CHAT, json=body) as response:
        async for line in response.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            read.append(orjson.loads(line[6:]))
            if read[-1].get("choices", [{}])[0].get("logprobs"):
                worker.may_go_on.release()
    return read


@pytest.mark.parametrize("is_incremental", [True, False])
async def test_what_takes_it_is_said_counted_and_recorded(
    taken: list[GenerateChunk], *, is_incremental: bool
) -> None:
    worker = Stepwise(is_incremental)
    async with stepwise(worker) as router:
        events = await read_stream(router, worker)
        [turn] = router.gateway.store._turns.values()
        counts = router.gateway.counting.chat
    entries = [
        entry
        for event in events
        for choice in event["choices"]
        for entry in (choice.get("logprobs") or {"content": ()})["content"]
    ]
    assert [entry["logprob"] for entry in entries] == LOGPROBS
    assert turn.output_ids.tolist() == IDS
    assert turn.logprobs is not None
    assert turn.logprobs.tolist() == LOGPROBS
    assert counts.output_tokens == len(IDS)
    assert counts.finished == 1
    # The first item never does, nor the last; nor the second where it repeats the first.
    assert len(taken) == len(IDS) - (2 if is_incremental else 3)


async def test_a_step_that_fails_ends_the_stream_with_an_error(
    taken: list[GenerateChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    events_of = ChatStream.events

    def failing(self: ChatStream, chunk: GenerateChunk) -> Any:
        if list(chunk.output_ids) == [IDS[5]]:
            raise ValueError("a fault")
        return events_of(self, chunk)

    monkeypatch.setattr(ChatStream, "events", failing)
    worker = Stepwise()
    async with stepwise(worker) as router:
        events = await read_stream(router, worker)
        await until(lambda: worker.aborted == 1)
        [turn] = router.gateway.store._turns.values()
    assert events[-1]["error"]["code"] == "internal_error"
    assert [chunk.output_ids for chunk in taken] == [[each] for each in IDS[1:5]]
    assert turn.output_ids.tolist() == IDS[:6]
