"""Streamed tokens: the CPU time of the router's process for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import orjson

from benchmarks import load
from benchmarks.conversation import reply_ids
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import Server, serving

AIM_US = 60.0
CHAT = "/v1/chat/completions"
KINDS = ("cumulative", "incremental")  # whether an item repeats those before it


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 4
    streams: int = 2  # a round, for each connection
    reply_len: int = 256  # tokens
    concurrencies: tuple[int, ...] = (1, 8)
    pause_ms: float = 2.0  # between two tokens


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """A chat stream of plain text; the worker sends every token with its logprob."""
    ids = ",".join(map(str, reply_ids(checkpoint, size.reply_len)))
    with (
        serving("benchmarks.worker", "--ids", ids, "--pause-ms", str(size.pause_ms)) as worker,
        serving("benchmarks.hop", "--worker-url", worker.url) as hop,
        serving("slime_router", "--hf-checkpoint", str(checkpoint)) as router,
    ):
        streams = Streams(router, hop, worker, size)
        return [streams.measure(kind, c) for kind in KINDS for c in size.concurrencies]


class Streams:
    """Streams from one worker in its two ways, through the router and through a bare hop."""

    def __init__(self, router: Server, hop: Server, worker: Server, size: Size) -> None:
        self._router = router
        self._hop = hop
        self._worker = worker
        self._size = size
        self._bodies = (_body(number) for number in count())
        self._together = 0.0  # share of the tokens that came with others, in the last round

    def measure(self, kind: str, concurrency: int) -> Measurement:
        sides = {
            "router": lambda: self._cost_s(self._router, CHAT, concurrency),
            "hop": lambda: self._cost_s(self._hop, f"/{kind}/generate", concurrency),
        }
        with self._registered(f"{self._worker.url}/{kind}"):
            rounds = interleave(sides, self._size.rounds)
        cost_us, hop_us = (rounds.cost(side) * 1e6 for side in ("router", "hop"))
        return Measurement(
            f"streamed token, {kind} c={concurrency}: CPU of the router",
            cost_us,
            "us",
            AIM_US,
            f"{rounds.ratio('router', to='hop'):.2f}x a bare hop's {hop_us:.0f} us; "
            f"{self._size.reply_len} tokens a reply, one every {self._size.pause_ms:g} ms; "
            f"{self._together:.0%} came together; "
            f"{self._size.rounds} rounds of {self._size.streams * concurrency}",
        )

    @contextmanager
    def _registered(self, url: str) -> Iterator[None]:
        body = orjson.dumps({"url": url})
        load.send(self._router.port, [load.post("/add_worker", body)], 1)
        yield
        load.send(self._router.port, [load.post("/remove_worker", body)], 1)

    def _cost_s(self, server: Server, path: str, concurrency: int) -> float:
        """CPU seconds of the server's process for each token."""
        replies = concurrency * self._size.streams
        requests = [load.post(path, body) for body in islice(self._bodies, replies)]
        before_s = server.cpu_s()
        answers = load.send(server.port, requests, concurrency)
        used_s = server.cpu_s() - before_s
        tokens = replies * self._size.reply_len
        if server is self._router:
            # The stop token has no text, nor has a token that ends inside a character.
            texts = sum(answer.count(b'"delta":{"content":') for answer in answers)
            self._together = 1 - (texts + replies) / tokens
        return used_s / tokens


def _body(number: int) -> bytes:
    content = f"Question {number:08d}: what is the answer to all of this?"
    return orjson.dumps({"messages": [{"role": "user", "content": content}], "stream": True})
