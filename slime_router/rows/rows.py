"""Rows: what a session's turns become for the trainer.

    stats.sampled_tokens == stats.trained_tokens + sum(left.tokens for left in left_out.values())
    stats.trained_tokens == sum(row.loss_mask.sum() for row in rows)

A row is a sequence that a model really saw: the prompt and the output of one turn. Each sampled
token is trained in at most one row, the earliest that has it, and only after the very tokens that
it was sampled after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from slime_router.rows.forest import TurnNode, TurnSource, plant
from slime_router.rows.selection import Selection, select
from slime_router.trajectory.routed_experts import ExpertsSpan, find_misfit, line_up
from slime_router.trajectory.turn import Turn
from slime_router.types import TokenIds, WeightVersion

LOWEST_LOGPROB = -9999.0  # in place of one that is missing or not finite; its mask is 0

Status: TypeAlias = Literal["completed", "truncated", "aborted"]
STATUS_OF: dict[str, Status] = {"stop": "completed", "length": "truncated", "abort": "aborted"}


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How rows are made.

    realign_threshold: an answer is realigned where fewer of its tokens are given up
    max_len:           rows are cut at the last turn that fits, in tokens
    keeps_retries:     turns of the same prompt are all trained
    """

    realign_threshold: int = 16
    max_len: int | None = None
    keeps_retries: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One training sample. Arrays have one entry per token; `response_length` counts the last.

    `logprobs` are 0.0 where nobody sampled, `LOWEST_LOGPROB` where one is missing, and None where
    they were not asked for. `routed_experts` has shape `[tokens - 1, layers * top_k]`.
    """

    row_id: str  # that of the last turn
    turn_ids: tuple[str, ...]
    tokens: TokenIds
    loss_mask: NDArray[np.int8]
    logprobs: NDArray[np.float64] | None
    weight_versions: tuple[WeightVersion | None, ...]
    response_length: int
    status: Status
    finish_reason: str
    turn_versions: tuple[WeightVersion, ...]  # one per turn that has any, that of its end
    routed_experts: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What one reason keeps from being trained: sampled tokens, and the turns they belong to."""

    turns: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class RowStats:
    """Where each sampled token went.

    Reasons in `left_out`: empty, undelivered, retry and over_length (whole turns), realigned and
    missing_logprobs (some tokens of kept turns). `routed_experts_missing` counts the rows whose
    experts could not be lined up, by reason.
    """

    turns: int
    sampled_tokens: int
    rows: int
    trained_tokens: int
    left_out: dict[str, LeftOut]
    routed_experts_missing: dict[str, int]


@dataclass(frozen=True, slots=True)
class RowSet:
    """All rows of a session, in the order of their last turns."""

    rows: tuple[Row, ...]
    stats: RowStats


def build_rows(
    source: TurnSource, turn_ids: Sequence[str], options: RowOptions | None = None
) -> RowSet:
    """The rows of these turns; ids that the source does not hold are skipped."""
    options = options or RowOptions()
    found = (source.get(turn_id) for turn_id in dict.fromkeys(turn_ids))
    turns = [turn for turn in found if turn is not None]
    nodes = plant(source, turns, options.realign_threshold)
    selection = select(
        nodes,
        source.is_delivered,
        keeps_retries=options.keeps_retries,
        max_len=options.max_len,
    )
    builder = _RowBuilder(source, turns, selection)
    rows = tuple(row for leaf in selection.leaves if (row := builder.build(leaf)) is not None)
    return RowSet(rows, builder.stats(rows))


@dataclass(frozen=True, slots=True)
class _Span:
    """The output of one turn in a row: tokens `[start, end)`; the rest was given up."""

    turn: Turn
    start: int
    end: int
    is_trained: bool  # here; else in an earlier row


