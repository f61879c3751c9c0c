"""Rows: what is trained of a session, what is not, and why."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from slime_router.rows.forest import plant
from slime_router.rows.masks import LOWEST_LOGPROB
from slime_router.rows.rows import LeftOut, Row, build_rows
from slime_router.types import VersionSpan, token_ids
from tests.effort import opcodes
from tests.turns import Book, trained

P = [1, 2, 3]


@pytest.fixture
def book() -> Book:
    return Book()


def row_turns(result) -> list[tuple[str, ...]]:
    return [row.turn_ids for row in result.rows]


def masks(result) -> list[list[int]]:
    return [row.loss_mask.tolist() for row in result.rows]


# ------------------------------------------------------------------ one conversation, one row


def test_turns_that_extend_each_other_are_one_row(book: Book):
    """Golden: the tokens between two answers are context, both answers are trained."""
    book.add("a", P, [10, 11], versions=["v1", "v1"])
    book.add("b", [*P, 10, 11, 20, 21], [30, 31], versions=["v2", "v2"], finish="length")
    result = book.rows()
    (row,) = result.rows
    assert row.tokens.tolist() == [1, 2, 3, 10, 11, 20, 21, 30, 31]
    assert row.loss_mask.tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert row.logprobs is not None
    assert row.logprobs.tolist() == [0, 0, 0, -1, -2, 0, 0, -1, -2]
    assert row.weight_versions == (None, None, None, "v1", "v1", None, None, "v2", "v2")
    assert row.turn_versions == ("v1", "v2")
    assert (row.row_id, row.turn_ids) == ("b", ("a", "b"))
    assert (row.response_length, row.status, row.finish_reason) == (6, "truncated", "length")
    assert result.stats.left_out == {}
    assert row.routed_experts is None


def test_an_aborted_turn_that_goes_on_is_one_row(book: Book):
    """79: `[P]` gives a, b under 1; resumed with `[P, a, b]` under 2 it gives c."""
    book.add("a", P, [10, 11], versions=[1, 1], finish="abort")
    book.add("b", [*P, 10, 11], [12], versions=[2])
    (row,) = book.rows().rows
    assert row.tokens.tolist() == [*P, 10, 11, 12]
    assert row.loss_mask.tolist() == [0, 0, 0, 1, 1, 1]
    assert row.weight_versions == (None, None, None, 1, 1, 2)
    assert (row.status, row.response_length) == ("completed", 3)


def test_an_abort_at_the_end_is_said(book: Book):
    book.add("a", P, [10], finish="abort")
    (row,) = book.rows().rows
    assert (row.status, row.finish_reason) == ("aborted", "abort")


def test_an_abort_before_the_first_token_is_no_turn_of_the_row(book: Book):
    """79: an empty partial answer, sent again."""
    book.add("empty", P, [], finish="abort")
    book.add("again", P, [10, 11])
    result = book.rows()
    assert row_turns(result) == [("again",)]
    assert result.stats.left_out == {"empty": LeftOut(1, 0)}


def test_spans_of_versions_within_a_turn_stay_per_token(book: Book):
    """78: two turns, at 3 and at 4 then 5; a turn counts under the version it ended with."""
    book.add("a", P, [10], versions=[3])
    book.add("b", [*P, 10, 4], [11, 12], versions=[4, 5])
    book.add("c", [*P, 10, 4, 11, 12, 4], [13])
    (row,) = book.rows().rows
    assert row.weight_versions == (None, None, None, 3, None, 4, 5, None, None)
    assert row.turn_versions == (3, 5)


def test_few_shot_answers_in_the_first_prompt_are_prompt(book: Book):
    """55: nobody sampled them."""
    book.add("a", [1, 50, 51, 2, 52, 53, 3], [10])
    (row,) = book.rows().rows
    assert trained(row) == [10]
    assert row.response_length == 1


def test_a_divergent_retry_behind_few_shots_is_another_row(book: Book):
    """55: two answers to two prompts that share their examples only: two rows, no third."""
    book.add("a", [1, 50, 51, 2], [10])
    book.add("b", [1, 50, 51, 3], [11])
    assert [trained(row) for row in book.rows().rows] == [[10], [11]]


def test_turns_that_are_not_held_are_skipped(book: Book):
    book.add("a", P, [10])
    result = build_rows(book, ["gone", "a", "a"])
    assert row_turns(result) == [("a",)]
    assert result.stats.turns == 1


def test_a_base_of_another_session_is_context(book: Book):
    book.add("theirs", P, [10, 11])
    book.add("ours", [*P, 10, 4], [12], base="theirs")
    result = build_rows(book, ["ours"])
    assert masks(result) == [[0, 0, 0, 0, 0, 1]]
    assert row_turns(result) == [("ours",)]


def test_arrays_of_a_session_without_turns_are_no_rows(book: Book):
    result = book.rows()
    assert result.rows == ()
    assert (result.stats.turns, result.stats.left_out) == (0, {})


# ------------------------------------------------------------------ retries


def test_a_retry_that_nobody_went_on_from_is_dropped(book: Book):
    """51: of two answers to one prompt only the second was continued."""
    book.add("a1", P, [10, 11])
    book.add("a2", P, [12])
    book.add("b", [*P, 12, 4], [13])
    result = book.rows()
    assert row_turns(result) == [("a2", "b")]
    assert result.stats.left_out == {"retry": LeftOut(1, 2)}


def test_retries_that_were_both_continued_are_both_kept(book: Book):
    """51."""
    book.add("a1", P, [10])
    book.add("a2", P, [11])
    book.add("b1", [*P, 10, 4], [12])
    book.add("b2", [*P, 11, 4], [13])
    assert row_turns(book.rows()) == [("a1", "b1"), ("a2", "b2")]


def test_of_retries_that_nobody_continued_the_latest_is_kept(book: Book):
    """51: three tries, two dropped."""
    for number in (1, 2, 3):
        book.add(f"a{number}", P, [10 + number, 20])
    result = book.rows()
    assert row_turns(result) == [("a3",)]
    assert result.stats.left_out == {"retry": LeftOut(2, 4)}


def test_a_retry_in_the_middle_of_a_conversation(book: Book):
    """51: `{c1, c2, c3_retry, c4, c5}` are kept."""
    held = [1]
    for name, token in (("c1", 11), ("c2", 12)):
        book.add(name, held, [token])
        held += [token, 4]
    book.add("c3", held, [13])
    book.add("c3_retry", held, [14])
    held += [14, 4]
    book.add("c4", held, [15])
    book.add("c5", [*held, 15, 4], [16])
    assert row_turns(book.rows()) == [("c1", "c2", "c3_retry", "c4", "c5")]


def test_a_retry_counts_as_continued_by_what_is_kept_only(book: Book):
    """51: nobody read the turn that went on from the first try."""
    book.add("a1", P, [10])
    book.add("lost", [*P, 10, 4], [11], is_delivered=False)
    book.add("a2", P, [12])
    result = book.rows()
    assert row_turns(result) == [("a2",)]
    assert result.stats.left_out == {"undelivered": LeftOut(1, 1), "retry": LeftOut(1, 1)}


def test_retries_can_be_kept(book: Book):
    book.add("a1", P, [10])
    book.add("a2", P, [11])
    result = book.rows(keeps_retries=True)
    assert row_turns(result) == [("a1",), ("a2",)]
    assert result.stats.left_out == {}


def test_samples_of_one_request_are_no_retries_of_each_other(book: Book):
    """Also where the conversation went on from one of them only."""
    for number in (1, 2, 3):
        book.add(f"a{number}", P, [10 + number], request_id="r")
    assert row_turns(book.rows()) == [("a1",), ("a2",), ("a3",)]
    book.add("b", [*P, 12, 4], [20])
    assert row_turns(book.rows()) == [("a1",), ("a3",), ("a2", "b")]


def test_the_latest_request_is_kept_with_all_its_samples(book: Book):
    book.add("a1", P, [11], request_id="r")
    book.add("a2", P, [12], request_id="r")
    book.add("b1", P, [13], request_id="q")
    book.add("b2", P, [14], request_id="q")
    result = book.rows()
    assert row_turns(result) == [("b1",), ("b2",)]
    assert result.stats.left_out["retry"] == LeftOut(2, 2)


def test_a_request_was_used_where_one_of_its_samples_was(book: Book):
    """Its other samples are kept beside it; the later request for the same prompt is not."""
    book.add("a1", P, [11], request_id="r")
    book.add("a2", P, [12], request_id="r")
    book.add("b", P, [13], request_id="q")
    book.add("next", [*P, 11, 4], [20])
    result = book.rows()
    assert row_turns(result) == [("a2",), ("a1", "next")]
    assert result.stats.left_out == {"retry": LeftOut(1, 1)}


def test_a_further_try_at_one_sample_leaves_the_others_of_its_request(book: Book):
    """A plug-in asked again for the first of three: its try is its own request."""
    for number in (1, 2, 3):
        book.add(f"a{number}", P, [10 + number], request_id="r")
    book.add("a1-2", P, [21], request_id="a1-2")
    result = book.rows()
    assert row_turns(result) == [("a2",), ("a3",), ("a1-2",)]
    assert result.stats.left_out == {"retry": LeftOut(1, 1)}
    book.add("b", [*P, 11, 4], [30])
    assert row_turns(book.rows()) == [("a2",), ("a3",), ("a1", "b")]


def test_further_tries_with_another_prompt_are_samples_too(book: Book):
    for number in (1, 2):
        book.add(f"a{number}", P, [10 + number], request_id="r", is_delivered=False)
    for number in (1, 2):
        name = f"a{number}-2"
        book.add(name, [*P, 7], [20 + number], request_id=name)
    result = book.rows()
    assert row_turns(result) == [("a1-2",), ("a2-2",)]
    assert result.stats.left_out == {"undelivered": LeftOut(2, 2)}


def test_equal_prompts_are_retries_whatever_they_were_stored_on(book: Book):
    """A turn that was recorded in between may be the base of the second try."""
    book.add("a", P, [10])
    book.add("b1", [*P, 10, 4], [11], base=None)
    book.add("b2", [*P, 10, 4], [12])
    assert row_turns(book.rows()) == [("a", "b2")]


def test_an_empty_generation_is_no_parent(book: Book):
    """52: `[1,2,3]+[]` and `[1,2,3]+[9,9]` are one chain, whichever came first."""
    book.add("empty", P, [])
    book.add("retry", P, [9, 9])
    book.add("empty2", P, [])
    book.add("next", [*P, 9, 9, 4], [5])
    result = book.rows()
    assert row_turns(result) == [("retry", "next")]
    assert result.stats.left_out == {"empty": LeftOut(2, 0)}


def test_what_was_sent_to_an_empty_generation_is_context(book: Book):
    book.add("a", P, [10])
    book.add("empty", [*P, 10, 4], [])
    book.add("b", [*P, 10, 4, 5], [11])
    assert masks(book.rows()) == [[0, 0, 0, 1, 0, 0, 1]]


def test_only_empty_generations_give_nothing(book: Book):
    """52; also slime's 1.10: an empty response gives no sample."""
    book.add("a", P, [])
    book.add("b", P, [])
    result = book.rows()
    assert result.rows == ()
    assert result.stats.left_out == {"empty": LeftOut(2, 0)}


