"""Rows of random sessions against a model that knows for every token who sampled it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router.api.sessions.row_formats import as_json
from slime_router.rows.masks import LOWEST_LOGPROB
from slime_router.rows.rows import STATUS_OF, Row, RowOptions, build_rows
from slime_router.rows.snapshot import Snapshot
from slime_router.trajectory.session import Session, SessionSpec
from tests.examples import examples
from tests.turns import Book, check_counts, common_len

tokens = st.integers(0, 2)  # few, so that answers are equal by chance
finite = st.floats(-9, 0)
versions = st.sampled_from([None, 1, "v2"])


@st.composite
def sessions(draw: st.DrawFn, *, has_gaps: bool) -> Book:
    """Turns that extend, leave, resend or ignore older ones, and may be stored on any.

    With gaps, logprobs are missing here and there, or of whole turns.
    """
    book = Book()
    logprobs = st.one_of(finite, finite, st.none(), st.just(-math.inf)) if has_gaps else finite
    outputs = st.lists(st.tuples(tokens, logprobs, versions), max_size=6)
    for number in range(draw(st.integers(1, 12))):
        names = list(book.turns)
        step = draw(st.sampled_from(["extend", "drift", "resend", "fresh"])) if names else "fresh"
        prompt, request_id = draw(st.lists(tokens, min_size=1, max_size=3)), f"r{number}"
        if step != "fresh":
            older = draw(st.sampled_from(names))
            held = book.held[older]
            if step == "extend":
                prompt = held + prompt[1:]
            elif step == "drift":
                prompt = held[: len(held) - draw(st.integers(1, 4))] + prompt
            else:
                prompt = book.prompts[older]
                request_id = draw(st.sampled_from([request_id, book.turns[older].request_id]))
        sampled = draw(outputs)
        book.add(
            f"t{number}",
            prompt,
            [token for token, _, _ in sampled],
            base=draw(st.sampled_from(["deepest", "deepest", None, *names])),
            logprobs=None
            if has_gaps and not draw(st.integers(0, 3))
            else [value for _, value, _ in sampled],
            versions=[version for _, _, version in sampled],
            finish=draw(st.sampled_from(["stop", "length", "abort"])),
            request_id=request_id if draw(st.booleans()) or step == "resend" else "",
            is_delivered=draw(st.integers(0, 4)) > 0,
        )
    return book


options = st.builds(
    RowOptions,
    realign_threshold=st.integers(0, 5),
    max_len=st.one_of(st.none(), st.none(), st.integers(1, 20)),
    keeps_retries=st.booleans(),
)


class Model:
    """What is known of a token: the turn that sampled it, and its place in that turn's tokens."""

    def __init__(self, book: Book) -> None:
        self.book = book

    def sampled(self, name: str) -> range:
        return range(len(self.book.prompts[name]), len(self.book.held[name]))

    def logprob(self, name: str, position: int) -> float | None:
        """None where it is missing or not finite."""
        turn = self.book.turns[name]
        if turn.logprobs is None:
            return None
        value = float(turn.logprobs[position - len(self.book.prompts[name])])
        return value if math.isfinite(value) else None

    def is_silent(self, name: str) -> bool:
        """Whether no logprob is known; rows of such turns alone are not given out."""
        return all(self.logprob(name, position) is None for position in self.sampled(name))

    def version(self, name: str, position: int) -> object:
        index = position - len(self.book.prompts[name])
        spans = self.book.turns[name].weight_versions
        return next((span.version for span in spans if span.start <= index < span.end), None)

    def samplers(self, row: Row) -> dict[int, str]:
        """Which of the row's turns sampled a token after exactly the tokens before it."""
        ids = row.tokens.tolist()
        return {
            position: name
            for name in row.turn_ids
            for position in self.sampled(name)
            if self.book.held[name][: position + 1] == ids[: position + 1]
        }

    def is_extended(self, name: str) -> bool:
        held = self.book.held[name]
        return any(
            turn.base == name and turn.base_len == len(held) and len(turn.output_ids)
            for turn in self.book.turns.values()
        )

    def leaving(self, name: str) -> list[str]:
        """Turns whose prompts go on from this one's answer, from its end or from before."""
        held, start = self.book.held[name], len(self.book.prompts[name])
        others = ((n, p, common_len(held, p)) for n, p in self.book.prompts.items() if n != name)
        return [
            other
            for other, prompt, common in others
            if start < common and (common == len(held) or common < len(prompt))
        ]

    def twins(self, name: str) -> Iterator[str]:
        """Answers to the same prompt from other requests."""
        turn = self.book.turns[name]
        for other, prompt in self.book.prompts.items():
            is_same = turn.request_id and self.book.turns[other].request_id == turn.request_id
            if other != name and prompt == self.book.prompts[name] and not is_same:
                yield other


@settings(max_examples=examples(150))
@given(book=sessions(has_gaps=True), how=options)
def test_rows_hold_every_kept_token_once(book: Book, how: RowOptions):
    model = Model(book)
    result = build_rows(book, list(book.turns), how)
    check_counts(book, result)
    assert [book.turns[row.row_id].seq for row in result.rows] == sorted(
        book.turns[row.row_id].seq for row in result.rows
    )
    first_row: dict[str, int] = {}
    trained: dict[tuple[str, int], int] = {}
    for index, row in enumerate(result.rows):
        check_path(model, row, how)
        check_columns(model, row)
        for name in row.turn_ids:
            first_row.setdefault(name, index)
        for position, name in model.samplers(row).items():
            if row.loss_mask[position]:
                assert (name, position) not in trained, "a token is trained twice"
                trained[name, position] = index
    for index, row in enumerate(result.rows):
        for position, name in model.samplers(row).items():
            if (name, position) in trained:
                assert trained[name, position] == first_row[name], "not in its first row"
            elif index == first_row[name]:
                check_untrained(model, row, name, position)


