"""The next turn of a long conversation, against rendering and encoding the whole of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import orjson

from benchmarks import load
from benchmarks.conversation import messages, prose, reply_ids
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, interleave
from benchmarks.server import Server, router
from slime_router.choices import History
from slime_router.config import Config
from slime_router.server.app import Gateway
from slime_router.types import Finish, GenerateCall, GenerateChunk, Message

AIM = 1 / 60
REPLY_LEN = 200  # tokens
CHAT = "/v1/chat/completions"
MODES: tuple[History, ...] = ("held", "template")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5
    repeats: int = 3  # a round, for each side
    messages: int = 400
    text_len: int = 250_000  # characters


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """CPU seconds: of making the prompt, and of the router's process for the whole request."""
    ids = reply_ids(checkpoint, REPLY_LEN)
    plain = Plain(checkpoint)
    with router_alone(checkpoint, ids) as ours, asyncio.Runner() as runner:
        talk = messages(size.messages - 2, size.text_len)
        maker = InProcess(checkpoint, runner, ids, talk)
        through = Through(ours, talk)
        talks = {mode: maker.talks(mode) for mode in MODES}
        sides = {"plain": plain.timed(talks["held"], size.repeats)}
        for mode in MODES:
            following = partial(next, talks[mode])
            sides[f"make {mode}"] = _timed(maker.make(mode), following, size.repeats)
            sides[f"request {mode}"] = through.side(mode, size.repeats)
        rounds = interleave(sides, size.rounds)
    names = [f"{kind} {mode}" for kind in ("make", "request") for mode in MODES]
    return [_measurement(name, rounds, size) for name in names]


def _measurement(name: str, rounds: Rounds, size: Size) -> Measurement:
    kind, mode = name.split()
    what = "prompt made" if kind == "make" else "whole request"
    return Measurement(
        f"next turn, {mode}: {what}, over render + encode",
        rounds.ratio(name, to="plain"),
        "x",
        AIM,
        f"{rounds.cost(name) * 1e3:.2f} ms over {rounds.cost('plain') * 1e3:.1f} ms of CPU; "
        f"{size.messages} messages, {size.text_len:,} characters; "
        f"{size.rounds} rounds of {size.repeats}",
    )


def _timed(
    act: Callable[[list[Message]], None], make: Callable[[], list[Message]], repeats: int
) -> Callable[[], float]:
    """A side that takes place in this process."""

    def one_round() -> float:
        given = [make() for _ in range(repeats)]
        before_s = time.process_time()
        for each in given:
            act(each)
        return (time.process_time() - before_s) / repeats

    return one_round


@contextmanager
def router_alone(checkpoint: Path, ids: list[int]) -> Iterator[Server]:
    """This router before one worker, which replies with `ids`."""
    with worker(ids) as behind, router(checkpoint, "--worker-urls", behind.url) as ours:
        yield ours


class Plain:
    """What everybody does without a cache: transformers, on the whole conversation."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoTokenizer  # takes seconds: only who needs it waits

        self._hf: Any = AutoTokenizer.from_pretrained(checkpoint)

    def encode(self, talk: list[Message]) -> None:
        text = self._hf.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        self._hf(text, add_special_tokens=False)

    def timed(self, talks: Iterator[list[Message]], repeats: int) -> Callable[[], float]:
        """A side that encodes so many conversations a round; CPU seconds for each."""
        return _timed(self.encode, lambda: next(talks), repeats)


class InProcess:
    """The router's own parts, with a turn of each mode recorded; nothing is sent anywhere."""

    def __init__(
        self, checkpoint: Path, runner: asyncio.Runner, ids: list[int], talk: list[Message]
    ) -> None:
        self._gateway = Gateway(Config(hf_checkpoint=str(checkpoint)))
        self._runner = runner
        self._ids = ids
        self._talk = talk

    async def _recorded_reply(self, talk: list[Message], mode: History) -> Message:
        router = self._gateway.path.router(self._sample)
        text = ""
        async with router.generate(_call(f"first {mode}", talk, mode)) as chunks:
            async for chunk in chunks:
                text += chunk.text
        return {"role": "assistant", "content": text}

    async def _sample(self, _: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        finish = Finish("stop", matched=self._ids[-1])
        yield GenerateChunk(output_ids=self._ids, logprobs=[-0.5] * len(self._ids), finish=finish)

    def talks(self, mode: History) -> Iterator[list[Message]]:
        """The messages of next turns, after a first one that is recorded now."""
        talk = _begun(self._talk, mode)
        return _continued([*talk, self._runner.run(self._recorded_reply(talk, mode))])

    def make(self, mode: History) -> Callable[[list[Message]], None]:
        """Makes the prompt of the next turn, and gives it back."""

        async def make(talk: list[Message]) -> None:
            prompt = await self._gateway.maker.make(_call("next", talk, mode))
            assert prompt.receipt.reused > 0, "the recorded turn was not found again"
            self._gateway.maker.release(prompt)

        return lambda talk: self._runner.run(make(talk))


class Through:
    """The same turns as requests to a router in its own process."""

    def __init__(self, router: Server, talk: list[Message]) -> None:
        self._router = router
        self._talk = talk

    def side(self, mode: History, repeats: int) -> Callable[[], float]:
        """A side of next turns; their first one takes place now."""
        talk = _begun(self._talk, mode)
        [answer] = load.send(self._router.port, [load.post(CHAT, _body(talk, mode))], 1)
        talks = _continued([*talk, orjson.loads(answer)["choices"][0]["message"]])

        def one_round() -> float:
            requests = [load.post(CHAT, _body(each, mode)) for each in islice(talks, repeats)]
            before_s = self._router.cpu_s()
            load.send(self._router.port, requests, 1)
            return (self._router.cpu_s() - before_s) / repeats

        return one_round


def _begun(talk: list[Message], mode: History) -> list[Message]:
    """A conversation of the mode's own: what a turn was given by another mode is not found."""
    return [{**talk[0], "content": f"{mode}: {talk[0]['content']}"}, *talk[1:]]


def _continued(talk: list[Message]) -> Iterator[list[Message]]:
    """The conversation with one more question, each time another."""
    return ([*talk, _question(number)] for number in count())


def _question(number: int) -> Message:
    return {"role": "user", "content": f"Question {number}: {prose(1000 * number, 600)}"}


def _call(turn_id: str, talk: list[Message], mode: History) -> GenerateCall:
    return GenerateCall(rid=turn_id, turn_id=turn_id, messages=tuple(talk), history=mode)


def _body(talk: list[Message], mode: History) -> bytes:
    return orjson.dumps({"model": "default", "messages": talk, "history": mode})
