"""Traces of agents to route: which request follows which answer. Seeded; tokens are random numbers.

A chat's prompts and replies are the beginnings of one transcript, so all of them share its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from slime_router.types import TokenIds

CACHE_BLOCK_LEN = 32  # tokens: what a simulated worker keeps or evicts at once
VOCABULARY = 150_000
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: the transcript's first `prompt_len` tokens, answered by those to `end`."""

    prompt_len: int
    end: int
    gap_s: float  # from the answer before it; of a first turn, from the trace's or parent's time


@dataclass(slots=True, eq=False)
class Chat:
    """A chain of turns; `branches` begin when the turn with that index was answered."""

    key: str
    turns: Sequence[Turn]
    transcript: TokenIds
    blocks: list[int] = field(default_factory=list)  # names of the transcript's prefixes
    branches: list[tuple[int, Chat]] = field(default_factory=list)


Trace = list[Chat]


class Blocks:
    """Names the prefixes of transcripts: equal tokens from the start have equal names."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, bytes], int] = {}

    def name(self, transcript: TokenIds) -> list[int]:
        names, name = [], -1
        for start in range(0, len(transcript) - CACHE_BLOCK_LEN + 1, CACHE_BLOCK_LEN):
            block = transcript[start : start + CACHE_BLOCK_LEN].tobytes()
            name = self._names.setdefault((name, block), len(self._names))
            names.append(name)
        return names


class Writer:
    """Writes chats."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._blocks = Blocks()
        self._keys = count()

    def tokens(self, length: int) -> TokenIds:
        return self.rng.integers(0, VOCABULARY, length, dtype=np.int32)

    def around(self, mean: float) -> int:
        """A length: few are much greater than the others, as those of texts are."""
        return max(8, round(mean * self.rng.lognormal(-0.18, 0.6)))

    def pause_s(self, mean_s: float) -> float:
        return float(self.rng.exponential(mean_s))

    def chat(
        self,
        head: TokenIds,
        turns: int,
        *,
        said: float,
        answer: float,
        start_s: float,
        gap_s: float,
        key: str | None = None,
    ) -> Chat:
        """A chat that begins with `head`; `said` and `answer` are mean lengths of each turn."""
        end, written = len(head), []
        for index in range(turns):
            prompt_len = end + (self.around(said) if said else 0)
            end = prompt_len + self.around(answer)
            written.append(Turn(prompt_len, end, self.pause_s(gap_s) if index else start_s))
        transcript = np.concatenate([head, self.tokens(end - len(head))])
        transcript.setflags(write=False)
        name = f"chat {next(self._keys)}" if key is None else key
        return Chat(name, written, transcript, self._blocks.name(transcript))


def groups(seed: int, scale: float) -> Trace:
    """A rollout for GRPO: eight samples of each prompt, four tasks with a system prompt each."""
    writer = Writer(seed)
    systems = [writer.tokens(length) for length in (150, 400, 800, 1_600)]
    chats = []
    for group in range(round(160 * scale)):
        head = np.concatenate([systems[group % 4], writer.tokens(writer.around(900))])
        start_s = float(writer.rng.uniform(0, 20))
        for _ in range(8):
            turns = int(writer.rng.integers(1, 4))
            chats.append(
                writer.chat(head, turns, said=0, answer=700, start_s=start_s, gap_s=0.5)
                if turns == 1
                else _tool_user(writer, head, turns, start_s)
            )
    return chats


def _tool_user(writer: Writer, head: TokenIds, turns: int, start_s: float) -> Chat:
    return writer.chat(head, turns, said=60, answer=350, start_s=start_s, gap_s=1.0)


def agents(seed: int, scale: float) -> Trace:
    """Long agents: four kinds with big system prompts, eight samples of each task, tools."""
    writer = Writer(seed)
    systems = [writer.tokens(3_500) for _ in range(4)]
    chats = []
    for task in range(round(24 * scale)):
        head = np.concatenate([systems[task % 4], writer.tokens(writer.around(1_500))])
        start_s = float(writer.rng.uniform(0, 30))
        for _ in range(8):
            turns = int(writer.rng.integers(6, 18))
            chats.append(writer.chat(head, turns, said=900, answer=220, start_s=start_s, gap_s=6.0))
    return chats


def chats(seed: int, scale: float) -> Trace:
    """Many short chats under forty system prompts, of which few are popular."""
    writer = Writer(seed)
    systems = [writer.tokens(writer.around(1_200)) for _ in range(40)]
    weights = 1 / np.arange(1, 41)
    found = []
    for _ in range(round(1_600 * scale)):
        system = systems[int(writer.rng.choice(40, p=weights / weights.sum()))]
        turns = int(writer.rng.integers(1, 5))
        start_s = float(writer.rng.uniform(0, 30))
        found.append(writer.chat(system, turns, said=150, answer=200, start_s=start_s, gap_s=8.0))
    return found


def bursts(seed: int, scale: float) -> Trace:
    """Skewed sessions: a few users fan out into many branches at once, under one key each."""
    writer = Writer(seed)
    system = writer.tokens(2_000)
    found = []
    for _ in range(round(32 * scale)):
        wave_s = 20.0 * int(writer.rng.integers(0, 5)) + writer.pause_s(1.0)
        root = writer.chat(system, 3, said=1_500, answer=250, start_s=wave_s, gap_s=3.0)
        fan = min(64, 2 + int(writer.rng.pareto(0.8) * 4))
        for _ in range(fan):
            after = int(writer.rng.integers(0, 3))
            head = root.transcript[: root.turns[after].end]
            branch = writer.chat(
                head, 8, said=600, answer=250, start_s=writer.pause_s(1.0), gap_s=2.0, key=root.key
            )
            root.branches.append((after, branch))
        found.append(root)
    return found


TRACES: Mapping[str, Callable[[int, float], Trace]] = {
    "GRPO groups": groups,
    "long agents": agents,
    "short chats": chats,
    "bursts of branches": bursts,
}
