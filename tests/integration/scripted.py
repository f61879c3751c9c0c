"""A router whose workers follow a script, and an HTTP server with one door in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, TypeAlias

import orjson
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from slime_router.api.chat.settings import SettingsReader
from slime_router.api.context import Admission, EndpointContext
from slime_router.api.model_names import ModelNames
from slime_router.api.retries import Joiner
from slime_router.auth.access import Access
from slime_router.auth.shares import Shares
from slime_router.generation.router import Router
from slime_router.server.boundary import Boundary
from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    Prompt,
    Receipt,
    ToolDelta,
    token_ids,
)
from tests.stack import NO_PARSERS

Step: TypeAlias = GenerateChunk | Exception | asyncio.Event
Script: TypeAlias = Callable[[GenerateCall, int], Sequence[Step]]
Client: TypeAlias = TestClient[web.Request, web.Application]

STOP_ID = 256
PROMPT_IDS = [80, 81, 82]
RECEIPT = Receipt(status="extended", reused=2, encoded=1, turn="turn_a", reason="")


class Bytes:
    """A vocabulary of the 256 bytes and four control tokens."""

    vocab_size = 260

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b"<|%d|>" % token_id

    def is_special(self, token_id: int) -> bool:
        return token_id >= 256


@cache
def _bare() -> web.Request:
    return make_mocked_request("POST", "/")


def asked(**headers: str) -> web.Request:
    """A request with these headers, for what reads one without a server."""
    return _bare().clone(headers=headers)


def first(text: str = "", **fields: Any) -> GenerateChunk:
    """The first chunk of a generation: it has the prompt."""
    prompt = Prompt(token_ids(PROMPT_IDS), RECEIPT)
    return said(text, prompt=prompt, prompt_tokens=len(PROMPT_IDS), **fields)


def said(text: str = "", **fields: Any) -> GenerateChunk:
    """A chunk with some text, one id and logprob for each of its bytes."""
    ids = list(text.encode())
    given: dict[str, Any] = {"output_ids": ids, "logprobs": [-0.5] * len(ids), "text": text}
    return GenerateChunk(**{**given, **fields})


def last(finish: Finish | None = None, **fields: Any) -> GenerateChunk:
    """The last chunk: the stop token, of which a client sees no text."""
    given: dict[str, Any] = {
        "output_ids": [STOP_ID],
        "logprobs": [-1.0],
        "finish": finish or Finish("stop", STOP_ID),
        "cached_tokens": 2,
        "weight_version": "v7",
    }
    return GenerateChunk(**{**given, **fields})


def call(index: int, arguments: str = "", *, name: str | None = None) -> GenerateChunk:
    """A piece of a tool call; the first has a name."""
    call_id = None if name is None else f"call_{index}"
    return said(tool_calls=(ToolDelta(index, call_id, name, arguments),))


def hello(*_: Any) -> list[GenerateChunk]:
    """The script of a reply in three chunks."""
    return [first("Hel"), said("lo"), last()]


class Scripted:
    """Plays `script(call, k)` to the k-th generation and notes what becomes of it."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.calls: list[GenerateCall] = []
        self.read_to_end: list[str] = []
        self.closed: list[str] = []
        self.all_closed = asyncio.Event()

    async def dispatch(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        steps = self._script(call, len(self.calls))
        self.calls.append(call)
        try:
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
            self.read_to_end.append(call.rid)
        finally:
            self.closed.append(call.rid)
            if len(self.closed) == len(self.calls):
                self.all_closed.set()

    def joiner(self) -> Joiner:
        """Of a router that is nothing but the script."""
        return Joiner.off(self.router())

    def router(self) -> Router:
        return Router((), self.dispatch)

    def context(self, limit: int = 8) -> EndpointContext:
        """For an endpoint of so many requests at once."""
        return context_of(self.joiner(), limit)


def context_of(joiner: Joiner, limit: int) -> EndpointContext:
    """Bytes for tokens, one model, no parsers."""
    return EndpointContext(
        joiner=joiner,
        vocabulary=Bytes(),
        chat_settings=SettingsReader(Bytes(), "tiny", NO_PARSERS),
        admission=Admission(Shares(limit), joiner.note_refusal),
        models=ModelNames("tiny"),
    )


def application(max_size: int = 100_000) -> web.Application:
    """One without routes, whose errors become replies as in the router."""
    boundary = Boundary(Access((), needs_key=False))
    return web.Application(client_max_size=max_size, middlewares=[boundary.answered])


@asynccontextmanager
async def served(
    path: str, handle: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[Client]:
    """A client of a server on a free port; a client that leaves cancels its handler."""
    app = application()
    app.router.add_post(path, handle)
    async with TestClient(TestServer(app)) as client:  # with handler_cancellation, by itself
        yield client


def events(raw: bytes) -> list[Any]:
    """The payloads of a whole event stream; each event must be one `data:` line."""
    *blocks, rest = raw.split(b"\n\n")
    assert rest == b"", "the last event ends with a blank line"
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    return [_payload(block.removeprefix(b"data: ")) for block in blocks]


def named_events(raw: bytes) -> list[Any]:
    """The payloads of a whole stream; each event is a line with its name and one with its data."""
    *blocks, rest = raw.split(b"\n\n")
    assert rest == b"", "the last event ends with a blank line"
    payloads = []
    for block in blocks:
        name, data = block.split(b"\n")
        payloads.append(orjson.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + payloads[-1]["type"].encode()
    return payloads


def _payload(data: bytes) -> Any:
    return "[DONE]" if data == b"[DONE]" else orjson.loads(data)
