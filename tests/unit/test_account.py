"""The account of a turn: its words come back as they were said."""

from __future__ import annotations

import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.trajectory.turn import Account, packed_words

TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)  # halves included
REPLY = {"role": "assistant", "content": "Hi"}


def account(words: bytes | None) -> Account:
    return Account(started=1.0, duration_s=2.0, request_id="q", rid="r", words=words)


@given(said=st.lists(st.fixed_dictionaries({"content": TEXTS}), max_size=3), reply=TEXTS)
def test_whatever_was_said_is_read_again(said: list[dict[str, Any]], reply: str) -> None:
    words = packed_words(said, {"content": reply})
    assert account(words).said() == (said, {"content": reply})


def test_words_are_small_and_any_reader_of_json_reads_them() -> None:
    assert packed_words([{"content": "é"}], REPLY) == orjson.dumps(
        {"messages": [{"content": "é"}], "reply": REPLY}
    )
    half = packed_words([{"content": "\ud83d", "name": "u"}], {})
    assert half == b'{"messages":[{"content":"\\ud83d","name":"u"}],"reply":{}}'


def test_words_take_as_much_memory_as_they_are_long() -> None:
    said: list[dict[str, Any]] = [{"role": "user", "content": "x" * 900}]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        words = packed_words(said, REPLY)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < len(words) + 200


@pytest.mark.parametrize("depth", [10, 300])
def test_what_is_nested_deeper_than_the_fast_writer_goes_is_kept(depth: int) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = [deep]
    said = [{"content": deep}]
    assert account(packed_words(said, REPLY)).said() == (said, REPLY)


def test_without_words_nothing_that_anybody_said_is_left_and_all_else_is() -> None:
    whole = account(packed_words([{"content": "secret"}], REPLY))
    bare = whole.without_words()
    assert bare == account(None)
    assert bare.said() == ([], None)
    assert whole.size - bare.size == len(whole.words or b"")
    assert bare.size == account(b"").size
