"""Streamed tokens with the parsers of tools and reasoning on, against the same without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import orjson

from benchmarks.conversation import reply_ids
from benchmarks.driven import Driven
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import router
from benchmarks.short_chat import CHAT

AIM = 2.0
OFF = ("--tool-call-parser", "none", "--reasoning-parser", "none")
ON = ("--tool-call-parser", "qwen25", "--reasoning-parser", "qwen3")
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 4
    streams: int = 8  # a round, for each side
    reply_len: int = 64  # tokens
    concurrency: int = 8
    pause_ms: float = 5.0  # between two tokens


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """CPU seconds of the router's process for each token; both are asked for the same."""
    ids = reply_ids(checkpoint, size.reply_len)
    with (
        worker(ids, pause_ms=size.pause_ms, is_incremental=True) as behind,
        router(checkpoint, "--worker-urls", behind.url, *ON) as on,
        router(checkpoint, "--worker-urls", behind.url, *OFF) as off,
    ):
        sides = {
            name: Driven(
                server, CHAT, bodies(), size.streams, size.concurrency, units=size.reply_len
            )
            for name, server in {"on": on, "off": off}.items()
        }
        rounds = interleave(sides, size.rounds)
    return [
        Measurement(
            f"streamed token c={size.concurrency}: CPU, parsers on over parsers off",
            rounds.ratio("on", to="off"),
            "x",
            AIM,
            f"{rounds.cost('on') * 1e6:.0f} us over {rounds.cost('off') * 1e6:.0f} us a token; "
            f"{size.rounds} rounds of {size.streams} replies of {size.reply_len} tokens",
        )
    ]


def bodies() -> Iterator[bytes]:
    """Requests that offer a tool; no two have the same text."""
    for number in count():
        message = {"role": "user", "content": f"Question {number}: what is this?"}
        fields = {"model": "default", "stream": True, "tools": [TOOL]}
        yield orjson.dumps({**fields, "messages": [message]})