# ------------------------------------------------------------------ undelivered


def test_an_answer_that_nobody_read_is_left_out(book: Book):
    book.add("a", P, [10])
    book.add("b", [*P, 10, 4], [11, 12], is_delivered=False)
    result = book.rows()
    assert row_turns(result) == [("a",)]
    assert result.stats.left_out == {"undelivered": LeftOut(1, 2)}


def test_an_undelivered_answer_that_was_continued_was_read(book: Book):
    book.add("a", P, [10], is_delivered=False)
    book.add("b", [*P, 10, 4], [11])
    assert row_turns(book.rows()) == [("a", "b")]


def test_undelivered_is_decided_from_the_leaves_upwards(book: Book):
    book.add("a", P, [10], is_delivered=False)
    book.add("b", [*P, 10, 4], [11], is_delivered=False)
    result = book.rows()
    assert result.rows == ()
    assert result.stats.left_out == {"undelivered": LeftOut(2, 2)}


def test_the_latest_delivered_try_is_kept(book: Book):
    book.add("a1", P, [10])
    book.add("a2", P, [11], is_delivered=False)
    assert row_turns(book.rows()) == [("a1",)]


# ------------------------------------------------------------------ branches


def test_compaction_gives_two_rows(book: Book):
    """53: `[1,2,3]+[4,5]`, `[...,6]+[7]`, `[90,91]+[92..95]`: seven tokens are trained."""
    book.add("c1", P, [4, 5])
    book.add("c2", [*P, 4, 5, 6], [7])
    book.add("c3", [90, 91], [92, 93, 94, 95])
    result = book.rows()
    assert row_turns(result) == [("c1", "c2"), ("c3",)]
    assert result.stats.trained_tokens == 7


