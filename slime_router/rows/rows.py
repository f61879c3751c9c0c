"""Rows: what a session's turns become for the trainer.

    stats.sampled_tokens == stats.trained_tokens + sum(left.tokens for left in left_out.values())
    stats.trained_tokens == sum(row.loss_mask.sum() for row in rows)

A row is a sequence that a model really saw: the prompt and the output of one turn. Each sampled
token is trained in at most one row, the earliest that has it, and only after the very tokens that
it was sampled after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from slime_router.rows.forest import TurnNode, TurnSource, plant
from slime_router.rows.lineage import Lineage, trace_lineage
from slime_router.rows.masks import LOWEST_LOGPROB, MaskedSpan, laid_out
from slime_router.rows.selection import Selection, select
from slime_router.trajectory.measures.distribution import Distribution
from slime_router.trajectory.measures.top_logprobs import TopLogprobs
from slime_router.trajectory.measures.top_logprobs import laid_out as tops_laid_out
from slime_router.trajectory.routed_experts import ExpertsSpan, RoutedExperts, find_misfit, line_up
from slime_router.trajectory.turn import Logprobs, Picture, Turn
from slime_router.types import TokenIds, WeightVersion

Status: TypeAlias = Literal["completed", "truncated", "aborted"]
ByPosition: TypeAlias = Literal["routed_experts", "indexer_topk"]
TAG = "tag:"  # begins the rule that leaves out turns with a tag
BY_POSITION: tuple[ByPosition, ...] = get_args(ByPosition)
STATUS_OF: dict[str, Status] = {"stop": "completed", "length": "truncated", "abort": "aborted"}


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How rows are made.

    realign_threshold: an answer is realigned where fewer of its tokens are given up
    max_len:           rows are cut at the last turn that fits, in tokens
    keeps_retries:     turns of the same prompt are all trained
    leave_out:         turns of these kinds (`retry`) or with these tags (`tag:draft`) are not
    wanted:            `routed_experts` or `indexer_topk`: a row without is counted as missing them
    """

    realign_threshold: int = 16
    max_len: int | None = None
    keeps_retries: bool = False
    leave_out: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RowTurn:
    """A turn in a row: its output is the tokens `[start, end)`; the rest of it was given up.

    `pictures` are those that came with its prompt.
    """

    turn: Turn
    start: int
    end: int
    lineage: Lineage
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One training sample. Arrays have one entry per token; `response_length` counts the last.

    `logprobs` are 0.0 where nobody sampled, `LOWEST_LOGPROB` where one is missing, and None where
    they were not asked for. `routed_experts` has shape `[tokens - 1, layers * top_k]`, and so has
    `indexer_topk`. `distribution`, of all tokens, says from which ids the sampled ones come.
    `uncaptured` says why it does not, though some come from a part of the vocabulary.
    `top_logprobs` has the likeliest tokens at the place of each sampled one, where they are kept.
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
    indexer_topk: NDArray[Any] | None = None
    distribution: Distribution | None = None
    uncaptured: str = ""
    top_logprobs: TopLogprobs | None = None
    turns: tuple[RowTurn, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures in it: those of its last turn."""
        return self.turns[-1].turn.pictures if self.turns else ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What one reason keeps from being trained: sampled tokens, and the turns they belong to."""

    turns: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class RowStats:
    """Where each sampled token went.

    Reasons in `left_out`: empty, undelivered, retry, over_length and what `leave_out` names (whole
    turns), realigned and missing_logprobs (some tokens of kept turns). `routed_experts_missing`
    counts the rows whose experts could not be lined up, by reason; `indexer_topk_missing` likewise.
    `truncated_sampling` counts those with tokens from an unknown part of the vocabulary, by reason.
    """

    turns: int
    sampled_tokens: int
    rows: int
    trained_tokens: int
    left_out: dict[str, LeftOut]
    routed_experts_missing: dict[str, int]
    indexer_topk_missing: dict[str, int] = field(default_factory=dict)
    truncated_sampling: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowSet:
    """All rows of a session, in the order of their last turns."""

    rows: tuple[Row, ...]
    stats: RowStats


def build_rows(
    source: TurnSource, turn_ids: Sequence[str], options: RowOptions | None = None
) -> RowSet:
    """The rows of these turns; ids that the source does not hold are skipped."""
    _, selection, builder = plan(source, turn_ids, options or RowOptions())
    rows = tuple(row for leaf in selection.leaves if (row := builder.build(leaf)) is not None)
    trained = sum(int(np.count_nonzero(row.loss_mask)) for row in rows)
    return RowSet(rows, builder.stats(len(rows), trained))


def build_row(
    source: TurnSource, turn_ids: Sequence[str], row_id: str, options: RowOptions | None = None
) -> Row | None:
    """The one of these rows that has this id; None where there is no such row."""
    _, selection, builder = plan(source, turn_ids, options or RowOptions())
    for leaf in selection.leaves:
        if leaf.turn.id == row_id:
            return builder.build(leaf)
        builder.spans(leaf.path())  # what an earlier row trains, this one does not
    return None


def plan(
    source: TurnSource, turn_ids: Sequence[str], options: RowOptions
) -> tuple[list[TurnNode], Selection, RowBuilder]:
    """What rows are built from: the forest, what is kept of it, and who builds them in order."""
    found = (source.get(turn_id) for turn_id in dict.fromkeys(turn_ids))
    turns = [turn for turn in found if turn is not None]
    nodes = plant(source, turns, options.realign_threshold)
    lineage = _find_lineage(source, nodes)
    selection = select(
        nodes,
        source.is_delivered,
        keeps_retries=options.keeps_retries,
        max_len=options.max_len,
        rule_of=lambda node: _rule_of(node.turn, lineage, options.leave_out),
    )
    return nodes, selection, RowBuilder(source, turns, selection, lineage, options.wanted)


def _find_lineage(source: TurnSource, nodes: Sequence[TurnNode]) -> dict[str, Lineage]:
    """What each turn of a forest is, by its id."""
    found = select(nodes, source.is_delivered).left_out.get("retry", ())
    retries = {node.turn.id for node in found}

    def prompt_of(node: TurnNode) -> TokenIds:
        return source.held_ids(node.turn.id, node.prompt_len)

    return trace_lineage(nodes, retries, prompt_of)


def _rule_of(turn: Turn, lineage: Mapping[str, Lineage], leave_out: frozenset[str]) -> str | None:
    """The first of the rules by which a turn is not trained."""
    if not leave_out:
        return None
    names = (lineage[turn.id].kind, *(f"{TAG}{tag}" for tag in turn.tags))
    return next((name for name in names if name in leave_out), None)


@dataclass(frozen=True, slots=True)
class Span:
    """The output of one turn in a row: tokens `[start, end)`; the rest was given up."""

    turn: Turn
    start: int
    end: int
    is_trained: bool  # here; else in an earlier row


class RowBuilder:
    """Builds one row after another and counts what is not trained."""

    def __init__(
        self,
        source: TurnSource,
        turns: Sequence[Turn],
        selection: Selection,
        lineage: Mapping[str, Lineage],
        wanted: frozenset[str],
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._lineage = lineage
        self._ruled_out = selection.ruled_out
        self._turns = turns
        self._cut_ids = selection.cut_ids
        self._spent: set[str] = set()  # turns that a row trains already
        self._misfits = {name: Counter[str]() for name in BY_POSITION}
        self._truncated: Counter[str] = Counter()
        self._left_out: dict[str, LeftOut] = {}
        for turn in turns:
            if not len(turn.output_ids):
                self._leave_out("empty", 0)
        for reason, nodes in selection.left_out.items():
            for node in nodes:
                self._leave_out(reason, len(node.turn.output_ids))

    def stats(self, rows: int, trained_tokens: int) -> RowStats:
        """What happened to all turns; so many rows were built, and train so many tokens."""
        return RowStats(
            turns=len(self._turns),
            sampled_tokens=sum(len(turn.output_ids) for turn in self._turns),
            rows=rows,
            trained_tokens=trained_tokens,
            left_out=self._left_out,
            routed_experts_missing=dict(self._misfits["routed_experts"]),
            indexer_topk_missing=dict(self._misfits["indexer_topk"]),
            truncated_sampling=dict(self._truncated),
        )

    def build(self, leaf: TurnNode) -> Row | None:
        """The row that ends with this turn; None where it has nothing to train."""
        spans = self.spans(leaf.path())
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
            if has_logprobs:
                logprobs[span.start : span.end] = _filled(span)
            if span.is_trained:
                loss_mask[span.start : span.end] = self._known(span) if has_logprobs else True
        learnt = [span for span in trained if loss_mask[span.start : span.end].any()]
        if not learnt:
            return None
        start = learnt[0].start
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
            routed_experts=self._lined_up("routed_experts", spans),
            indexer_topk=self._lined_up("indexer_topk", spans),
            distribution=laid_out(tuple(map(_masked, spans)), len(tokens)),
            uncaptured=self._uncaptured(learnt),
            top_logprobs=tops_laid_out(
                [(span.start, span.end, span.turn.top_logprobs) for span in spans], len(tokens)
            ),
            turns=tuple(self._in_row(spans)),
        )

    def _in_row(self, spans: Sequence[Span]) -> Iterator[RowTurn]:
        before = 0  # where the prompt begins that came after the turn before
        for span in spans:
            own = tuple(picture for picture in span.turn.pictures if picture[0] >= before)
            yield RowTurn(span.turn, span.start, span.end, self._lineage[span.turn.id], own)
            before = span.end

    def spans(self, path: Sequence[TurnNode]) -> list[Span]:
        """The outputs along a path; each turn is trained in the first row that has it."""
        spans = []
        for node, child in zip(path, [*path[1:], None], strict=True):
            turn = node.turn
            end = turn.held_len if child is None else child.shared_len
            is_new, rule = turn.id not in self._spent, self._ruled_out.get(turn.id)
            self._spent.add(turn.id)
            is_trained = is_new and rule is None
            if is_new and rule is not None:
                self._leave_out(rule, len(turn.output_ids))
            if is_trained and end < turn.held_len:
                self._leave_out("realigned", turn.held_len - end)
            spans.append(Span(turn, node.prompt_len, end, is_trained))
        return spans

    def count_trained(self, spans: Sequence[Span]) -> int:
        """How many tokens the row of these spans trains, without building it."""
        trained = [span for span in spans if span.is_trained]
        if all(span.turn.logprobs is None for span in trained):
            return sum(span.end - span.start for span in trained)
        return sum(int(np.count_nonzero(self._known(span))) for span in trained)

    def _known(self, span: Span) -> NDArray[np.bool_]:
        """Which tokens of a trained span have a log-probability; counts the others."""
        is_known = np.isfinite(_values(span))
        if missing := len(is_known) - int(np.count_nonzero(is_known)):
            self._leave_out("missing_logprobs", missing)
        return is_known

    def _lined_up(self, name: ByPosition, spans: Sequence[Span]) -> NDArray[Any] | None:
        """What is kept for each position, where all turns have it and it fits; counts misfits."""
        kept: list[RoutedExperts | None] = [getattr(span.turn, name) for span in spans]
        if name not in self._wanted and all(each is None for each in kept):
            return None
        parts, start = [], 0
        for span, experts in zip(spans, kept, strict=True):
            end = min(span.end, span.turn.held_len - 1)  # its last token was never an input
            parts.append(ExpertsSpan(experts, start, end))
            start = end
        misfit = find_misfit(parts)
        if misfit is None:
            return line_up(parts)
        self._misfits[name][misfit] += 1
        return None

    def _uncaptured(self, learnt: Sequence[Span]) -> str:
        """Why some tokens that a row trains have no masks, though they should; counts it."""
        found = (span.turn.uncaptured for span in learnt if span.turn.uncaptured)
        reason = next(found, "")
        if reason:
            self._truncated[reason] += 1
        return reason

    def _leave_out(self, reason: str, tokens: int) -> None:
        counted = self._left_out.get(reason, LeftOut())
        self._left_out[reason] = LeftOut(counted.turns + 1, counted.tokens + tokens)


def _masked(span: Span) -> MaskedSpan:
    turn = span.turn
    known = None if turn.logprobs is None else turn.logprobs[: span.end - span.start]
    return MaskedSpan(span.start, span.end, turn.distribution, known, is_cut=bool(turn.uncaptured))


def _values(span: Span) -> Logprobs:
    """The log-probabilities of a span, NaN where one is missing."""
    values = span.turn.logprobs
    if values is None:
        values = np.full(len(span.turn.output_ids), np.nan)
    return values[: span.end - span.start]


def _filled(span: Span) -> Logprobs:
    values = _values(span)
    return np.where(np.isfinite(values), values, LOWEST_LOGPROB)
