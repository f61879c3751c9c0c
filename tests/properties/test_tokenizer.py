"""Properties of tokenizing, on the tiny checkpoint and on every real vocabulary.

`SLIME_ROUTER_FUZZ=50` multiplies the number of examples.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.tokens.control_tokens import ControlTokens
from slime_router.tokens.decoder import TokenBytes
from slime_router.tokens.encoder import Encoder
from slime_router.tokens.tokenizer import After, Tokenizer
from slime_router.types import NO_TOKENS
from tests import vocabularies
from tests.examples import examples
from tests.tiny import build_tiny_checkpoint

BYTE_LEVEL = {"tiny", "qwen3", "deepseek_v3", "mistral_nemo", "llama3_2", "gptoss"}
NFC = {"tiny", "qwen3"}


def tried(number: int) -> settings:
    return settings(
        max_examples=examples(number),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class Subject:
    """A tokenizer under test, and the one of `transformers` that it must agree with."""

    name: str
    ours: Tokenizer
    theirs: Any
    texts: st.SearchStrategy[str]

    def encode_whole(self, text: str) -> list[int]:
        ids: list[int] = self.theirs(text, add_special_tokens=False)["input_ids"]
        return ids


@pytest.fixture(
    scope="module",
    params=[
        "tiny",
        *(pytest.param(name, marks=pytest.mark.tokenizers) for name in vocabularies.NAMES),
    ],
)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    from transformers import AutoTokenizer

    if request.param == "tiny":
        directory = build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    else:
        directory = vocabularies.vocabulary(request.param)
    ours = load_tokenizer(str(directory))
    theirs = AutoTokenizer.from_pretrained(directory)
    texts = chat_texts(ours, list(theirs.get_added_vocab()))
    yield Subject(request.param, ours, theirs, texts)
    ours.close()


PROSE = (
    "Hello there",
    " the quick brown fox jumps over the lazy dog and",
    "HAVING",
    " unbelievable",
    "I'll don't it's",
    '{"name": "get_weather", "arguments": {"city": "Paris", "n": 12}}',
    '{"a":1}}\n',
    "def f(x):\n\treturn x  # it's\n\n",
    "</table>\n<td> </td> ",
    "東京は日本の首都です。",
    "안녕하세요 여러분 ",
    "e\u0301 o\u0308\u0323 \u1112\u1161\u11ab",
    "🙂👩‍👩‍👧 ",
    "Привет мир",
    "déjà vu",
    "http://a.b/c?d=e&f ",
    "1234567 890,5 ",
)
SPACES = (" ", "  ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "     ")


def chat_texts(tokenizer: Tokenizer, added: list[str]) -> st.SearchStrategy[str]:
    """Texts of control tokens, of what only looks like one, and of all that stands between."""
    controls = [word for word in added if any(tokenizer.find_controls(word))]
    literals = st.sampled_from(controls[:40] + controls[-40:])
    others = st.sampled_from(added[:200] + added[-200:])
    look_alikes = st.builds(
        lambda word, cut: word[: max(1, cut % len(word))], literals, st.integers(1, 30)
    )
    characters = st.characters(exclude_categories=("Cs", "Cn"), exclude_characters="▁")
    fragments = st.one_of(
        literals,
        others.filter(lambda word: "▁" not in word or "｜" in word),
        look_alikes,
        st.sampled_from(PROSE),
        st.sampled_from(SPACES),
        st.text(characters, max_size=6),
        st.builds(str.__mul__, st.sampled_from(PROSE + SPACES), st.integers(2, 30)),
        st.builds(str.__mul__, st.sampled_from(PROSE), st.integers(30, 60)),  # long pieces
    )
    return st.lists(fragments, max_size=14).map("".join)


def after(ids: list[int], tokenizer: Tokenizer) -> After:
    if not ids:
        return After.START
    return After.CONTROL if tokenizer.is_control(ids[-1]) else After.TEXT


def encode(tokenizer: Tokenizer, text: str, after: After = After.START) -> list[int]:
    ids: list[int] = tokenizer.encode(text, after).tolist()
    return ids


def cut_ends(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(accumulate(len(piece.text) for piece in tokenizer.encode_pieces(text)))


@given(data=st.data())
@tried(60)
def test_pieces_are_the_whole_tokenization(subject: Subject, data: st.DataObject) -> None:
    """All pieces together are what `transformers` makes of the whole text."""
    text = data.draw(subject.texts)
    pieces = subject.ours.encode_pieces(text)
    ids = [token_id for piece in pieces for token_id in piece.ids.tolist()]
    assert "".join(piece.text for piece in pieces) == text
    assert ids == subject.encode_whole(text) == encode(subject.ours, text)


@given(data=st.data())
@tried(40)
def test_texts_with_a_common_prefix_have_common_pieces(
    subject: Subject, data: st.DataObject
) -> None:
    """A piece is the same in both texts if it ends far enough before they part."""
    prefix, left, right = (data.draw(subject.texts) for _ in range(3))
    ends = []
    for text in (prefix + left, prefix + right):
        literals = {start: end for start, end, _ in subject.ours.find_controls(text)}
        ends.append(
            [
                end
                for end in cut_ends(subject.ours, text)
                if end < len(text) and literals.get(end, end + 1) <= len(prefix)
            ]
        )
    assert ends[0] == ends[1]


@given(data=st.data())
@tried(40)
def test_text_can_be_cut_at_every_piece_end(subject: Subject, data: st.DataObject) -> None:
    """Where a piece ends, and at every other anchor, both halves give the tokens of the whole."""
    text = data.draw(subject.texts)
    ours = subject.ours
    ends = cut_ends(ours, text)[:-1]
    assert all(ours.is_anchor(text, end) for end in ends)
    anchors = [index for index in range(len(text)) if ours.is_anchor(text, index)]
    whole = encode(ours, text)
    for index in {*ends[:4], *anchors[:: len(anchors) // 8 + 1]}:
        head = encode(ours, text[:index])
        assert head + encode(ours, text[index:], after(head, ours)) == whole


@given(data=st.data())
@tried(40)
def test_controls_are_found_as_the_tokenizer_finds_them(
    subject: Subject, data: st.DataObject
) -> None:
    """The anchors found in a text are those among its tokens, in order, each with its literal."""
    text = data.draw(subject.texts)
    found = list(subject.ours.find_controls(text))
    whole = subject.encode_whole(text)
    assert [token_id for _, _, token_id in found] == [
        token_id for token_id in whole if subject.ours.is_control(token_id)
    ]
    for start, end, token_id in found:
        assert next(subject.ours.find_controls(text, start)) == (start, end, token_id)
        assert subject.ours.token_bytes(token_id) == text[start:end].encode()


@given(data=st.data())
@tried(40)
def test_stream_decoding_equals_decoding(subject: Subject, data: st.DataObject) -> None:
    """However ids are cut into chunks, the stream gives the text of the whole, and never early."""
    ours = subject.ours
    ids = data.draw(
        st.one_of(
            st.lists(st.integers(0, ours.vocab_size + 3), max_size=40),
            subject.texts.map(lambda text: encode(ours, text)),
        )
    )
    skip = data.draw(st.booleans())
    decoder = ours.decoder(skip_special_tokens=skip)
    streamed, rest = "", ids
    while rest:
        size = data.draw(st.integers(1, 7))
        streamed += decoder.push(rest[:size])
        rest = rest[size:]
    whole = ours.decode(ids, skip_special_tokens=skip)
    assert streamed + decoder.flush() == whole
    assert whole == b"".join(
        ours.token_bytes(i) for i in ids if not (skip and ours.is_special(i))
    ).decode(errors="replace")
    if subject.name in BYTE_LEVEL:
        assert whole == subject.theirs.decode(
            ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )


@given(data=st.data())
@tried(40)
def test_token_bytes_spell_the_text(subject: Subject, data: st.DataObject) -> None:
    """The bytes of a text's tokens are the text, as the tokenizer normalizes it."""
    ours, text = subject.ours, data.draw(subject.texts)
    if subject.name == "mistral_7b_sp":  # puts a space after each control token
        assume(not list(ours.find_controls(text)))
    spelled = b"".join(map(ours.token_bytes, encode(ours, text, After.TEXT)))
    assert spelled == normalized(subject, text).encode()


