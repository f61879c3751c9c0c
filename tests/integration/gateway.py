"""The real gateway on a free port, on the tiny checkpoint, in front of workers without a model."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import orjson
from aiohttp import web

from slime_router.checkpoint.checkpoint import load_checkpoint, load_tokenizer
from slime_router.checkup import chosen_formats
from slime_router.cli.run import listener
from slime_router.config import Config
from slime_router.dashboard import page
from slime_router.replies.sglang_detection import thinking_of
from slime_router.server import app
from slime_router.server.app import Gateway
from slime_router.siblings.place import Place
from slime_router.template.chat_template import ChatTemplate
from slime_router.testing import FakeWorker
from slime_router.tokens import tokenizer as tokenizers
from slime_router.tokens.encoder import Encoder
from slime_router.tokens.model import Model
from slime_router.tokens.tokenizer import Tokenizer
from tests.integration.scripted import events
from tests.stack import tiny_tokenizer
from tests.tiny import CONTEXT_LEN, build_tiny_checkpoint

CHAT = "/v1/chat/completions"
FOUR_KEYS = {"message", "type", "param", "code"}


@cache
def checkpoint() -> Path:
    """The tiny checkpoint's directory, made once for all tests."""
    directory = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return build_tiny_checkpoint(directory)


@contextmanager
def read_once() -> Iterator[None]:
    """Gateways that are made in it share what they would all read from the tiny checkpoint."""
    with (
        patch.object(app, "load_tokenizer", _load),
        patch.object(app, "ChatTemplate", _template),
        patch.object(chosen_formats, "thinking_of", _thinking),
        patch.object(page, "assets", _assets),
    ):
        yield


class TinyTokenizer(Tokenizer):
    """A gateway's own tokenizer of the tiny checkpoint, with the encoder of the `first` one."""

    def __init__(self, first: Tokenizer | None = None, **options: Any) -> None:
        self.options = options
        encoder = Encoder if first is None else lambda *_: first._encoder
        with patch.object(tokenizers, "Encoder", encoder):
            super().__init__(_tiny_model(**options))


@cache
def _tiny_model(**options: Any) -> Model:
    return load_checkpoint(str(checkpoint()), **options)


@cache
def _tiny_template(**options: Any) -> tuple[Tokenizer, ChatTemplate]:
    first = TinyTokenizer(**options)
    return first, ChatTemplate(first)


def _load(path: str, **options: Any) -> Tokenizer:
    if path == str(checkpoint()) and options["chat_template"] is None:  # that may be any file
        return TinyTokenizer(_tiny_template(**options)[0], **options)
    return load_tokenizer(path, **options)


def _template(tokenizer: Tokenizer) -> ChatTemplate:
    if isinstance(tokenizer, TinyTokenizer):
        return _tiny_template(**tokenizer.options)[1]
    return ChatTemplate(tokenizer)


_thinking = cache(thinking_of)  # SGLang's rules parse the template four times
_assets = cache(page.assets)


class Words:
    """A tokenizer as a worker has it: the tiny one, unless another is given."""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer or tiny_tokenizer()

    def encode(self, text: str) -> Sequence[int]:
        ids: list[int] = self._tokenizer.encode(text).tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class OtherWords(Words):
    """The tokenizer of another model."""

    def encode(self, text: str) -> Sequence[int]:
        return [*super().encode(text), 1]


def tiny_worker(**settings: Any) -> FakeWorker:
    """A worker that runs the tiny checkpoint."""
    tokenizer = tiny_tokenizer()
    given: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "context_len": CONTEXT_LEN,
        "eos_ids": sorted(tokenizer.eos_ids),
        "tokenizer": Words(),
    }
    return FakeWorker(**{**given, **settings})


@dataclass
class Served:
    """A running gateway; `http` has its URL as base."""

    gateway: Gateway
    http: aiohttp.ClientSession

    def footprint(self) -> tuple[int, ...]:
        """What a request can leave behind: turns, held tokens, cached tokens and nodes, leases."""
        gateway, size = self.gateway, self.gateway.cache.size
        store = gateway.store
        in_flight = gateway.pool.total_in_flight
        return (len(store), store.tokens, size.tokens, size.nodes, in_flight)

    async def post(self, path: str, json: Any = None, **fields: Any) -> tuple[int, Any]:
        """Status and JSON body of a POST."""
        async with self.http.post(path, json=json, **fields) as response:
            return response.status, await response.json(content_type=None)

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON body of a GET."""
        async with self.http.get(path) as response:
            return response.status, await response.json(content_type=None)

    async def chat(
        self, messages: Sequence[dict[str, Any]], *, path: str = CHAT, **fields: Any
    ) -> tuple[str, dict[str, Any]]:
        """The text of one chat reply, streamed or not, and its receipt."""
        body = {"model": "tiny", "messages": [*messages], **fields}
        async with self.http.post(path, json=body) as response:
            raw = await response.read()
            assert response.status == 200, raw
            receipt = orjson.loads(response.headers.get("x-slime-receipt", "{}"))
        if not fields.get("stream"):
            return orjson.loads(raw)["choices"][0]["message"]["content"], receipt
        choices = [event["choices"][0] for event in events(raw)[:-1]]
        return "".join(choice["delta"].get("content") or "" for choice in choices), receipt


@asynccontextmanager
async def serving(
    *urls: str,
    greeting_delays_s: Sequence[float] = (0,),
    place: Place | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """A gateway with these workers; `place`: one process of several."""
    config = Config(
        **{
            "hf_checkpoint": str(checkpoint()),
            "port": 0,
            "worker_urls": urls,
            "worker_wait_s": 0.0,
            "retry_initial_backoff_ms": 1.0,
            "tool_call_parser": "none",  # replies as the model wrote them
            "reasoning_parser": "none",
            "encoder": "tokenizers",  # the faster one takes a second to load, and has its own tests
            **settings,
        }
    )
    with read_once():
        gateway = Gateway(config, greeting_delays_s=greeting_delays_s, place=place)
        application = gateway.app()
    runner = web.AppRunner(
        application, handler_cancellation=True, access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        site = listener(gateway, runner)
        await site.start()
        [(host, port)] = site.addresses
        if gateway.journal is not None and config.journal is not None:
            await gateway.journal.read()  # it says 503 until then
        async with aiohttp.ClientSession(f"http://{host}:{port}") as http:
            yield Served(gateway, http)
    finally:
        await runner.cleanup()
    assert gateway.pool.total_in_flight == 0, "a lease was not given back"
    kept = (gateway.client._exchanges, gateway.relay._runs, gateway.guard._requests)
    assert kept == ({}, {}, {}), "what has ended is kept"


@asynccontextmanager
async def served(
    worker_settings: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Served, FakeWorker]]:
    """A gateway with one worker that runs the tiny checkpoint."""
    async with (
        tiny_worker(**(worker_settings or {})) as worker,
        serving(worker.url, **settings) as router,
    ):
        yield router, worker


async def until(holds: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    """Waits until `holds()`.

    Raises:
        TimeoutError: it did not come to that.
    """
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - a poll needs nothing of what is watched
            await asyncio.sleep(0.001)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
