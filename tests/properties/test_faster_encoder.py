"""Properties of the faster encoder: on every vocabulary that it reads, the tokens are the same.

`SLIME_ROUTER_FUZZ=50` multiplies the number of examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.errors import SetupError
from slime_router.tokens.encoder import Encoder
from slime_router.tokens.fast_encoder import load_fast_library
from slime_router.tokens.libraries import Library, TokenizersLibrary
from slime_router.tokens.proof import first_difference, probes
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Piece
from tests import vocabularies
from tests.properties.test_tokenizer import chat_texts, tried
from tests.tiny import build_tiny_checkpoint

NOT_READ = "mistral_7b_sp"  # a Metaspace pre-tokenizer, as transformers makes it
READ = [name for name in vocabularies.NAMES if name != NOT_READ]


@dataclass(frozen=True)
class Pair:
    """The reference and the faster one, on one vocabulary."""

    ours: Tokenizer
    reference: Library
    fast: Library
    texts: st.SearchStrategy[str]

    def encoders(self) -> tuple[Encoder, Encoder]:
        plain = self.ours._encoder
        return plain, plain.over(self.fast)


@pytest.fixture(
    scope="module",
    params=["tiny", *(pytest.param(name, marks=pytest.mark.tokenizers) for name in READ)],
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    if request.param == "tiny":
        directory = build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    else:
        directory = vocabularies.vocabulary(request.param)
    ours = load_tokenizer(str(directory))
    backend = ours._backend
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    fast = load_fast_library(backend.to_str())
    yield Pair(ours, TokenizersLibrary(backend), fast, chat_texts(ours, added))
    ours.close()


def lists(pieces: tuple[Piece, ...]) -> list[tuple[str, list[int]]]:
    return [(piece.text, piece.ids.tolist()) for piece in pieces]


@given(data=st.data())
@tried(100)
def test_a_text_has_the_same_tokens(pair: Pair, data: st.DataObject) -> None:
    text = data.draw(st.one_of(pair.texts, st.text()))
    [expected], [found] = pair.reference.encode([text]), pair.fast.encode([text])
    assert found.tolist() == expected.tolist()
    assert found.dtype == expected.dtype
    assert not found.flags.writeable


@given(data=st.data())
@tried(30)
def test_several_texts_have_the_same_tokens_each(pair: Pair, data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.one_of(pair.texts, st.just("")), max_size=6))
    found = [ids.tolist() for ids in pair.fast.encode(texts)]
    assert found == [ids.tolist() for ids in pair.reference.encode(texts)]


@given(data=st.data())
@tried(60)
def test_a_text_has_the_same_pieces_after_any_token(pair: Pair, data: st.DataObject) -> None:
    text = data.draw(pair.texts)
    ids = st.integers(0, pair.ours.vocab_size - 1)
    last_id = data.draw(st.one_of(st.none(), st.sampled_from(sorted(pair.ours.eos_ids)), ids))
    plain, fast = pair.encoders()
    assert lists(fast.encode_pieces_after(last_id, text)) == lists(
        plain.encode_pieces_after(last_id, text)
    )


def test_the_vocabulary_passes_the_proof(pair: Pair) -> None:
    asked = list(probes(pair.ours._backend, list(pair.ours._renderings())))
    assert first_difference(pair.reference, pair.fast, asked) is None


@pytest.mark.tokenizers
def test_a_vocabulary_that_is_not_read_is_left_to_tokenizers() -> None:
    ours = load_tokenizer(str(vocabularies.vocabulary(NOT_READ)))
    with pytest.raises(SetupError, match="fastokens cannot read this vocabulary"):
        ours.use_faster_encoder()
    assert ours.encoder_figures()["fast"] == 0
    ours.close()