def test_a_compaction_may_carry_an_answer(book: Book):
    """54: it goes on from the first answer, and does not train it again."""
    book.add("a", P, [10, 11])
    book.add("b", [*P, 10, 11, 4], [12])
    book.add("compacted", [*P, 10, 11, 60, 61], [13])
    result = book.rows()
    assert row_turns(result) == [("a", "b"), ("a", "compacted")]
    assert masks(result)[1] == [0, 0, 0, 0, 0, 0, 0, 1]


def test_an_answer_carried_into_another_prompt_is_context(book: Book):
    """54: the same tokens after other tokens were not sampled there."""
    book.add("a", P, [10, 11])
    book.add("compacted", [90, 10, 11, 91], [12])
    assert masks(book.rows()) == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]


def test_a_shared_answer_is_trained_in_the_earliest_row_only(book: Book):
    """slime 2.10: `call` trains in the first leaf; its logprobs stand in both."""
    book.add("call", P, [10, 11], versions=[1, 1])
    book.add("x", [*P, 10, 11, 4], [12])
    book.add("y", [*P, 10, 11, 5], [13])
    result = book.rows()
    assert masks(result) == [[0, 0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 1]]
    second = result.rows[1]
    assert second.logprobs is not None
    assert second.logprobs.tolist() == [0, 0, 0, -1, -2, 0, -1]
    assert second.weight_versions[3:5] == (1, 1)
    assert [row.response_length for row in result.rows] == [4, 1]


