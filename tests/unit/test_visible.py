"""What a chat client sees: the same text however the tokens arrive."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import Finish, Sampling
from tests.stack import tiny_tokenizer

END = 514  # <|im_end|>, special
THINK = 515  # <think>, not special
LENGTH = Finish("length")


def visible(sampling: Sampling | None = None) -> VisibleText:
    sampling = sampling or Sampling()
    decoder = tiny_tokenizer().decoder(skip_special_tokens=sampling.skip_special_tokens)
    return VisibleText(decoder, sampling)


def in_bytes(text: str) -> list[int]:
    """One token for each byte."""
    table = {tiny_tokenizer().token_bytes(token_id): token_id for token_id in range(256)}
    return [table[bytes([byte])] for byte in text.encode()]


def stream(ids: list[int], finish: Finish, sampling: Sampling | None = None) -> list[str]:
    """What each token adds."""
    text = visible(sampling)
    parts = [text.push([token_id], None) for token_id in ids[:-1]]
    return [*parts, text.push(ids[-1:], finish)]


def test_the_stop_token_is_not_shown():
    ids = [*in_bytes("Hi"), END]
    assert stream(ids, Finish("stop", END)) == ["H", "i", ""]
    raw = Sampling(skip_special_tokens=False)
    assert "".join(stream(ids, Finish("stop", END), raw)) == "Hi"
    assert "".join(stream(ids[:-1], Finish("stop", END))) == "Hi", "a worker may leave it out"


def test_a_stop_token_that_is_a_plain_word_is_not_shown_either():
    ids = in_bytes("Hi!")
    assert "".join(stream(ids, Finish("stop", ids[-1]))) == "Hi"
    assert "".join(stream(ids, LENGTH)) == "Hi!"


def test_a_stop_is_shown_where_the_client_wants_it():
    ids = in_bytes("Hi!")
    keep = Sampling(keep_stop=True, stop=("!",), skip_special_tokens=False)
    assert "".join(stream(ids, Finish("stop", ids[-1]), keep)) == "Hi!"
    assert "".join(stream(ids, Finish("stop", "!"), keep)) == "Hi!"
    assert "".join(stream([*ids, END], Finish("stop", END), keep)) == "Hi!<|im_end|>"


def test_control_tokens_that_are_not_special_are_shown():
    assert "".join(stream([THINK, *in_bytes("a")], LENGTH)) == "<think>a"


def test_a_stop_string_is_never_shown_though_it_comes_in_parts():
    parts = stream(in_bytes("yes\nUser:"), Finish("stop", "\nUser:"), Sampling(stop=("\nUser:",)))
    assert parts == ["y", "e", "s", *[""] * 6]


def test_a_stop_string_is_not_shown_though_the_end_comes_after_it():
    text = visible(Sampling(stop=("no",)))
    assert text.push(in_bytes("yesno"), None) == "yes"
    assert text.push([], Finish("stop", "no")) == ""


def test_what_only_began_as_a_stop_string_is_shown_as_soon_as_that_is_sure():
    parts = stream(in_bytes("a\nUsx"), LENGTH, Sampling(stop=("\nUser:",)))
    assert parts == ["a", "", "", "", "\nUsx"]
    parts = stream(in_bytes("a\nU"), LENGTH, Sampling(stop=("\nUser:",)))
    assert "".join(parts) == "a\nU", "the end comes: nothing is held back forever"


def test_a_stop_string_may_begin_inside_its_own_false_start():
    sampling = Sampling(stop=("aab",))
    assert "".join(stream(in_bytes("xaaab"), Finish("stop", "aab"), sampling)) == "xa"


def test_the_longest_of_several_false_starts_is_held_back():
    sampling = Sampling(stop=("bc", "abcd"))
    parts = stream(in_bytes("xabce"), LENGTH, sampling)
    assert parts[:4] == ["x", "", "", ""]
    assert "".join(parts) == "xabce"


def test_a_stop_string_that_is_not_in_the_text_takes_nothing_from_it():
    sampling = Sampling(stop=("never",))
    assert "".join(stream(in_bytes("yes"), Finish("stop", "never"), sampling)) == "yes"


def test_a_stop_token_that_a_parser_must_see_is_shown():
    shown = []
    for stop in (THINK, END):
        decoder = tiny_tokenizer().decoder(skip_special_tokens=False)
        text = VisibleText(decoder, Sampling(), kept={THINK})
        shown.append(text.push([stop], Finish("stop", stop)))
    assert shown == ["<think>", ""]


def test_a_run_is_counted_only_where_it_is_known_what_it_shows():
    decoder = tiny_tokenizer().decoder(skip_special_tokens=False)
    text = VisibleText(decoder, Sampling(stop=("a!",)), hidden=frozenset({END}))
    find, ids = re.compile(b"<").search, in_bytes("bb<b")
    assert text.run_len(find, ids, are_last=False) == 2
    assert text.run_len(find, [*ids, END], are_last=False) == 0
    assert text.run_len(find, [*ids, END], are_last=True) == 2, "the stop is not shown"
    assert text.run_len(find, [END, *ids], are_last=True) == 0
    assert text.push(in_bytes("ba"), None) == "b"
    assert text.run_len(find, ids, are_last=False) == 0, "there is more before them"


def test_text_behind_the_stop_string_in_the_same_token_is_not_shown():
    text = visible(Sampling(stop=("b",)))
    assert text.push(in_bytes("abc"), Finish("stop", "b")) == "a"


def test_characters_are_shown_whole():
    assert stream(in_bytes("🙂é"), LENGTH) == ["", "", "", "🙂", "", "é"]


def test_half_a_character_at_the_end_is_one_replacement_character():
    assert "".join(stream(in_bytes("a🙂")[:-1], LENGTH)) == "a\ufffd"
    assert "".join(stream([*in_bytes("a🙂")[:-1], END], Finish("stop", END))) == "a\ufffd"
    assert "".join(stream(in_bytes("\ufffd"), LENGTH)) == "\ufffd"


@pytest.mark.parametrize("count", [0, 1])
def test_an_output_of_nothing_or_of_the_stop_token_is_empty(count):
    assert visible().push([END] * count, Finish("stop", END)) == ""


def first_stop(ids: list[int], stops: tuple[str, ...]) -> tuple[list[int], Finish]:
    """The output of a worker that looks for the stops after each token."""
    tokenizer = tiny_tokenizer()
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False)
        for stop in stops:
            if stop in text:
                return ids[:end], Finish("stop", stop)
    return ids, LENGTH


token_ids = st.sampled_from([*in_bytes("ab🙂"), 367, THINK, END, 530])


@given(
    ids=st.lists(token_ids, min_size=1, max_size=12),
    stops=st.lists(st.text("ab🙂", min_size=1, max_size=3), max_size=2).map(tuple),
    cuts=st.sets(st.integers(1, 12)),
    keep_stop=st.booleans(),
)
def test_any_chunking_gives_the_same_text(ids, stops, cuts, keep_stop):
    """... which is what stands before the stop string, and is never taken back."""
    ids, finish = first_stop(ids, stops)
    text = visible(Sampling(stop=stops, keep_stop=keep_stop))
    bounds = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    shown = ""
    for start, end in pairwise(bounds):
        shown += text.push(ids[start:end], finish if end == len(ids) else None)
    whole = tiny_tokenizer().decode(ids, skip_special_tokens=True)
    if isinstance(finish.matched, str) and not keep_stop:
        whole = whole.partition(finish.matched)[0]
    assert shown == whole
