"""Conversations that grow by thousands of tokens a turn, through everything.

Each keeps its connection, as agents do. A turn has cost what the server has used once it is at rest
again: some of it comes after the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from statistics import median

import orjson

from benchmarks import load
from benchmarks.conversation import prose
from benchmarks.full.field import OURS, REPLY_LEN, Field, Part, Plot
from benchmarks.full.gateways import SGLANG_ROUTER, SMG
from benchmarks.long_ids import GENERATE
from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, interleave
from benchmarks.server import Server
from benchmarks.short_chat import CHAT
from slime_router.types import Message

CHARS_PER_TOKEN = 4
RUST = (SGLANG_ROUTER.name, SMG.name)
REST_S = 0.003
AIMS = {"chat": 1.5, "ids": 1 / 5}  # of what the better Rust gateway takes


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 3
    turns: int = 32
    new_len: int = 4_000  # tokens a turn
    ids: range = range(1_000, 90_000)  # ordinary ones of the vocabulary


FULL = Size()


@dataclass(slots=True)
class Grown:
    """One round: a whole conversation of its own. Tells the CPU seconds for a turn."""

    server: Server
    path: str
    begin: Callable[[int], Conversation]  # of that number, on this server
    turns: int
    costs: list[list[float]] = field(default_factory=list)  # by round, then by turn

    def __call__(self) -> float:
        conversation = self.begin(len(self.costs))
        costs = []
        with closing(load.Line(self.server.port)) as line:
            for _ in range(self.turns):
                request = load.post(self.path, conversation.body())
                before_s = self.server.cpu_s()
                answer = line.ask(request)
                time.sleep(REST_S)
                costs.append(self.server.cpu_s() - before_s)
                conversation.answered(answer)
        self.costs.append(costs)
        return sum(costs) / self.turns

    def by_turn(self) -> list[float]:
        """The median of the rounds for each turn, the first round left out."""
        return [median(each) for each in zip(*self.costs[1:], strict=True)]


class Conversation:
    """A chat; no two have the same beginning."""

    def __init__(self, number: int, size: Size) -> None:
        self._new_len = size.new_len * CHARS_PER_TOKEN
        self._number = number
        self._turns = count()
        self._talk: list[Message] = [{"role": "system", "content": f"Conversation {number}."}]

    def body(self) -> bytes:
        start = (101 * self._number + next(self._turns)) * self._new_len
        self._talk.append({"role": "user", "content": prose(start, self._new_len)})
        return orjson.dumps({"model": "default", "messages": self._talk})

    def answered(self, answer: bytes) -> None:
        message = orjson.loads(answer)["choices"][0]["message"]
        self._talk.append({"role": "assistant", "content": message["content"]})


class IdConversation(Conversation):
    """The same with ids: those of the answers, and any others."""

    def __init__(self, number: int, size: Size) -> None:
        super().__init__(number, size)
        self._size = size
        self._ids = [size.ids[number % len(size.ids)]]

    def body(self) -> bytes:
        start = 7919 * (self._number + next(self._turns))
        known = self._size.ids
        self._ids += (known[(start + 31 * i) % len(known)] for i in range(self._size.new_len))
        sampling = {"max_new_tokens": REPLY_LEN, "temperature": 1.0}
        return orjson.dumps(
            {"input_ids": self._ids, "sampling_params": sampling, "return_logprob": True}
        )

    def answered(self, answer: bytes) -> None:
        self._ids += orjson.loads(answer)["output_ids"]


KINDS: dict[str, tuple[str, type[Conversation]]] = {
    "chat": (CHAT, Conversation),
    "ids": (GENERATE, IdConversation),
}


def run(compared: Field, size: Size = FULL) -> Part:
    """Ours over each of the others, and over the better of the Rust gateways."""
    measurements: list[Measurement] = []
    plots: list[Plot] = []
    for kind, (path, conversation) in KINDS.items():
        sides = {
            name: Grown(server, path, _beginning(conversation, size), size.turns)
            for name, server in compared.speaking(path).items()
        }
        costs = interleave(sides, size.rounds)
        best = min(compared.others(RUST), key=costs.cost, default=None)
        measurements += [
            _measurement(kind, name, AIMS[kind] if name == best else None, costs, size)
            for name in sides
            if name != OURS
        ]
        plots.append(_plot(kind, sides, size))
    return Part(measurements, plots)


def _measurement(kind: str, name: str, aim: float | None, costs: Rounds, size: Size) -> Measurement:
    return Measurement(
        f"{kind} growing to {size.turns * size.new_len:,} tokens: CPU, ours over {name}",
        costs.ratio(OURS, to=name),
        "x",
        aim,
        f"{costs.cost(OURS) * 1e3:.2f} ms over {costs.cost(name) * 1e3:.2f} ms a turn; "
        f"{size.rounds} rounds of {size.turns} turns, about {size.new_len:,} new tokens each",
    )


def _beginning(conversation: type[Conversation], size: Size) -> Callable[[int], Conversation]:
    return lambda number: conversation(number, size)


def _plot(kind: str, sides: dict[str, Grown], size: Size) -> Plot:
    return Plot(
        f"growth_{kind}",
        f"CPU of a turn, {kind}, about {size.new_len:,} new tokens each",
        "tokens in the conversation",
        "ms",
        {
            name: [
                (float((turn + 1) * size.new_len), cost * 1e3)
                for turn, cost in enumerate(side.by_turn())
            ]
            for name, side in sides.items()
        },
    )