def test_three_leaves_train_what_they_share_once(book: Book):
    """slime 3.7; 83: the sum of all masks is the number of sampled tokens."""
    book.add("a1", P, [10])
    book.add("a2", [*P, 10, 4], [11])
    for number in (1, 2, 3):
        book.add(f"leaf{number}", [*P, 10, 4, 11, 50 + number], [20 + number])
    result = book.rows()
    assert [trained(row) for row in result.rows] == [[10, 11, 21], [22], [23]]
    assert result.stats.trained_tokens == 5


def test_two_candidate_rewrites_are_three_leaves(book: Book):
    """slime 3.4: the rewritten answer is neither of the two that were sampled."""
    book.add("a", P, [10, 9], request_id="r")
    book.add("b", P, [11, 9], request_id="r")
    book.add("rewritten", [*P, 12, 9, 4], [13])
    result = book.rows()
    assert row_turns(result) == [("a",), ("b",), ("rewritten",)]
    assert masks(result)[2] == [0, 0, 0, 0, 0, 0, 1]


def test_drift_inside_the_prompt_is_a_fork(book: Book):
    """slime 2.3: nothing of the first answer can be kept in the second row."""
    book.add("a", P, [10, 11])
    book.add("b", [1, 7, 3, 10, 11, 4], [12])
    assert [trained(row) for row in book.rows().rows] == [[10, 11], [12]]


def test_equal_answers_to_one_prompt_are_two_turns(book: Book):
    """Twins: the conversation goes on from one of them; the other is a retry."""
    book.add("a1", P, [10])
    book.add("a2", P, [10])
    book.add("b", [*P, 10, 4], [11])
    result = book.rows()
    assert row_turns(result) == [("a2", "b")]
    assert result.stats.left_out == {"retry": LeftOut(1, 1)}


# ------------------------------------------------------------------ drift


def test_a_wobble_at_the_end_of_an_answer_is_realigned(book: Book):
    """Golden: `[10, 11]` came back as `[10, 12]`; the part before the drift stays trained.

    slime's 2.4 is the same shape. Its rewrite-merge (3.1) gives up the whole abandoned answer;
    here no token that was sampled after this very context is lost.
    """
    book.add("a", P, [10, 11], versions=[1, 2])
    book.add("b", [*P, 10, 12], [30, 31])
    result = book.rows()
    (row,) = result.rows
    assert row.tokens.tolist() == [1, 2, 3, 10, 12, 30, 31]
    assert row.loss_mask.tolist() == [0, 0, 0, 1, 0, 1, 1]
    assert row.logprobs is not None
    assert row.logprobs.tolist() == [0, 0, 0, -1, 0, -1, -2]
    assert row.weight_versions == (None, None, None, 1, None, None, None)
    assert result.stats.left_out == {"realigned": LeftOut(1, 1)}


