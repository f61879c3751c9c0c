"""Texts with pictures: pieces of what is encoded, with the marks where the pictures are."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router.generation.prompts.pictures import PictureTokens
from slime_router.template.chat_template import ChatTemplate
from slime_router.template.pictures import Pictures, digest_of, digests_in, mark_of
from slime_router.types import NO_TOKENS, GenerateCall
from tests.examples import examples
from tests.seeing import build_seeing_checkpoint, seeing_tokenizer

MARKS = [mark_of(digest_of(name)) for name in (b"a", b"b")]
CONTROLS = ("<|im_end|>", "<|im_start|>user\n", "<|vision_start|>")
WORDS = st.sampled_from(["HAVING ", "word", "\n\n", "é ", "x" * 3000, *CONTROLS])
many = settings(max_examples=examples(100))


@cache
def parts() -> tuple[PictureTokens, Pictures]:
    directory = Path(mkdtemp())
    tokenizer = seeing_tokenizer(build_seeing_checkpoint(directory))
    shows = ChatTemplate(tokenizer).pictures
    assert shows is not None
    return PictureTokens(tokenizer, shows), shows


@many
@given(texts=st.lists(st.one_of(WORDS, st.sampled_from(MARKS)), max_size=12))
def test_pieces_have_the_tokens_of_the_text_and_the_marks_of_its_pictures(texts):
    tokens, shows = parts()
    text = "".join(texts)
    pictures = digests_in(text)
    call = GenerateCall(rid="r", turn_id="t", pictures=pictures)
    shown = tokens.shown(call, text)
    pieces = asyncio.run(tokens.encode(shown, NO_TOKENS, None))
    assert "".join(piece.text for piece in pieces) == shown
    ids = [token for piece in pieces for token in piece.ids.tolist()]
    assert ids == tokens._tokenizer.encode(shows.written(shown)).tolist()
    assert ids.count(shows.token_id) == len(pictures)
    for piece in pieces:
        places = piece.ids.tolist().count(shows.token_id)
        assert len(digests_in(piece.text)) == places


@many
@given(texts=st.lists(st.one_of(WORDS, st.sampled_from(MARKS)), max_size=8), cut=st.integers(0, 8))
def test_a_text_that_goes_on_begins_with_the_same_pieces(texts, cut):
    """What is shared of two texts is found again: up to the first other picture."""
    tokens, shows = parts()

    def pieces_of(text: str) -> list[tuple[str, list[int]]]:
        shown = shows.shown(text)
        pieces = asyncio.run(tokens.encode(shown, NO_TOKENS, None))
        return [(piece.text, piece.ids.tolist()) for piece in pieces]

    whole, begun = pieces_of("".join(texts)), pieces_of("".join(texts[:cut]))
    count = max(len(begun) - 1, 0)  # the last one may go on
    assert whole[:count] == begun[:count]
