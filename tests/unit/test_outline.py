"""Outlines: each turn has one cause, and rows without arrays count as rows with them."""

from __future__ import annotations

from slime_router.rows.outline import Outline, outline
from slime_router.rows.rows import RowOptions
from tests.turns import Book


def drawn() -> Book:
    """The session of the drawing in docs/trajectories.md."""
    book = Book()

    def add(name: str, prompt: str, sampled: str, **fields: str) -> None:
        book.add(name, [ord(c) for c in prompt], [ord(c) for c in sampled], **fields)  # type: ignore[arg-type]

    add("t1", "su", "AAA")
    add("t2", "suAAAv", "BB")
    add("t3", "suAAAvBBw", "CC")
    add("t4", "suAAAvBBw", "DD")
    add("t5", "suAAAx", "EE")
    add("t6", "sy", "FF", request_id="r")
    add("t7", "sy", "GG", request_id="r")
    add("t8", "qz", "HHHH")
    add("t9", "qzHHhk", "II", base="t8")
    return book


def causes(found: Outline) -> dict[str, tuple[str, str | None, int]]:
    return {place.turn.id: (place.cause, place.of, place.departs_at) for place in found.places}


def test_each_turn_of_the_drawing_has_its_cause():
    found = outline(book := drawn(), list(book.turns))
    assert causes(found) == {
        "t1": ("start", None, 0),
        "t2": ("extension", "t1", 5),
        "t3": ("extension", "t2", 8),
        "t4": ("retry", "t3", 9),
        "t5": ("fork", "t1", 5),
        "t6": ("start", None, 0),
        "t7": ("sample", "t6", 2),
        "t8": ("start", None, 0),
        "t9": ("realigned", "t8", 4),
    }
    assert {p.turn.id: p.parent for p in found.places if p.parent} == {
        "t2": "t1", "t3": "t2", "t4": "t2", "t5": "t1", "t9": "t8"
    }  # fmt: skip
    assert {p.turn.id: p.left_out for p in found.places if p.left_out} == {"t3": "retry"}


def test_long_drift_is_named_as_what_it_departs_from():
    found = outline(book := drawn(), list(book.turns), RowOptions(realign_threshold=0))
    assert causes(found)["t9"] == ("drift", "t8", 4)
    assert [row.row_id for row in found.rows] == ["t4", "t5", "t6", "t7", "t8", "t9"]


def test_a_prompt_that_departs_inside_an_older_prompt_is_a_branch():
    book = Book()
    book.add("t1", [1, 2, 3], [4, 5])
    book.add("t2", [1, 2, 9], [6], base="t1")
    assert causes(outline(book, ["t1", "t2"]))["t2"] == ("branch", "t1", 2)


def test_further_tries_at_samples_are_retries_of_these_and_samples_of_each_other():
    """Their requests are their own; a plug-in may have changed the prompt of all of them."""
    book = Book()
    for number in (1, 2):
        book.add(f"a{number}", [1], [10 + number], request_id="r")
    for number in (1, 2):
        book.add(f"a{number}-2", [1, 7], [20 + number], request_id=f"a{number}-2")
    book.add("a2-3", [1], [31], request_id="a2-3")
    book.add("b1", [1], [41], request_id="q")
    book.add("b2", [1], [42], request_id="q")
    assert causes(outline(book, list(book.turns))) == {
        "a1": ("start", None, 0),
        "a2": ("sample", "a1", 1),
        "a1-2": ("start", None, 0),
        "a2-2": ("sample", "a1-2", 2),
        "a2-3": ("retry", "a2", 1),
        "b1": ("retry", "a1", 1),
        "b2": ("sample", "b1", 1),
    }


def test_turns_without_a_token_are_there_and_say_so():
    book = Book()
    book.add("t1", [1, 2], [])
    book.add("t2", [1, 2, 3], [4])
    found = outline(book, ["t1", "t2"])
    assert causes(found)["t1"] == ("empty", None, 0)
    assert [place.left_out for place in found.places] == ["empty", None]


def test_an_outline_counts_as_the_rows_do():
    book = drawn()
    book.add("t10", [5], [6, 7, 8], logprobs=[-1.0, None, -2.0])
    book.add("t11", [5, 6], [7], is_delivered=False)
    for options in (RowOptions(), RowOptions(0), RowOptions(16, 8), RowOptions(16, None, True)):
        rows = book.rows(
            realign_threshold=options.realign_threshold,
            max_len=options.max_len,
            keeps_retries=options.keeps_retries,
        )
        found = outline(book, list(book.turns), options)
        assert found.stats == rows.stats
        assert [(r.row_id, r.tokens, r.trained) for r in found.rows] == [
            (row.row_id, len(row.tokens), int(row.loss_mask.sum())) for row in rows.rows
        ]
