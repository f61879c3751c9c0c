"""A session's turns kept whole, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from slime_router.rows.rows import Row, RowOptions, RowSet, build_row, build_rows
from slime_router.trajectory.routed_experts import RoutedExperts
from slime_router.trajectory.turn import Turn, logprob_array
from slime_router.types import Finish, TokenIds, VersionSpan, WeightVersion, token_ids


def common_len(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def bare_turn(
    name: str, prompt: Sequence[int] = (1,), output: Sequence[int] = (2,), **fields: Any
) -> Turn:
    """A turn of which nothing matters but its tokens and what `fields` hold."""
    given: dict[str, Any] = {
        "id": name,
        "base": None,
        "base_len": 0,
        "prompt_ids": token_ids(prompt),
        "output_ids": token_ids(output),
        "logprobs": None,
        "weight_versions": (),
        "finish": Finish("length"),
    }
    return Turn(**{**given, **fields})


class Book:
    """A `TurnSource` that remembers of every turn its whole prompt and output."""

    def __init__(self) -> None:
        self.turns: dict[str, Turn] = {}
        self.prompts: dict[str, list[int]] = {}
        self.held: dict[str, list[int]] = {}
        self.undelivered: set[str] = set()

    def __repr__(self) -> str:
        turns = [
            f"{name}: {self.prompts[name]} + {turn.output_ids.tolist()} on {turn.base}"
            f"[:{turn.base_len}] {turn.request_id or 'alone'}, {turn.finish.type}"
            f"{'' if self.is_delivered(name) else ', undelivered'}"
            for name, turn in self.turns.items()
        ]
        return "\n".join(["<Book", *turns]) + ">"

    def get(self, turn_id: str) -> Turn | None:
        return self.turns.get(turn_id)

    def held_ids(self, turn_id: str, length: int | None = None) -> TokenIds:
        return token_ids(self.held[turn_id][:length])

    def is_delivered(self, turn_id: str) -> bool:
        return turn_id in self.turns and turn_id not in self.undelivered

    def deepest(self, prompt: Sequence[int]) -> str | None:
        """The turn with the most held tokens, all of which begin the prompt; the newest of them."""
        fitting = [n for n, held in self.held.items() if list(prompt[: len(held)]) == held]
        return max(
            fitting, key=lambda name: (len(self.held[name]), self.turns[name].seq), default=None
        )

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        output: Sequence[int],
        *,
        base: str | None = "deepest",
        base_len: int | None = None,
        logprobs: Sequence[float | None] | Literal["ramp"] | None = "ramp",
        versions: Sequence[WeightVersion | None] | None = None,
        finish: Literal["stop", "length", "abort"] = "stop",
        request_id: str = "",
        is_delivered: bool = True,
        experts: RoutedExperts | None = None,
        **marks: Any,
    ) -> Turn:
        """Record a turn. Its logprobs are -1.0, -2.0, ... and it has no versions by default."""
        if base == "deepest":
            base = self.deepest(prompt)
        if base is None:
            base_len = 0
        elif base_len is None:
            base_len = common_len(self.held[base], prompt)
        if logprobs == "ramp":
            logprobs = [-1.0 - index for index in range(len(output))]
        turn = Turn(
            id=name,
            base=base,
            base_len=base_len,
            prompt_ids=token_ids(prompt[base_len:]),
            output_ids=token_ids(output),
            logprobs=None if logprobs is None else logprob_array(logprobs),
            weight_versions=tuple(
                VersionSpan(version, index, index + 1)
                for index, version in enumerate(versions or ())
                if version is not None
            ),
            finish=Finish(finish),
            session_id="s",
            request_id=request_id,
            routed_experts=experts,
            seq=len(self.turns) + 1,
            **marks,
        )
        self.turns[name] = turn
        self.prompts[name] = list(prompt)
        self.held[name] = [*prompt, *output]
        if not is_delivered:
            self.undelivered.add(name)
        return turn

    def rows(
        self,
        *,
        realign_threshold: int = 16,
        max_len: int | None = None,
        keeps_retries: bool = False,
        leave_out: Iterable[str] = (),
        wanted: Iterable[str] = (),
    ) -> RowSet:
        """The rows of all turns; the equations of their counts hold."""
        options = RowOptions(
            realign_threshold, max_len, keeps_retries, frozenset(leave_out), frozenset(wanted)
        )
        result = build_rows(self, list(self.turns), options)
        check_counts(self, result)
        check_alone(self, result, options)
        return result


def check_counts(book: Book, result: RowSet) -> None:
    stats = result.stats
    assert stats.turns == len(book.turns)
    assert stats.sampled_tokens == sum(len(turn.output_ids) for turn in book.turns.values())
    assert stats.rows == len(result.rows)
    assert stats.trained_tokens == sum(int(row.loss_mask.sum()) for row in result.rows)
    left_out = sum(left.tokens for left in stats.left_out.values())
    assert stats.sampled_tokens == stats.trained_tokens + left_out
    for row in result.rows:
        lengths = {len(row.tokens), len(row.loss_mask), len(row.weight_versions)}
        assert lengths == {len(row.tokens)}
        assert row.logprobs is None or len(row.logprobs) == len(row.tokens)
        assert row.logprobs is None or np.isfinite(row.logprobs).all()
        assert 0 < row.response_length <= len(row.tokens)
        assert not row.loss_mask[: len(row.tokens) - row.response_length].any()


def check_alone(book: Book, result: RowSet, options: RowOptions) -> None:
    """Each row is the same where it alone is asked for."""
    for row in result.rows:
        alone = build_row(book, list(book.turns), row.row_id, options)
        assert alone is not None
        assert (alone.turn_ids, alone.response_length) == (row.turn_ids, row.response_length)
        assert np.array_equal(alone.loss_mask, row.loss_mask)
        assert np.array_equal(alone.tokens, row.tokens)


def trained(row: Row) -> list[int]:
    """The tokens of a row that are trained."""
    return [int(token) for token in row.tokens[row.loss_mask == 1]]