def test_drift_as_long_as_the_threshold_is_a_fork(book: Book):
    """Golden: `[10..13]` came back as `[10, 99, 88, 77]`: three tokens, two may not be reached."""
    book.add("a", P, [10, 11, 12, 13])
    book.add("b", [*P, 10, 99, 88, 77], [30, 31, 32])
    assert masks(book.rows(realign_threshold=2)) == [
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert len(book.rows(realign_threshold=3).rows) == 2
    assert len(book.rows(realign_threshold=4).rows) == 1


def test_the_gate_is_the_length_of_the_drift_not_of_the_new_turn(book: Book):
    """Golden: `[10..15]` came back as `[99, 88]`; the new turn is shorter than the threshold."""
    book.add("a", P, [10, 11, 12, 13, 14, 15])
    book.add("b", [*P, 99, 88], [30])
    assert [trained(row) for row in book.rows(realign_threshold=3).rows] == [
        [10, 11, 12, 13, 14, 15],
        [30],
    ]


@pytest.mark.parametrize("threshold", [0, 1])
def test_no_drift_is_realigned_below_two(book: Book, threshold: int):
    """slime 2.6: a threshold of nothing forks."""
    book.add("a", P, [10, 11])
    book.add("b", [*P, 10, 12], [30])
    book.add("c", [*P, 10, 12, 30, 4], [31])
    assert row_turns(book.rows(realign_threshold=threshold)) == [("a",), ("b", "c")]


def test_a_short_turn_never_zeroes_a_long_answer(book: Book):
    """81: an answer of 28,404 tokens left 18,896 tokens before its end, by a turn of 61."""
    prompt = list(range(30154))
    answer = list(range(100_000, 128_404))
    realign_at = 39662
    assert len(prompt) + len(answer) - realign_at == 18_896
    book.add("long", prompt, answer)
    held = [*prompt, *answer]
    book.add("short", [*held[:realign_at], 126724, 5], list(range(61)))
    result = book.rows()
    assert [int(row.loss_mask.sum()) for row in result.rows] == [28_404, 61]
    assert [row.response_length for row in result.rows] == [28_404, 61]


def test_a_short_turn_behind_a_short_drift_keeps_the_long_answer(book: Book):
    """81: the same with two tokens of drift: one row, two tokens fewer."""
    prompt, answer = list(range(30154)), list(range(100_000, 128_404))
    book.add("long", prompt, answer)
    book.add("short", [*prompt, *answer[:-2], 126724, 5], list(range(61)))
    (row,) = book.rows().rows
    assert int(row.loss_mask.sum()) == 28_402 + 61
    assert row.response_length == 28_404 + 61


def test_drift_in_an_earlier_turn_is_a_fork(book: Book):
    """slime 2.7: replacing the end of the first answer would undo the second."""
    book.add("a", P, [10, 11])
    book.add("b", [*P, 10, 11, 4], [12, 13])
    book.add("c", [*P, 10, 99, 4, 12, 13, 5], [14])
    result = book.rows()
    assert row_turns(result) == [("a", "b"), ("c",)]
    assert masks(result)[1] == [0] * 9 + [1]


def test_a_sampled_stop_token_gives_way(book: Book):
    """The stop token is the next role's marker, another one than the client's turn has."""
    book.add("a", P, [10, 77])
    book.add("b", [*P, 10, 78, 4], [11, 77], base="a")
    book.add("c", [*P, 10, 78, 4, 11, 78], [12], base="b")
    result = book.rows()
    assert row_turns(result) == [("a", "b", "c")]
    assert masks(result) == [[0, 0, 0, 1, 0, 0, 1, 0, 1]]
    assert result.stats.left_out == {"realigned": LeftOut(2, 2)}


def test_a_long_session_whose_stop_tokens_all_give_way_is_one_row(book: Book):
    """88: no fork storm."""
    prompt = list(P)
    for number in range(50):
        base = f"t{number - 1}" if number else None
        book.add(f"t{number}", prompt, [100 + number, 9, 77], base=base)
        prompt = [*prompt, 100 + number, 9, 78, 5]
    result = book.rows()
    assert [len(turns) for turns in row_turns(result)] == [50]
    assert result.stats.left_out == {"realigned": LeftOut(49, 49)}


def test_drift_behind_other_turns_is_found_among_siblings(book: Book):
    """The base is the last turn that is held wholly; the answer that drifts is its child."""
    book.add("a", P, [10])
    book.add("b", [*P, 10, 4], [11, 12, 13])
    book.add("c", [*P, 10, 4, 11, 12, 99, 5], [14])
    assert book.turns["c"].base == "a"
    result = book.rows()
    assert row_turns(result) == [("a", "b", "c")]
    assert masks(result) == [[0, 0, 0, 1, 0, 1, 1, 0, 0, 1]]


def test_a_turn_stored_on_a_fork_still_goes_on_from_what_it_extends(book: Book):
    """Stored on `b`, which it leaves where `b` left `a`: the tokens are all of `a`."""
    book.add("a", P, [10, 11, 12])
    book.add("b", [*P, 10, 99], [13], base="a")
    book.add("c", [*P, 10, 11, 12, 4], [14], base="b")
    result = book.rows()
    assert row_turns(result) == [("b",), ("a", "c")]
    assert [trained(row) for row in result.rows] == [[13], [10, 11, 12, 14]]


@pytest.mark.parametrize(("drift_len", "rows"), [(15, 1), (16, 2)])
def test_the_gate_is_the_same_where_the_store_knows_of_the_drift(
    book: Book, drift_len: int, rows: int
):
    """Sixteen tokens are too many by default, fifteen are not."""
    answer = list(range(100, 130))
    book.add("a", P, answer)
    book.add("b", [*P, *answer[:-drift_len], 99], [5], base="a")
    assert len(book.rows().rows) == rows


def test_a_fork_inside_an_answer_stands_beside_it(book: Book):
    """What was before that answer is shared, and trained once."""
    book.add("a", P, [10])
    book.add("b", [*P, 10, 4], [11, 12, 13, 14])
    book.add("c", [*P, 10, 4, 11, 99], [15], base="b")
    result = book.rows(realign_threshold=2)
    assert row_turns(result) == [("a", "b"), ("a", "c")]
    assert [trained(row) for row in result.rows] == [[10, 11, 12, 13, 14], [15]]


def test_an_answer_that_was_continued_exactly_is_not_realigned(book: Book):
    book.add("a", P, [10, 11])
    book.add("b", [*P, 10, 12, 4], [13])
    assert row_turns(book.rows()) == [("a", "b")]
    book.add("c", [*P, 10, 11, 4], [14])
    assert row_turns(book.rows()) == [("b",), ("a", "c")]


def test_an_answer_is_realigned_by_one_prompt_only(book: Book):
    """The earliest; the other stands beside, and nothing is trained twice."""
    book.add("a", P, [10, 11])
    book.add("b", [*P, 10, 12, 4], [13])
    book.add("c", [*P, 10, 14, 4], [15])
    result = book.rows()
    assert row_turns(result) == [("a", "b"), ("c",)]
    assert [trained(row) for row in result.rows] == [[10, 13], [15]]


def test_samples_behind_a_drift_share_it(book: Book):
    """Two samples of one drifting prompt: the answer before is trained once, to the drift."""
    book.add("a", P, [10, 11])
    book.add("b1", [*P, 10, 12], [13], request_id="r")
    book.add("b2", [*P, 10, 12], [14], request_id="r")
    result = book.rows()
    assert row_turns(result) == [("a", "b1"), ("a", "b2")]
    assert [trained(row) for row in result.rows] == [[10, 13], [14]]
    assert result.stats.left_out == {"realigned": LeftOut(1, 1)}


def test_a_retry_of_a_drifting_prompt_takes_its_place(book: Book):
    book.add("a", P, [10, 11])
    book.add("b1", [*P, 10, 12], [13])
    book.add("b2", [*P, 10, 12], [14])
    result = book.rows()
    assert row_turns(result) == [("a", "b2")]
    assert result.stats.left_out == {"realigned": LeftOut(1, 1), "retry": LeftOut(1, 1)}


def test_an_answer_is_whole_again_where_the_drifting_turn_is_left_out(book: Book):
    book.add("a", P, [10, 11])
    book.add("b", [*P, 10, 12], [13], is_delivered=False)
    result = book.rows()
    assert [trained(row) for row in result.rows] == [[10, 11]]
    assert result.stats.left_out == {"undelivered": LeftOut(1, 1)}


def test_of_several_answers_the_one_with_most_in_common_is_realigned(book: Book):
    book.add("a", P, [10, 11, 12, 13], request_id="r")
    book.add("b", P, [10, 11, 20, 21], request_id="r")
    book.add("c", [*P, 10, 11, 12, 14], [15])
    result = book.rows()
    assert row_turns(result) == [("b",), ("a", "c")]


def test_of_answers_with_as_much_in_common_the_latest_is_realigned(book: Book):
    book.add("a", P, [10, 11], request_id="r")
    book.add("b", P, [10, 12], request_id="r")
    book.add("c", [*P, 10, 14], [15])
    assert row_turns(book.rows()) == [("a",), ("b", "c")]


def test_an_answer_too_far_from_its_end_does_not_hide_a_near_one(book: Book):
    """Both share one token with the prompt; one of them would give up twenty tokens."""
    book.add("near", P, [10, 11], request_id="r")
    book.add("far", P, [10, *range(20, 40)], request_id="r")
    book.add("c", [*P, 10, 14], [15])
    assert row_turns(book.rows()) == [("far",), ("near", "c")]


def test_a_prompt_that_stops_inside_an_answer_is_no_drift(book: Book):
    """The client took back the end of an answer and let the model write on."""
    book.add("a", P, [10, 11, 12])
    book.add("b", [*P, 10], [13], base="a")
    assert [trained(row) for row in book.rows().rows] == [[10, 11, 12], [13]]


def test_a_turn_realigns_only_what_was_there_before_it(book: Book):
    """A later answer that happens to begin alike was not what the prompt quotes."""
    book.add("b", [*P, 10, 12], [13], base=None)
    book.add("a", P, [10, 11], base=None)
    assert row_turns(book.rows()) == [("b",), ("a",)]


# ------------------------------------------------------------------ missing logprobs


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_a_missing_logprob_is_masked_and_counted(book: Book, missing: float | None):
    """76: `[-0.25, F, F, -12.3456789]`, two counted; nothing shifts, no NaN."""
    book.add("a", P, [10, 11, 12, 13], logprobs=[-0.25, missing, None, -12.3456789])
    result = book.rows()
    (row,) = result.rows
    assert row.loss_mask.tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert row.logprobs is not None
    assert row.logprobs.tolist() == [0, 0, 0, -0.25, LOWEST_LOGPROB, LOWEST_LOGPROB, -12.3456789]
    assert LOWEST_LOGPROB == -9999.0
    assert result.stats.left_out == {"missing_logprobs": LeftOut(1, 2)}


def test_rows_without_any_logprobs_are_trained(book: Book):
    """They were not asked for (77: never a list of zeros that looks real)."""
    book.add("a", P, [10], logprobs=None)
    book.add("b", [*P, 10, 4], [11], logprobs=None)
    (row,) = book.rows().rows
    assert row.logprobs is None
    assert trained(row) == [10, 11]


def test_turns_without_logprobs_beside_others_are_masked(book: Book):
    book.add("a", P, [10], logprobs=None)
    book.add("b", [*P, 10, 4], [11])
    result = book.rows()
    (row,) = result.rows
    assert row.logprobs is not None
    assert row.logprobs.tolist() == [0, 0, 0, LOWEST_LOGPROB, 0, -1]
    assert trained(row) == [11]
    assert row.response_length == 1
    assert result.stats.left_out == {"missing_logprobs": LeftOut(1, 1)}


def test_a_row_is_not_truncated_by_a_turn_of_which_it_trains_no_token(book: Book):
    book.add("a", P, [10], logprobs=[None])
    book.turns["a"] = replace(book.turns["a"], uncaptured="refused")
    book.add("b", [*P, 10, 4], [11])
    result = book.rows()
    (row,) = result.rows
    assert trained(row) == [11]
    assert row.uncaptured == ""
    assert result.stats.truncated_sampling == {}


def test_a_row_that_trains_only_turns_without_logprobs_has_none(book: Book):
    """Whatever the turn before has, which another row trains."""
    book.add("a", P, [10])
    book.add("x", [*P, 10, 4], [11])
    book.add("y", [*P, 10, 5], [12], logprobs=None)
    result = book.rows()
    assert [row.logprobs is None for row in result.rows] == [False, True]
    assert trained(result.rows[1]) == [12]
    assert result.stats.left_out == {}


def test_a_missing_logprob_is_counted_once_over_rows(book: Book):
    """The second row holds the same tokens as context: finite, and not counted again."""
    book.add("a", P, [10, 11], logprobs=[None, -1.0])
    book.add("x", [*P, 10, 11, 4], [12])
    book.add("y", [*P, 10, 11, 5], [13])
    result = book.rows()
    assert result.stats.left_out == {"missing_logprobs": LeftOut(1, 1)}
    second = result.rows[1].logprobs
    assert second is not None
    assert second.tolist() == [0, 0, 0, LOWEST_LOGPROB, -1, 0, -1]


def test_a_row_with_nothing_to_train_is_not_given_out(book: Book):
    book.add("a", P, [10, 11], logprobs=[None, None])
    result = book.rows()
    assert result.rows == ()
    assert result.stats.left_out == {"missing_logprobs": LeftOut(1, 2)}


# ------------------------------------------------------------------ longest length


def test_a_row_is_cut_at_the_last_turn_that_fits(book: Book):
    """85: the turn that crosses the limit is out whole."""
    book.add("a", P, [10])
    book.add("b", [*P, 10, 4], [11])
    book.add("c", [*P, 10, 4, 11, 4], [12, 13])
    result = book.rows(max_len=8)
    (row,) = result.rows
    assert row.turn_ids == ("a", "b")
    assert (row.row_id, row.status, row.finish_reason) == ("b", "truncated", "stop")
    assert result.stats.left_out == {"over_length": LeftOut(1, 2)}
    assert book.rows(max_len=9).rows[0].status == "completed"


def test_a_first_turn_that_does_not_fit_gives_no_row(book: Book):
    """85: all truncated, and the reason is given."""
    book.add("a", P, [10, 11])
    book.add("b", [*P, 10, 11, 4], [12])
    result = book.rows(max_len=4)
    assert result.rows == ()
    assert result.stats.left_out == {"over_length": LeftOut(2, 3)}


def test_one_branch_that_is_too_long_does_not_repeat_the_other(book: Book):
    book.add("a", P, [10])
    book.add("long", [*P, 10, 4, 4, 4, 4], [11])
    book.add("short", [*P, 10, 4], [12])
    result = book.rows(max_len=6)
    assert row_turns(result) == [("a", "short")]
    assert masks(result) == [[0, 0, 0, 1, 0, 1]]
    assert result.rows[0].status == "completed"


def test_what_is_too_long_still_shows_that_the_answer_was_read(book: Book):
    """What is a retry, or undelivered, does not depend on the trainer's limit."""
    book.add("a1", P, [10], is_delivered=False)
    book.add("b", [*P, 10, 4], [11])
    book.add("a2", P, [12])
    result = book.rows(max_len=4)
    assert row_turns(result) == [("a1",)]
    assert set(result.stats.left_out) == {"retry", "over_length"}


def test_an_answer_too_long_by_what_drifted_off_is_no_reason_to_cut(book: Book):
    book.add("a", P, [10, 11, 12, 13, 14])
    book.add("b", [*P, 10, 99], [15])
    result = book.rows(max_len=6)
    assert row_turns(result) == [("a", "b")]
    assert masks(result) == [[0, 0, 0, 1, 0, 1]]


# ------------------------------------------------------------------ size


def test_deep_sessions_do_not_recurse(book: Book):
    """12, 88: 1,100 turns that extend each other are one row."""
    prompt = [1]
    for number in range(1100):
        base = f"t{number - 1}" if number else None
        book.add(f"t{number}", prompt, [number], base=base)
        prompt = [*prompt, number, 5]
    (row,) = book.rows().rows
    assert len(row.turn_ids) == 1100
    assert int(row.loss_mask.sum()) == 1100


@pytest.mark.parametrize("is_drifting", [False, True])
def test_siblings_are_not_compared_with_one_another(book: Book, is_drifting: bool):
    """4,000 prompts after one turn, 8 million pairs; half of them may leave another's answer."""
    root = book.add("root", P, [10])
    turns = [root]
    for number in range(4000):
        prompt = [number - 1, 7, 9] if is_drifting and number % 2 else [number]
        turns.append(
            replace(
                root,
                id=f"t{number}",
                base="root",
                base_len=root.held_len,
                prompt_ids=token_ids(prompt),
                output_ids=token_ids([7, 8]),
                seq=number + 2,
            )
        )
    started = time.process_time()
    nodes = plant(book, turns, 16)
    assert time.process_time() - started < 4
    parents = {node.parent.turn.id for node in nodes if node.parent is not None}
    assert len(parents) == (2001 if is_drifting else 1)


def test_a_session_of_a_hundred_thousand_tokens_is_quick(book: Book):
    """200 turns, in some 360,000 instructions: a loop over the tokens would double them."""
    turn = book.add("t0", range(500), range(100))
    for number in range(1, 200):
        turn = replace(
            turn,
            id=f"t{number}",
            base=turn.id,
            base_len=turn.held_len,
            prompt_ids=token_ids(range(400)),
            weight_versions=(VersionSpan("v1", 0, 100),),
            seq=number + 1,
        )
        book.turns[turn.id] = turn
    book.held[turn.id] = [0] * turn.held_len
    made: list[Row] = []
    cost = opcodes(lambda: made.extend(build_rows(book, list(book.turns)).rows))
    (row,) = made
    assert (len(row.turn_ids), int(row.loss_mask.sum())) == (200, 20_000)
    assert cost < 450_000, cost
