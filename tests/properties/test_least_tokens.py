"""A text never has fewer tokens than it is said to have at least."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from slime_router.tokens.decoder import byte_alphabet
from slime_router.tokens.least_tokens import NFC_INERT, LeastTokens
from slime_router.tokens.tokenizer import After, Tokenizer
from tests.examples import examples
from tests.talk import real_tokenizer
from tests.vocabularies import NAMES

LETTERS = "abcdefgh"
WORDS = ("ab", "abcd", "abcdefgh", "  ", "    ", "éé")
PIECES = st.one_of(
    st.sampled_from(["a", "\u0301", "e\u0301\u0323", "각", "\u1100\u1161\u11a8", "й", "и\u0306"]),
    st.sampled_from([" ", "\n", "\u3000", "\u2003", "\u2581", "<m>", "<s>", "ﬁ", "K", "中", "🙂"]),
    st.sampled_from(WORDS),
    st.characters(exclude_categories=["Cs"]),  # no tokenizer takes a lone surrogate
)
TEXTS = st.lists(st.tuples(PIECES, st.integers(1, 20)), max_size=12).map(
    lambda runs: "".join(piece * count for piece, count in runs)
)


def byte_level(**kept: bool) -> tokenizers.Tokenizer:
    """Bytes, and some words of them."""
    spelled = {byte: char for char, byte in byte_alphabet().items()}
    words = ["".join(spelled[byte] for byte in word.encode()) for word in WORDS]
    return merging([spelled[byte] for byte in range(256)], words, pre_tokenizers.ByteLevel(**kept))


def sentence_piece() -> tokenizers.Tokenizer:
    """Characters, and bytes for all others."""
    words = [word.replace(" ", "\u2581") for word in WORDS]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = merging([*LETTERS, "é", "\u2581"], words, None, ["<unk>", *fallback])
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def merging(
    chars: Iterable[str], words: Iterable[str], splitter: Any, others: Iterable[str] = ()
) -> tokenizers.Tokenizer:
    names, merges = [*others, *chars], []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in names:
                names.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    vocabulary = {name: index for index, name in enumerate(names)}
    options: dict[str, Any] = (
        {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True} if others else {}
    )
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    if splitter is not None:
        backend.pre_tokenizer = splitter
    backend.add_special_tokens([AddedToken("<s>", normalized=False)])
    return backend


def composing() -> tokenizers.Tokenizer:
    backend = byte_level(add_prefix_space=False)
    backend.normalizer = normalizers.NFC()
    return backend


def eating() -> tokenizers.Tokenizer:
    backend = byte_level(add_prefix_space=True)
    backend.add_tokens([AddedToken("<m>", lstrip=True, rstrip=True, normalized=False)])
    return backend


def eating_spelled() -> tokenizers.Tokenizer:
    backend = sentence_piece()
    backend.add_tokens([AddedToken("<m>", rstrip=True)])
    return backend


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "bytes": byte_level,
    "composing": composing,
    "eating": eating,
    "sentence piece": sentence_piece,
    "eating spelled": eating_spelled,
}


def changed(make: Callable[[], tokenizers.Tokenizer], **parts: object) -> tokenizers.Tokenizer:
    backend = make()
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


UNBOUND = {
    "a lower-casing one": lambda: changed(byte_level, normalizer=normalizers.Lowercase()),
    "a composing one": lambda: changed(byte_level, normalizer=normalizers.NFKC()),
    "a stripping one": lambda: changed(byte_level, normalizer=normalizers.Strip()),
    "spaces that collapse": lambda: changed(
        sentence_piece, normalizer=normalizers.Replace(Regex(" +"), "\u2581")
    ),
    "spaces that go": lambda: changed(byte_level, normalizer=normalizers.Replace(" ", "")),
    "text between words": lambda: changed(byte_level, pre_tokenizer=pre_tokenizers.Whitespace()),
    "a separator": lambda: changed(
        byte_level,
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Split("x", "removed"), pre_tokenizers.ByteLevel()]
        ),
    ),
    "bytes that are missing": lambda: changed(byte_level, model=models.BPE({"a": 0}, [])),
    "words": lambda: changed(byte_level, model=models.WordLevel({"a": 0}, "a")),
    "unknown text": lambda: changed(
        sentence_piece, model=models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True)
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def backend(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def least(backend):
    return LeastTokens(backend)


@settings(max_examples=examples(150))
@given(text=TEXTS)
@example("<m>" + " " * 50)  # all of them are eaten
@example("e\u0301" * 50)  # two become one
def test_no_text_has_fewer(backend, least, text):
    assert least.of(text) <= len(backend.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("word", ["abcdefgh", "b", "中"])
def test_what_is_said_is_not_far_off(backend, least, word):
    text = word * 500
    assert least.of(text) >= len(backend.encode(text, add_special_tokens=False)) / 9


@pytest.mark.parametrize("make", UNBOUND.values(), ids=UNBOUND)
def test_where_text_may_vanish_nothing_is_said(make):
    assert LeastTokens(make()).of("abcdefgh" * 500) == 0


@pytest.mark.parametrize("text", ["", "\ud800" * 5000], ids=["nothing", "no Unicode"])
def test_a_text_that_has_no_tokens(text):
    assert LeastTokens(byte_level()).of(text) == 0


@pytest.mark.slow
def test_what_is_inert_takes_part_in_no_composition_but_as_its_first():
    inert = [chr(code) for code in range(0x110000) if leads(code) in NFC_INERT]
    assert all(unicodedata.is_normalized("NFC", char) for char in inert)
    joining = {
        chr(int(last, 16))
        for code in range(0x110000)
        if len(parts := unicodedata.decomposition(chr(code)).split()) == 2
        and not parts[0].startswith("<")
        for last in parts[1:]
    }
    assert not joining.intersection(inert)


def leads(code: int) -> int:
    return 0 if 0xD800 <= code < 0xE000 else chr(code).encode()[0]


def longest(tokenizer: Tokenizer) -> list[str]:
    """The longest tokens, and some of the others."""
    spelled = tokenizer.spelled(np.arange(tokenizer.vocab_size))
    names = sorted(filter(None, spelled), key=len)
    ids = map(tokenizer._backend.token_to_id, [*names[-60:], *names[:: len(names) // 200]])
    return [tokenizer.token_bytes(each).decode(errors="replace") for each in ids if each]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_text_has_fewer_with_a_real_vocabulary(name):
    tokenizer = real_tokenizer(name)
    words = st.one_of(st.sampled_from([*longest(tokenizer), *tokenizer.added_names()]), PIECES)
    texts = st.lists(st.tuples(words, st.integers(1, 9)), max_size=12).map(
        lambda runs: "".join(piece * count for piece, count in runs)
    )

    @settings(max_examples=examples(150))
    @given(text=texts, after=st.sampled_from(After))
    def holds(text: str, after: After) -> None:
        assert tokenizer.least_len(text) <= len(tokenizer.encode(text, after))

    holds()
    for each in longest(tokenizer):
        assert tokenizer.least_len(each * 50) <= len(tokenizer.encode(each * 50))
    assert tokenizer.least_len("word " * 100_000) > 10_000