def normalized(subject: Subject, text: str) -> str:
    """Composed where the tokenizer composes: between control tokens, never across one."""
    if subject.name not in NFC:
        return text
    parts, begin = [], 0
    for start, end, _ in subject.ours.find_controls(text):
        parts += [unicodedata.normalize("NFC", text[begin:start]), text[start:end]]
        begin = end
    return "".join([*parts, unicodedata.normalize("NFC", text[begin:])])


@given(
    parts=st.lists(st.sampled_from(["a", "ba", " ", "\n", "<s>", "</s>"]), max_size=12),
    scheme=st.sampled_from(["first", "always", "never"]),
)
@tried(100)
def test_a_tokenizer_that_adds_spaces_can_be_cut_at_control_tokens(
    parts: list[str], scheme: Literal["first", "always", "never"]
) -> None:
    """After a control token is encoded what stands there in the whole text; begin or not."""
    alphabet = {char: index for index, char in enumerate("▁ab\n")}
    backend = tokenizers.Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme)
    backend.decoder = decoders.Metaspace("▁", scheme)
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in ("<s>", "</s>")])
    controls = ControlTokens(backend.get_added_tokens_decoder(), has_normalizer=False)
    encoder = Encoder(backend, controls, TokenBytes(backend, {}))
    text = "".join(parts)
    whole = backend.encode(text, add_special_tokens=False).ids
    for start, end, _ in controls.find(text):
        at_start = (
            encoder.encode(text[:start], After.START),
            encoder.encode(text[start:], After.TEXT),
        )
        at_end = encoder.encode(text[:end], After.START), encoder.encode(text[end:], After.CONTROL)
        assert np.concatenate(at_start).tolist() == np.concatenate(at_end).tolist() == whole
    ids = [piece.ids for piece in encoder.encode_pieces(text, After.START)]
    assert np.concatenate([NO_TOKENS, *ids]).tolist() == whole


ADDED_TOKENS = st.lists(
    st.builds(
        AddedToken,
        st.text("ab<> ", min_size=1, max_size=4),
        single_word=st.just(False),
        lstrip=st.integers(0, 9).map(lambda n: n == 0),
        rstrip=st.integers(0, 9).map(lambda n: n == 0),
        normalized=st.booleans(),
        special=st.booleans(),
    ),
    unique_by=lambda token: token.content,
    max_size=6,
)


@given(added=ADDED_TOKENS, text=st.text("ab<> ", max_size=40))
@tried(400)
def test_any_added_tokens_are_found_as_the_backend_finds_them(
    added: list[AddedToken], text: str
) -> None:
    """Whatever tokens are added, with whatever flags: an anchor is found where it is a token."""
    backend = tokenizers.Tokenizer(
        models.BPE(
            {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
            [],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(added)
    controls = ControlTokens(backend.get_added_tokens_decoder(), has_normalizer=False)
    encoding = backend.encode(text, add_special_tokens=False)
    expected = [
        (*offsets, token_id)
        for offsets, token_id in zip(encoding.offsets, encoding.ids, strict=True)
        if token_id in controls
    ]
    assert list(controls.find(text)) == expected
