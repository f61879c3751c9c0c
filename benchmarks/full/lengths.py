"""The next turn of conversations of many lengths, through everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import orjson

from benchmarks import load
from benchmarks.conversation import messages, prose
from benchmarks.driven import Driven
from benchmarks.full.field import HOP, OURS, Field, Part, Plot
from benchmarks.full.gateways import SGLANG_ROUTER, SMG
from benchmarks.next_turn import Plain
from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, Side, interleave
from benchmarks.short_chat import CHAT
from slime_router.types import Message

ENCODED = "render + encode all"
AIMS = {SGLANG_ROUTER.name: 1.0, SMG.name: 1.0, ENCODED: 1 / 60}  # at the greatest length


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5
    requests: int = 4  # a round, for each side
    counts: tuple[int, ...] = (20, 50, 100, 200, 400)  # messages
    message_len: int = 625  # characters
    new_len: int = 600


FULL = Size()


def run(field: Field, size: Size = FULL) -> Part:
    """CPU seconds for a turn whose conversation was seen before, but for its last message."""
    plain = Plain(field.checkpoint)
    found: dict[int, Rounds] = {}
    for message_count in size.counts:
        talk = _recorded(field, message_count, size)
        sides: dict[str, Side] = {
            name: Driven(server, CHAT, _bodies(talk, size), field.asked(name, size.requests))
            for name, server in field.speaking(CHAT).items()
        }
        sides[ENCODED] = plain.timed(_talks(talk, size), 1)
        found[message_count] = interleave(sides, size.rounds)
    return Part(list(_measurements(found, size)), [_plot(found, size)])


def _recorded(field: Field, message_count: int, size: Size) -> list[Message]:
    """A conversation, with a reply that each has sent once."""
    talk = messages(message_count - 2, (message_count - 2) * size.message_len)
    answers = [
        load.send(server.port, [load.post(CHAT, _body(talk))], 1)[0]
        for server in field.speaking(CHAT).values()
    ]
    reply: Message = orjson.loads(answers[0])["choices"][0]["message"]
    return [*talk, reply]


def _talks(talk: list[Message], size: Size) -> Iterator[list[Message]]:
    for number in count():
        question = f"Question {number}: {prose(1000 * number, size.new_len)}"
        yield [*talk, {"role": "user", "content": question}]


def _bodies(talk: list[Message], size: Size) -> Iterator[bytes]:
    return (_body(each) for each in _talks(talk, size))


def _body(talk: list[Message]) -> bytes:
    return orjson.dumps({"model": "default", "messages": talk})


def _measurements(found: dict[int, Rounds], size: Size) -> Iterator[Measurement]:
    longest = max(found)
    rounds = found[longest]
    for name in (each for each in rounds.costs if each != OURS):
        yield Measurement(
            f"next turn at {longest} messages: CPU, ours over {name}",
            rounds.ratio(OURS, to=name),
            "x",
            AIMS.get(name),
            f"{rounds.cost(OURS) * 1e3:.2f} ms over {rounds.cost(name) * 1e3:.2f} ms; "
            f"{longest * size.message_len:,} characters; "
            f"{size.rounds} rounds of {size.requests}",
        )


def _plot(found: dict[int, Rounds], size: Size) -> Plot:
    names = [OURS, HOP, *(n for n in found[max(found)].costs if n not in (OURS, HOP))]
    return Plot(
        "cpu_per_turn",
        f"CPU of the next turn, {size.message_len} characters a message",
        "messages",
        "ms",
        {
            name: [(float(at), rounds.cost(name) * 1e3) for at, rounds in found.items()]
            for name in names
        },
    )
