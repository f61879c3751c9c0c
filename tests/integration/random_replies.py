"""Random replies of a worker, and what each door makes of one of them, whole and streamed."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson

from slime_router.testing import FakeWorker
from slime_router.testing.script import Script
from tests.examples import examples
from tests.integration.gateway import CHAT, Served, served, user
from tests.integration.scripted import events, named_events
from tests.stack import tiny_tokenizer

COUNT = examples(200)
PATHS = {
    "chat": CHAT,
    "completions": "/v1/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
    "generate": "/generate",
}
NAMES = ("get_weather", "search")
MAX_TOKENS = 512
_WORDS = (
    *(
        "Hello there",
        " 東京は日本",
        "🙂",
        "👩‍👩‍👧",
        "é",
        "\n",
        "\n\n",
        " a < b",
        "<tool_cal",
        '{"x": 1}',
    ),
    *(" ", "STOP", "</think>", "naïve café", "[", "data: x", "e\u0301", "\u2028", "\x00"),
)
_VALUES = (
    "Paris",
    "東京🙂",
    'quo"te',
    "back\\slash",
    "",
    3,
    1.50,
    None,
    True,
    ["a", {}],
    {"k": "é"},
)
_LOGPROBS = (-0.25, -1.5, 0.0, -0.1234567, -1e-9, -40.0, None, -99999.0)


@dataclass(frozen=True)
class Reply:
    """What the worker says for each choice, and how the client asks for it."""

    seed: str
    scripts: tuple[Script, ...]  # one for each choice
    max_tokens: int
    stops: tuple[str, ...]
    stop_ids: tuple[int, ...]
    has_tools: bool
    is_parallel: bool
    logprobs: int | None  # how many beside the sampled one
    has_ids: bool
    has_running_usage: bool
    streams_reasoning: bool
    chunk_tokens: int
    is_incremental: bool
    cached: int  # tokens of the prompt

    @property
    def prompt(self) -> str:
        return f"Hi there, this is {self.seed}"


def replies(door: str, count: int = COUNT) -> Iterator[Reply]:
    """As many replies for a door, the same each time."""
    return (_reply(f"{door} {number}") for number in range(count))


def _reply(seed: str) -> Reply:
    rng = Random(seed)
    count = (
        2 if rng.random() < 0.25 and seed.split()[0] in ("chat", "completions", "generate") else 1
    )
    texts = [_text(rng) for _ in range(count)]
    ids = [_ids(rng, text) for text in texts]
    is_cut = rng.random() < 0.3
    at = rng.randrange(len(texts[0]) + 1)
    stop = texts[0][at : at + rng.randint(1, 6)].replace("\x00", "")
    has_stop = bool(stop) and rng.random() < 0.3
    return Reply(
        seed=seed,
        scripts=tuple(_script(rng, each) for each in ids),
        max_tokens=rng.randint(1, len(ids[0])) if is_cut and ids[0] else MAX_TOKENS,
        stops=(stop, "never said") if has_stop else (),
        stop_ids=(rng.choice(ids[0]),) if ids[0] and rng.random() < 0.1 else (),
        has_tools=rng.random() < 0.8,
        is_parallel=rng.random() < 0.8,
        logprobs=rng.choice((None, None, 0, 2)),
        has_ids=rng.random() < 0.5,
        has_running_usage=rng.random() < 0.2,
        streams_reasoning=rng.random() < 0.8,
        chunk_tokens=rng.choice((1, 1, 2, 5, 1000)),
        is_incremental=rng.random() < 0.5,
        cached=rng.randrange(8),
    )


def _script(rng: Random, ids: list[int]) -> Script:
    end = rng.choice(("eos", "eos", "stop", "length"))
    if end == "eos" or not ids:
        ids = [*ids, rng.choice(sorted(tiny_tokenizer().eos_ids))]
    logprobs = [rng.choice(_LOGPROBS) for _ in ids] if rng.random() < 0.5 else None
    return Script(ids=ids, finish="stop" if end == "stop" else "length", logprobs=logprobs)


def _text(rng: Random) -> str:
    text = ""
    if rng.random() < 0.5:
        text += f"<think>{_prose(rng)}" + rng.choice(("\n</think>\n\n", "</think>", ""))
    text += _prose(rng) if rng.random() < 0.6 else ""
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        text += _call(rng) + rng.choice(("", "\n", "\n", " and "))
    return text + (_prose(rng) if rng.random() < 0.1 else "")


def _prose(rng: Random) -> str:
    return "".join(rng.choices(_WORDS, k=rng.randint(0, 5)))


def _call(rng: Random) -> str:
    arguments: Any = {f"a{i}": rng.choice(_VALUES) for i in range(rng.randint(0, 3))}
    if rng.random() < 0.1:
        arguments = rng.choice(("text", [1], None, 7))
    written = json.dumps(
        arguments, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1))
    )
    name = rng.choice((*NAMES, *NAMES, "unknown"))
    call = f'<tool_call>\n{{"name": "{name}", "arguments": {written}}}\n</tool_call>'
    if rng.random() < 0.25:  # malformed
        at = rng.randrange(len(call))
        call = call[:at] + rng.choice(("", "}", '"', "🙂")) + call[at + rng.randint(0, 3) :]
    return call


def _ids(rng: Random, text: str) -> list[int]:
    ids = tiny_tokenizer().encode(text).tolist()
    if rng.random() < 0.1:  # half characters, among others
        at = rng.randrange(len(ids) + 1)
        ids[at:at] = [rng.randrange(512) for _ in range(3)]
    return [*ids]


class _Kept(list[list[int]]):
    """A prefix cache that does not learn: what it has does not depend on who asked first."""

    def append(self, _: list[int]) -> None:
        pass


@dataclass
class Stage:
    """A gateway whose worker says what is put on."""

    router: Served
    worker: FakeWorker
    scripts: list[Script] = field(default_factory=list)

    def put_on(self, reply: Reply) -> None:
        engine = self.worker._engine
        engine.chunk_tokens, engine.incremental = reply.chunk_tokens, reply.is_incremental
        begin = tiny_tokenizer().encode("<|im_start|>user\n" + reply.prompt).tolist()
        engine.seen = _Kept([begin[: reply.cached], [*begin[3:]][: reply.cached]])
        self.scripts[:] = reply.scripts


@asynccontextmanager
async def staged(**settings: Any) -> AsyncIterator[Stage]:
    scripts: list[Script] = []

    def said(body: dict[str, Any]) -> Script:
        """Choices of one request are known by the end of their ids; they may come in any order."""
        number = re.search(r"[-_](\d)$", body["rid"])
        return scripts[int(number[1]) if number else 0]

    given = {"tool_call_parser": "qwen25", "reasoning_parser": "qwen3", **settings}
    async with served({"reply": said}, **given) as (router, worker):
        yield Stage(router, worker, scripts)


@dataclass
class Answer:
    """One answer of the router: what it answers, its raw bytes, and what the router recorded."""

    reply: Reply
    raw: bytes
    recorded: Any  # output ids and logprobs

    @property
    def body(self) -> Any:
        return orjson.loads(self.raw)

    @property
    def events(self) -> list[Any]:
        """Payloads of a stream of `data:` lines."""
        return events(self.raw)

    @property
    def named_events(self) -> list[Any]:
        """Payloads of a stream of events with names, which say what stands in them too."""
        return named_events(self.raw)


async def ask(stage: Stage, door: str, reply: Reply, *, stream: bool) -> Answer:
    stage.put_on(reply)
    body = asked(door, reply, stream=stream)
    async with stage.router.http.post(PATHS[door], json=body) as response:
        raw = await response.read()
        assert response.status == 200, (reply, raw)
        receipt = orjson.loads(response.headers["x-slime-receipt"])
        turn = stage.router.gateway.store.get(receipt["turn"])
        assert turn is not None
        logprobs = None if turn.logprobs is None else turn.logprobs.astype(str).tolist()
        return Answer(reply, raw, (turn.output_ids.tolist(), logprobs))


def asked(door: str, reply: Reply, *, stream: bool) -> dict[str, Any]:
    """The body of the request."""
    common = {"model": "tiny", "stream": stream, "max_tokens": reply.max_tokens}
    options = {
        "include_usage": True,
        "continuous_usage_stats": reply.has_running_usage,
    }
    details: dict[str, Any] = {"return_token_ids": reply.has_ids, "n": len(reply.scripts)}
    if stream:
        details["stream_options"] = options
    stops = {"stop": [*reply.stops], "stop_token_ids": [*reply.stop_ids]}
    messages = [user(reply.prompt)]
    match door:
        case "chat":
            if reply.logprobs is not None:
                details |= {"logprobs": True, "top_logprobs": reply.logprobs}
            return {
                **{**common, **details, **stops},
                "messages": messages,
                "tools": [{"type": "function", "function": tool} for tool in _tools(reply)],
                "parallel_tool_calls": reply.is_parallel,
                "return_meta_info": reply.has_ids,
                "stream_reasoning": reply.streams_reasoning,
            }
        case "completions":
            echo = reply.logprobs is None and reply.is_parallel
            texts = {"prompt": reply.prompt, "echo": echo, "logprobs": reply.logprobs}
            return {**common, **details, **stops, **texts}
        case "messages":
            tools = [
                {"name": tool["name"], "input_schema": tool["parameters"]} for tool in _tools(reply)
            ]
            choice = {"type": "auto", "disable_parallel_tool_use": not reply.is_parallel}
            return {
                **common,
                "messages": messages,
                "tools": tools,
                "tool_choice": choice,
                "stop_sequences": [*reply.stops],
            }
        case "responses":
            return {
                "model": "tiny",
                "stream": stream,
                "input": reply.prompt,
                "max_output_tokens": reply.max_tokens,
                "tools": [{"type": "function", **tool} for tool in _tools(reply)],
                "parallel_tool_calls": reply.is_parallel,
                **stops,
            }
    assert door == "generate"
    sampling = {"max_new_tokens": reply.max_tokens, "n": len(reply.scripts), **stops}
    return {
        "text": reply.prompt,
        "stream": stream,
        "sampling_params": sampling,
        "return_logprob": reply.logprobs is not None,
        "top_logprobs_num": reply.logprobs or 0,
    }


def _tools(reply: Reply) -> list[dict[str, Any]]:
    names = NAMES if reply.has_tools else ()
    return [{"name": name, "parameters": {"type": "object", "properties": {}}} for name in names]
