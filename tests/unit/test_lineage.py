"""Lineage: what a turn is to its session, and how turns are left out by what they are."""

from __future__ import annotations

import pytest

from slime_router.rows.lineage import SHINGLE, shingles
from slime_router.rows.rows import LeftOut, RowSet
from slime_router.types import token_ids
from tests.turns import Book

HEAD = list(range(100, 120))  # a system prompt
SUMMARY = list(range(200, 212))
CALL = (("call_1", "task"),)


@pytest.fixture
def book() -> Book:
    return Book()


def lineage(result: RowSet) -> dict[str, tuple[str, str | None]]:
    return {
        each.turn.id: (each.lineage.kind, each.lineage.parent_turn)
        for row in result.rows
        for each in row.turns
    }


def with_subagent(book: Book) -> None:
    """`main` calls a sub-agent of two turns, and goes on with its result."""
    book.add("main", [*HEAD, 1], [2, 3], calls=CALL)
    book.add("sub", [50, 51], [52])
    book.add("sub2", [50, 51, 52, 53], [54])
    book.add("after", [*HEAD, 1, 2, 3, 4], [5])


def with_compaction(book: Book) -> None:
    """`long` is summarized by `summary`, from which `new` goes on."""
    book.add("long", [*HEAD, 1], [2, 3])
    book.add("summary", [*HEAD, 1, 2, 3, 9], SUMMARY)
    book.add("new", [*HEAD, 8, *SUMMARY[:-1], 7], [6])
    book.add("newer", [*HEAD, 8, *SUMMARY[:-1], 7, 6, 5], [4])


def test_a_conversation_is_a_line_of_parents(book: Book):
    book.add("a", [1], [2])
    book.add("b", [1, 2, 3], [4])
    assert lineage(book.rows()) == {"a": ("main", None), "b": ("main", "a")}


def test_what_begins_while_a_call_is_open_serves_it(book: Book):
    with_subagent(book)
    assert lineage(book.rows()) == {
        "main": ("main", None),
        "sub": ("subagent", "main"),
        "sub2": ("subagent", "sub"),
        "after": ("main", "main"),
    }


def test_a_call_that_nothing_answers_has_no_subagents(book: Book):
    """Agents that end with a call, and then begin the next task in the same session."""
    book.add("last", [*HEAD, 1], [2, 3], calls=CALL)
    book.add("next", [50, 51], [52])
    assert lineage(book.rows())["next"] == ("main", None)


def test_of_two_open_calls_the_one_that_is_quoted_is_served(book: Book):
    task = list(range(60, 75))
    book.add("outer", [*HEAD, 1], [2, 3], calls=CALL)
    book.add("middle", [40], [41, *task, 42], calls=CALL)
    book.add("other", [30], [31])
    book.add("inner", [50, *task], [52])
    book.add("middle-after", [40, 41, *task, 42, 43], [44])
    book.add("outer-after", [*HEAD, 1, 2, 3, 4], [5])
    found = lineage(book.rows())
    assert found["middle"] == ("subagent", "outer")
    assert found["inner"] == ("subagent", "middle")
    assert found["other"] == ("subagent", "outer"), "none is quoted: the oldest"


def test_a_summary_that_a_conversation_goes_on_from_is_a_compaction(book: Book):
    with_compaction(book)
    assert lineage(book.rows()) == {
        "long": ("main", None),
        "summary": ("compaction", "long"),
        "new": ("main", "summary"),
        "newer": ("main", "new"),
    }


def test_a_summary_by_a_prompt_of_its_own_is_one_too(book: Book):
    book.add("long", [*HEAD, 1], [2, 3])
    book.add("summary", [70, 71, 1, 2, 3], SUMMARY)
    book.add("new", [*HEAD, 8, *SUMMARY, 7], [6])
    assert lineage(book.rows())["summary"] == ("compaction", None)
    assert lineage(book.rows())["new"] == ("main", "summary")


@pytest.mark.parametrize("case", ["other head", "old one goes on", "little quoted", "has calls"])
def test_what_looks_like_a_compaction_and_is_not(book: Book, case: str):
    quoted = SUMMARY[: SHINGLE if case == "little quoted" else None]
    head = [90, 91] if case == "other head" else HEAD
    book.add("long", [*HEAD, 1], SUMMARY, calls=CALL if case == "has calls" else ())
    book.add("new", [*head, 8, *quoted, 7], [6])
    if case == "old one goes on":
        book.add("longer", [*HEAD, 1, *SUMMARY, 2], [3])
    found = lineage(book.rows())
    assert found["long"] == ("main", None)
    assert found["new"] == ("main", None)