class _RowBuilder:
    """Builds one row after another and counts what is not trained."""

    def __init__(self, source: TurnSource, turns: Sequence[Turn], selection: Selection) -> None:
        self._source = source
        self._turns = turns
        self._cut_ids = selection.cut_ids
        self._spent: set[str] = set()  # turns that a row trains already
        self._experts_missing: dict[str, int] = {}
        self._left_out: dict[str, LeftOut] = {}
        for turn in turns:
            if not len(turn.output_ids):
                self._leave_out("empty", 0)
        for reason, nodes in selection.left_out.items():
            for node in nodes:
                self._leave_out(reason, len(node.turn.output_ids))

    def stats(self, rows: Sequence[Row]) -> RowStats:
        """What happened to all turns; `rows` are those that were built."""
        return RowStats(
            turns=len(self._turns),
            sampled_tokens=sum(len(turn.output_ids) for turn in self._turns),
            rows=len(rows),
            trained_tokens=sum(int(np.count_nonzero(row.loss_mask)) for row in rows),
            left_out=self._left_out,
            routed_experts_missing=self._experts_missing,
        )

    def build(self, leaf: TurnNode) -> Row | None:
        """The row that ends with this turn; None where it has nothing to train."""
        spans = self._spans(leaf.path())
        tokens = self._source.held_ids(leaf.turn.id)
        trained = [span for span in spans if span.is_trained]
        has_logprobs = any(span.turn.logprobs is not None for span in trained)
        loss_mask = np.zeros(len(tokens), np.int8)
        logprobs = np.zeros(len(tokens))
        versions: list[WeightVersion | None] = [None] * len(tokens)
        turn_versions: list[WeightVersion] = []
        for span in spans:
            named = span.turn.output_versions()
            versions[span.start : span.end] = named[: span.end - span.start]
            last = next((version for version in reversed(named) if version is not None), None)
            turn_versions += [] if last is None else [last]
            is_known = self._fill(logprobs[span.start : span.end], span) if has_logprobs else True
            if span.is_trained:
                loss_mask[span.start : span.end] = is_known
        start = next((s.start for s in trained if loss_mask[s.start : s.end].any()), None)
        if start is None:
            return None
        finish_reason = leaf.turn.finish.type
        is_cut = leaf.turn.id in self._cut_ids
        return Row(
            row_id=leaf.turn.id,
            turn_ids=tuple(span.turn.id for span in spans),
            tokens=tokens,
            loss_mask=loss_mask,
            logprobs=logprobs if has_logprobs else None,
            weight_versions=tuple(versions),
            response_length=len(tokens) - start,
            status="truncated" if is_cut else STATUS_OF[finish_reason],
            finish_reason=finish_reason,
            turn_versions=tuple(turn_versions),
            routed_experts=self._experts(spans),
        )

    def _spans(self, path: Sequence[TurnNode]) -> list[_Span]:
        """The outputs along a path; each turn is trained in the first row that has it."""
        spans = []
        for node, child in zip(path, [*path[1:], None], strict=True):
            turn = node.turn
            end = turn.held_len if child is None else child.shared_len
            is_trained = turn.id not in self._spent
            self._spent.add(turn.id)
            if is_trained and end < turn.held_len:
                self._leave_out("realigned", turn.held_len - end)
            spans.append(_Span(turn, node.prompt_len, end, is_trained))
        return spans

    def _fill(self, logprobs: NDArray[np.float64], span: _Span) -> NDArray[np.bool_]:
        """Writes those of a span; says which of them are known, and counts the others."""
        values = span.turn.logprobs
        if values is None:
            values = np.full(len(span.turn.output_ids), np.nan)
        values = values[: len(logprobs)]
        is_known = np.isfinite(values)
        logprobs[:] = np.where(is_known, values, LOWEST_LOGPROB)
        missing = len(values) - int(np.count_nonzero(is_known))
        if span.is_trained and missing:
            self._leave_out("missing_logprobs", missing)
        return is_known

    def _experts(self, spans: Sequence[_Span]) -> NDArray[Any] | None:
        """The experts of a row, where all its turns have them and they fit together."""
        if all(span.turn.routed_experts is None for span in spans):
            return None
        parts, start = [], 0
        for span in spans:
            end = min(span.end, span.turn.held_len - 1)  # its last token was never an input
            parts.append(ExpertsSpan(span.turn.routed_experts, start, end))
            start = end
        misfit = find_misfit(parts)
        if misfit is None:
            return line_up(parts)
        self._experts_missing[misfit] = self._experts_missing.get(misfit, 0) + 1
        return None

    def _leave_out(self, reason: str, tokens: int) -> None:
        counted = self._left_out.get(reason, LeftOut())
        self._left_out[reason] = LeftOut(counted.turns + 1, counted.tokens + tokens)
