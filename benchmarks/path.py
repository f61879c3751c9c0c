"""How far a request walks: files, functions and frames, for a chat and for one streamed token.

Counted, not timed: the same on every machine. The router runs in this process, with a client
beside it and a worker in another process; only the router's own code counts.
"""

from __future__ import annotations

import asyncio
import dis
import inspect
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import aiohttp
from aiohttp import web

import slime_router
from benchmarks.conversation import reply_ids
from benchmarks.report import Measurement
from benchmarks.server import serving
from slime_router.config import Config
from slime_router.server.app import Gateway

AIMS = {"files": 35.0, "functions": 25.0, "resumed": 10.0}
CHAT = "/v1/chat/completions"
CHATS = 5  # the shortest walk is the chat's own: timers of the router may go off during another
ROOT = str(Path(slime_router.__file__).parent)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is looked at."""

    reply_len: int = 64  # tokens
    skipped: int = 16  # events at either end of the stream, which begin and end it
    pause_ms: float = 5.0  # between two tokens: each one comes by itself


FULL = Size()


@dataclass(slots=True)
class Walk:
    """What was entered: code objects, how often each, and which of them had been suspended."""

    entered: Counter[CodeType] = field(default_factory=Counter)
    resumed: Counter[CodeType] = field(default_factory=Counter)

    def start(self) -> None:
        """Counts from here on, in this thread."""
        sys.setprofile(self._note)

    def stop(self) -> None:
        """Counts no more."""
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT):
            self.entered[code] += 1
            if _can_wait(code) and frame.f_lasti > _entry(code):
                self.resumed[code] += 1

    def files(self, least: float = 1) -> int:
        """Those of the functions that were entered at least so often."""
        return len({code.co_filename for code, n in self.entered.items() if n >= least})

    def functions(self, least: float = 1) -> int:
        """Those that were entered at least so often."""
        return sum(n >= least for n in self.entered.values())


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """Counts of a chat request, and of one token in the middle of a streamed one."""
    return asyncio.run(_measured(checkpoint, size))


async def _measured(checkpoint: Path, size: Size) -> list[Measurement]:
    ids = ",".join(map(str, reply_ids(checkpoint, size.reply_len)))
    pause = str(size.pause_ms)
    flags = ("--ids", ids, "--pause-ms", pause, "--incremental")
    with serving("benchmarks.worker", *flags) as worker:
        async with _router(checkpoint, worker.url) as http:
            await _chat(http, "The first one makes what is made once.")
            await _stream(http, Walk(), size)
            chats = [await _walk(http, f"And how far is it now, {k}?") for k in range(CHATS)]
            token = Walk()
            tokens = await _stream(http, token, size)
    return [*_of_request(min(chats, key=Walk.files)), *_of_token(token, tokens)]


def _of_request(walk: Walk) -> list[Measurement]:
    what = f"{walk.functions()} functions, entered {walk.entered.total()} times"
    return [Measurement("chat request: files", walk.files(), "files", AIMS["files"], what)]


def _of_token(walk: Walk, tokens: int) -> list[Measurement]:
    often = tokens / 2  # what is not done for every other token is not its walk
    files = walk.files(often)
    resumed = [code.co_qualname for code, n in walk.resumed.items() if n >= often]
    return [
        Measurement(
            "streamed token: functions",
            walk.functions(often),
            "functions",
            AIMS["functions"],
            f"in {files} files, entered {walk.entered.total() / tokens:.1f} times; "
            f"{tokens} tokens were looked at",
        ),
        Measurement(
            "streamed token: frames resumed",
            len(resumed),
            "frames",
            AIMS["resumed"],
            f"{walk.resumed.total() / tokens:.1f} times: {', '.join(resumed)}",
        ),
    ]


@asynccontextmanager
async def _router(checkpoint: Path, worker_url: str) -> AsyncIterator[aiohttp.ClientSession]:
    config = Config(hf_checkpoint=str(checkpoint), port=0, worker_urls=(worker_url,))
    runner = web.AppRunner(Gateway(config).app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as http:
            yield http
    finally:
        await runner.cleanup()


async def _chat(http: aiohttp.ClientSession, text: str) -> None:
    async with http.post(CHAT, json=_body(text)) as response:
        await response.read()
        response.raise_for_status()


async def _walk(http: aiohttp.ClientSession, text: str) -> Walk:
    walk = Walk()
    walk.start()
    await _chat(http, text)
    walk.stop()
    return walk


async def _stream(http: aiohttp.ClientSession, walk: Walk, size: Size) -> int:
    """Walks along the middle of a stream; returns the number of tokens there."""
    seen = 0
    last = size.reply_len - size.skipped
    async with http.post(CHAT, json={**_body("And a token?"), "stream": True}) as response:
        async for line in response.content:
            if b'"delta":{"content":' not in line:
                continue
            seen += 1
            if seen == size.skipped:
                walk.start()
            elif seen == last:
                walk.stop()
    walk.stop()
    return last - size.skipped


def _body(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _can_wait(code: CodeType) -> bool:
    return bool(code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))


@cache
def _entry(code: CodeType) -> int:
    """The offset at which a frame is entered for the first time."""
    return next(op.offset for op in dis.get_instructions(code) if op.opname == "RESUME")