def test_what_the_agent_says_wins(book: Book):
    with_subagent(book)
    book.add("own", [80], [81], said_kind="subagent")
    book.add("own2", [80, 81, 82], [83])
    book.add("squeezed", [*HEAD, 1, 2, 3, 4, 5, 6], [7], said_kind="compaction")
    found = lineage(book.rows())
    assert found["own"] == ("subagent", None)
    assert found["own2"] == ("subagent", "own")
    assert found["squeezed"] == ("compaction", "after")


def test_a_subagent_that_says_that_it_is_not_one_is_not(book: Book):
    book.add("main", [*HEAD, 1], [2, 3], calls=CALL)
    book.add("sub", [50, 51], [52], said_kind="main")
    book.add("sub2", [50, 51, 52, 53], [54])
    book.add("after", [*HEAD, 1, 2, 3, 4], [5])
    found = lineage(book.rows())
    assert (found["sub"][0], found["sub2"][0]) == ("main", "main")


def test_replaced_replies_are_retries_where_they_are_kept(book: Book):
    book.add("first", [1], [2])
    book.add("second", [1], [3])
    book.add("after", [1, 3, 4], [5])
    kept = book.rows(keeps_retries=True)
    assert lineage(kept)["first"] == ("retry", None)
    assert lineage(kept)["second"] == ("main", None)
    left = book.rows(keeps_retries=True, leave_out=["retry"])
    assert left.stats.left_out == {"retry": LeftOut(1, 1)}
    assert [row.turn_ids for row in left.rows] == [("second", "after")]


# ------------------------------------------------------------------ leaving out


def test_subagents_are_left_out_with_all_their_turns(book: Book):
    with_subagent(book)
    result = book.rows(leave_out=["subagent"])
    assert [row.turn_ids for row in result.rows] == [("main", "after")]
    assert result.stats.left_out == {"subagent": LeftOut(2, 2)}


def test_a_compaction_is_left_out_and_what_it_was_made_of_is_trained(book: Book):
    with_compaction(book)
    result = book.rows(leave_out=["compaction"])
    assert [row.turn_ids for row in result.rows] == [("long",), ("new", "newer")]
    assert result.rows[0].tokens.tolist() == [*HEAD, 1, 2, 3]
    assert result.stats.left_out == {"compaction": LeftOut(1, len(SUMMARY))}


def test_a_turn_that_others_continue_stays_as_context(book: Book):
    book.add("a", [1], [2, 3], tags=("draft",))
    book.add("b", [1, 2, 3, 4], [5])
    book.add("c", [1, 2, 3, 6], [7])
    result = book.rows(leave_out=["tag:draft"])
    assert [row.turn_ids for row in result.rows] == [("a", "b"), ("a", "c")]
    assert [row.loss_mask.tolist() for row in result.rows] == [[0, 0, 0, 0, 1]] * 2
    assert [row.response_length for row in result.rows] == [1, 1]
    assert result.stats.left_out == {"tag:draft": LeftOut(1, 2)}


def test_a_line_of_left_out_turns_ends_before_them(book: Book):
    book.add("a", [1], [2])
    book.add("b", [1, 2, 3], [4], tags=("x", "draft"))
    book.add("c", [1, 2, 3, 4, 5], [6], tags=("draft",))
    result = book.rows(leave_out=["tag:draft"])
    assert [row.turn_ids for row in result.rows] == [("a",)]
    assert result.rows[0].status == "completed"


def test_a_row_that_was_cut_says_so_where_a_rule_shortens_it_more(book: Book):
    book.add("a", [1], [2])
    book.add("b", [1, 2, 3], [4], tags=("draft",))
    book.add("c", [1, 2, 3, 4, 5], [6])
    result = book.rows(leave_out=["tag:draft"], max_len=5)
    assert [(row.turn_ids, row.status) for row in result.rows] == [(("a",), "truncated")]
    assert result.stats.left_out == {"over_length": LeftOut(1, 1), "tag:draft": LeftOut(1, 1)}


def test_shingles_are_equal_where_the_tokens_are():
    ids = token_ids(range(20))
    assert len(shingles(ids[: SHINGLE - 1])) == 0
    assert shingles(ids[3:]).tolist() == shingles(ids)[3:].tolist()
    assert len(set(shingles(ids).tolist())) == 20 - SHINGLE + 1