def check_path(model: Model, row: Row, how: RowOptions) -> None:
    """A row is what its last turn really saw, and each of its turns goes on from the one before."""
    book = model.book
    assert row.tokens.tolist() == book.held[row.row_id]
    assert row.turn_ids[-1] == row.row_id
    assert how.max_len is None or len(row.tokens) <= how.max_len
    assert row.finish_reason == book.turns[row.row_id].finish.type
    is_cut = row.status != STATUS_OF[row.finish_reason]
    assert not is_cut or (row.status == "truncated" and how.max_len is not None)
    for older, newer in pairwise(row.turn_ids):
        held, prompt = book.held[older], book.prompts[newer]
        common = common_len(held, prompt)
        assert book.turns[older].seq < book.turns[newer].seq
        if common < len(held):
            assert len(held) - common < how.realign_threshold, "too much was given up"
            assert len(book.prompts[older]) < common < len(prompt)
            assert not model.is_extended(older)
    for older, name in pairwise(("", *row.turn_ids)):
        turn = book.turns[name]
        base = turn.base
        if base is not None and turn.base_len == len(book.held[base]) and model.sampled(base):
            assert base in row.turn_ids, "it extends a turn that is not in its row"
        elif base is not None and model.leaving(base) == [name]:
            is_near = len(book.held[base]) - turn.base_len < how.realign_threshold
            common = common_len(book.held[older], book.prompts[name]) if older else 0
            assert not is_near or common >= turn.base_len, "not realigned"


def check_columns(model: Model, row: Row) -> None:
    """Masks, logprobs and versions are those of the turn that sampled the token."""
    samplers = model.samplers(row)
    for position in range(len(row.tokens)):
        name = samplers.get(position)
        logprob = None if row.logprobs is None else row.logprobs[position]
        if name is None:
            assert not row.loss_mask[position], "a token is trained that nobody sampled"
            assert logprob in (None, 0.0)
            assert row.weight_versions[position] is None
            continue
        known = model.logprob(name, position)
        assert row.weight_versions[position] == model.version(name, position)
        if logprob is not None:
            assert logprob == (LOWEST_LOGPROB if known is None else known)
            assert known is not None or not row.loss_mask[position]
    starts = [position for position in samplers if row.loss_mask[position]]
    first = len(model.book.prompts[samplers[min(starts)]])
    assert row.response_length == len(row.tokens) - first
    ends = [[model.version(name, p) for p in model.sampled(name)] for name in row.turn_ids]
    named = [[version for version in versions if version is not None] for versions in ends]
    assert list(row.turn_versions) == [versions[-1] for versions in named if versions]


def check_untrained(model: Model, row: Row, name: str, position: int) -> None:
    """Only a missing logprob keeps a token from being trained in its first row."""
    assert model.logprob(name, position) is None
    if model.book.turns[name].logprobs is None and row.logprobs is None:
        assert any(map(model.is_silent, model.book.turns)), "all of this row is trained"


@settings(max_examples=examples(100))
@given(book=sessions(has_gaps=False), how=options)
def test_whole_turns_are_left_out_for_a_reason_only(book: Book, how: RowOptions):
    """Undelivered and not continued; a retry of one that is kept; or too long."""
    model = Model(book)
    result = build_rows(book, list(book.turns), how)
    kept = {name for row in result.rows for name in row.turn_ids}
    continued = {name for row in result.rows for name in row.turn_ids[:-1]}
    left_out = result.stats.left_out
    absent = [
        turn for name, turn in book.turns.items() if turn.output_ids.size and name not in kept
    ]
    reasons = [left_out[r] for r in ("retry", "undelivered", "over_length") if r in left_out]
    assert sum(reason.turns for reason in reasons) == len(absent)
    assert sum(reason.tokens for reason in reasons) == sum(len(t.output_ids) for t in absent)
    for turn in absent:
        if how.max_len is None or turn.held_len <= how.max_len:
            is_retry = not how.keeps_retries and any(model.twins(turn.id))
            assert is_retry or not book.is_delivered(turn.id), "a turn was lost"
    for name in kept:
        is_read = book.is_delivered(name) or name in continued
        assert is_read or how.max_len is not None, "nobody read it"
    if how.keeps_retries:
        assert "retry" not in left_out
    if how.max_len is None:
        assert "over_length" not in left_out
        check_retries(model, how, kept, continued)


def check_retries(model: Model, how: RowOptions, kept: set[str], continued: set[str]) -> None:
    """Of one prompt, two requests are kept only where the conversation went on from both."""
    for name in kept:
        if how.keeps_retries or name in continued:
            continue
        request_id = model.book.turns[name].request_id
        siblings = [n for n in kept if request_id and model.book.turns[n].request_id == request_id]
        if not continued.intersection(siblings):
            assert kept.isdisjoint(model.twins(name)), "a retry is trained beside its original"


@given(sessions(has_gaps=True), st.integers(0, 6))
@settings(max_examples=examples(60))
def test_rows_of_a_snapshot_are_those_of_its_moment(book, more):
    """Whatever comes, goes or is marked later."""
    turn_ids = tuple(book.turns)
    session = Session(SessionSpec(id="s"), is_opened=True)
    built = build_rows(book, turn_ids)
    snapshot = Snapshot(book, turn_ids)
    for number in range(more):
        book.add(f"late{number}", book.held[turn_ids[0]] + [1], [2, 1], is_delivered=False)
    for turn_id in turn_ids:
        book.undelivered.add(turn_id)
    again = build_rows(snapshot, turn_ids)
    assert as_json(session, again) == as_json(session, built)
    assert again.stats == built.stats
