"""Look-ups and insertions in tree and store: the cost where a thousand times as much is held."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from benchmarks.conversation import prose
from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, interleave
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, Piece, token_ids

AIM = 1.5
PIECE_LEN = 512  # characters, as the tokenizer cuts long texts
CHARS_PER_TOKEN = 4
SYSTEM_PROMPT_LEN = 2_000  # characters that all trajectories share
BUDGET_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 15
    lookups: int = 40  # a round, in the tree
    finds: int = 4_000  # a round, in the store
    inserts: int = 200  # a round, in each
    few: int = 100
    many: int = 100_000
    prompt_len: int = 128_000  # characters


FULL = Size()


def run(size: Size = FULL) -> list[Measurement]:
    """The cost with many trajectories over the cost with few."""
    text = "".join(prose(7 * PIECE_LEN * i, PIECE_LEN) for i in range(size.prompt_len // PIECE_LEN))
    trees = {n: filled_cache(n, text) for n in (size.few, size.many)}
    lookups = interleave({str(n): _lookup(trees[n], text, size) for n in trees}, size.rounds)
    stores = {n: filled_store(n) for n in (size.few, size.many)}
    finds = interleave({str(n): _find(stores[n], size) for n in stores}, size.rounds)
    inserts = interleave({str(n): _insertion(trees[n], text, size) for n in trees}, size.rounds)
    adds = interleave({str(n): _addition(stores[n], size) for n in stores}, size.rounds)
    return [
        _measurement(f"look-up of {len(text):,} characters in the tree", lookups, size),
        _measurement("look-up of a conversation in the store", finds, size),
        _measurement("insertion of a turn into the tree", inserts, size),
        _measurement("addition of a turn to the store", adds, size),
    ]


def _measurement(name: str, rounds: Rounds, size: Size) -> Measurement:
    few, many = str(size.few), str(size.many)
    return Measurement(
        f"{name}: many over few",
        rounds.ratio(many, to=few),
        "x",
        AIM,
        f"{rounds.cost(many) * 1e6:.2f} us at {size.many:,} trajectories over "
        f"{rounds.cost(few) * 1e6:.2f} us at {size.few:,}; {size.rounds} rounds",
    )


def _lookup(cache: PrefixCache, text: str, size: Size) -> Callable[[], float]:
    asked = text + " And then?"

    def one_round() -> float:
        before_s = time.process_time()
        for _ in range(size.lookups):
            match = cache.match_prefix("", asked, None)
            cache.unpin(match.node)
        used_s = time.process_time() - before_s
        assert match.text_len == len(text), "the prompt was not found"
        return used_s / size.lookups

    return one_round


def _insertion(cache: PrefixCache, text: str, size: Size) -> Callable[[], float]:
    """Turns that share a system prompt with all others, each with its own task."""
    system = piece(text[:SYSTEM_PROMPT_LEN])
    numbers = count()

    def one_round() -> float:
        turns = []
        for number in islice(numbers, size.inserts):
            task = piece(f"Another task {number}: {prose(83 * number, PIECE_LEN)}")
            turns.append((task, piece(prose(79 * number, PIECE_LEN), is_sampled=True)))
        before_s = time.process_time()
        for number, (task, reply) in enumerate(turns):
            _insert(cache, f"another turn {number}", [system, task], [reply])
        return (time.process_time() - before_s) / size.inserts

    return one_round


def _addition(store: TrajectoryStore, size: Size) -> Callable[[], float]:
    numbers = count(10 * size.many)

    def one_round() -> float:
        turns = [_turn(number) for number in islice(numbers, size.inserts)]
        before_s = time.process_time()
        for turn in turns:
            store.add(turn)
        return (time.process_time() - before_s) / size.inserts

    return one_round


def _find(store: TrajectoryStore, size: Size) -> Callable[[], float]:
    keys = [_key(number) for number in range(size.few)]
    keys *= -(-size.finds // len(keys))

    def one_round() -> float:
        before_s = time.process_time()
        for key in keys:
            found = store.find(key, None)
        used_s = time.process_time() - before_s
        assert found is not None, "the turn was not found"
        return used_s / len(keys)

    return one_round


def filled_cache(trajectories: int, text: str) -> PrefixCache:
    """A cache with `text` among many other trajectories that share a system prompt."""
    cache = PrefixCache(
        BUDGET_TOKENS,
        is_anchor=lambda text, index: text[index] == " ",
        is_control=lambda token_id: token_id == 0,
    )
    parts = [text[i : i + PIECE_LEN] for i in range(0, len(text), PIECE_LEN)]
    pieces = [piece(part, is_sampled=i % 2 == 1) for i, part in enumerate(parts)]
    _insert(cache, "long", pieces[:-1], [piece(parts[-1], is_sampled=True)])
    system = piece(text[:SYSTEM_PROMPT_LEN])
    for number in range(trajectories - 1):
        task = piece(f"Task {number}: {prose(97 * number, PIECE_LEN)}")
        reply = piece(prose(89 * number, PIECE_LEN), is_sampled=True)
        _insert(cache, f"turn {number}", [system, task], [reply])
    return cache


def piece(text: str, *, is_sampled: bool = False) -> Piece:
    ids = token_ids(np.arange(1, 1 + len(text) // CHARS_PER_TOKEN))
    return Piece(text, ids, is_sampled=is_sampled)


def _insert(cache: PrefixCache, turn_id: str, prompt: list[Piece], output: list[Piece]) -> None:
    match = cache.match_prefix("", "", None)  # the root
    cache.insert(match.node, prompt, output, session_id=None, turn_id=turn_id, epoch=0)
    cache.unpin(match.node)


def filled_store(trajectories: int) -> TrajectoryStore:
    """A store with one turn for each trajectory."""
    store = TrajectoryStore(BUDGET_TOKENS)
    for number in range(trajectories):
        store.add(_turn(number))
    return store


def _turn(number: int) -> Turn:
    return Turn(
        id=f"turn {number}",
        base=None,
        base_len=0,
        prompt_ids=token_ids(np.arange(100)),
        output_ids=token_ids(np.arange(20)),
        logprobs=None,
        weight_versions=(),
        finish=Finish("length"),
        keys=(_key(number),),
        session_id=f"session {number}",
    )


def _key(number: int) -> bytes:
    return number.to_bytes(16, "little")
