"""Short chats through the router, against a bare proxy hop before the same worker."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import orjson

from benchmarks import load
from benchmarks.conversation import prose, reply_ids
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import Server, serving

AIM = 5.0
REQUEST_LEN = 300  # bytes
REPLY_LEN = 16  # tokens
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5
    requests: int = 160  # a round, for each side
    concurrencies: tuple[int, ...] = (1, 16)


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """CPU seconds of the router's process, over those of the hop's."""
    ids = ",".join(map(str, reply_ids(checkpoint, REPLY_LEN)))
    with (
        serving("benchmarks.worker", "--ids", ids) as worker,
        serving("benchmarks.hop", "--worker-url", worker.url) as hop,
        serving(
            "slime_router", "--hf-checkpoint", str(checkpoint), "--worker-urls", worker.url
        ) as router,
    ):
        return [_measure(router, hop, concurrency, size) for concurrency in size.concurrencies]


def _measure(router: Server, hop: Server, concurrency: int, size: Size) -> Measurement:
    bodies = (_body(number) for number in count())

    def round_of(server: Server) -> float:
        requests = [load.post(CHAT, body) for body in islice(bodies, size.requests)]
        before_s = server.cpu_s()
        load.send(server.port, requests, concurrency)
        return (server.cpu_s() - before_s) / size.requests

    rounds = interleave(
        {"router": lambda: round_of(router), "hop": lambda: round_of(hop)}, size.rounds
    )
    return Measurement(
        f"short chat c={concurrency}: CPU, router over bare hop",
        rounds.ratio("router", to="hop"),
        "x",
        AIM,
        f"{rounds.cost('router') * 1e6:.0f} us over {rounds.cost('hop') * 1e6:.0f} us a request; "
        f"{size.rounds} rounds of {size.requests}",
    )


def _body(number: int) -> bytes:
    """A request of `REQUEST_LEN` bytes; no two have the same text."""
    fields = {"model": "default", "max_tokens": REPLY_LEN, "temperature": 1.0}
    content = f"Question {number:08d}: "
    bare = orjson.dumps({**fields, "messages": [{"role": "user", "content": content}]})
    words = prose(number, 10 * REQUEST_LEN).split()
    content += " ".join(word for word in words if word.isalpha())[: REQUEST_LEN - len(bare)]
    return orjson.dumps({**fields, "messages": [{"role": "user", "content": content}]})
