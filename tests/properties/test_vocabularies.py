"""Vocabularies that are made into fast tokenizers read every text as their own readers do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import splintr
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from slime_router.checkpoint.byte_bpe import Special, build_backend
from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.checkpoint.files import CheckpointFiles
from slime_router.checkpoint.tekken import Tekken
from slime_router.checkpoint.tiktoken_file import KIMI_PATTERN, read_ranks
from slime_router.tokens.tokenizer import Tokenizer
from tests.checkpoints import (
    KIMI_KEPT,
    KIMI_TOKENS,
    build_tekken_checkpoint,
    build_tiktoken_checkpoint,
    write_json,
)
from tests.examples import examples
from tests.tiny import CORPUS, VOCAB_LEN

pytestmark = pytest.mark.slow

KIMI_K2_LEN = 163_584  # ordinary tokens of the real vocabulary
SPELLED = [*KIMI_TOKENS, *KIMI_KEPT, "<|reserved_token_522|>", "<|im_", "|>", "[B"]
SCRIPTS = ["東京", "中文English", "\u3000", "🙂", "👩\u200d👧", "e\u0301", "İ", "ǅ"]
PIECES = ["'s", "'LL", "1234", "\r\n", " \n ", "   "]
WORDS = st.sampled_from([*SPELLED, *SCRIPTS, *PIECES])
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=12).map("".join)

many = settings(max_examples=examples(200))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Iterator[tuple[Tokenizer, tiktoken.Encoding]]:
    path = build_tiktoken_checkpoint(tmp_path_factory.mktemp("kimi"))
    ours = load_tokenizer(str(path))
    names = {name: VOCAB_LEN + index for index, name in enumerate(KIMI_TOKENS + KIMI_KEPT)}
    spare = range(VOCAB_LEN + len(names), VOCAB_LEN + 16)
    reserved = {f"<|reserved_token_{token_id}|>": token_id for token_id in spare}
    yield ours, kimi_encoding(read_ranks(path / "tiktoken.model"), names | reserved)
    ours.close()


def kimi_encoding(ranks: dict[bytes, int], specials: dict[str, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "kimi", pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )


@many
@given(text=TEXTS)
def test_a_tiktoken_file_is_read_as_tiktoken_reads_it(tiny, text):
    ours, theirs = tiny
    expected = theirs.encode(text, allowed_special="all")
    assert ours.encode(text).tolist() == expected
    pieces = ours.encode_pieces(text)
    assert [token_id for piece in pieces for token_id in piece.ids.tolist()] == expected
    assert ours.decode(expected, skip_special_tokens=False) == text
    assert [ours.token_bytes(each) for each in expected] == theirs.decode_tokens_bytes(expected)


@many
@given(ids=st.lists(st.integers(0, VOCAB_LEN + 15), max_size=20))
def test_any_tokens_decode_as_tiktoken_decodes_them(tiny, ids):
    ours, theirs = tiny
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[bytes, int]:
    """Any vocabulary that byte pairs can make, of few letters: full of overlaps."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokens = [b"a", b"b", b"\xe6"][: draw(st.integers(1, 3))]
    for left, right in draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)))):
        token = tokens[left % len(tokens)] + tokens[right % len(tokens)]
        if token not in ranks and len(token) < 12:
            ranks[token] = len(ranks)
            tokens.append(token)
    return ranks


@many
@given(ranks=vocabularies(), texts=st.lists(st.text(alphabet="ab東 ", max_size=30), max_size=8))
def test_ranks_are_merged_in_the_order_of_tiktoken(ranks, texts):
    pattern = r"\S+|\s+"
    in_any_order = dict(reversed(ranks.items()))
    ours = build_backend(in_any_order, pattern, [Special(len(ranks), "<x>")])
    theirs = tiktoken.Encoding(
        "any", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<x>": len(ranks)}
    )
    for text in texts:
        expected = theirs.encode_ordinary(text)
        assert ours.encode(text, add_special_tokens=False).ids == expected


@pytest.fixture(scope="module")
def kimi_k2(tmp_path_factory) -> tuple[Tokenizer, tiktoken.Encoding]:
    """The real vocabulary of Kimi K2, which a package carries, as its checkpoint holds it."""
    known = splintr.Tokenizer.from_pretrained("kimi_k2")
    ranks = {bytes(known.decode_token_bytes(rank)): rank for rank in range(KIMI_K2_LEN)}
    directory = tmp_path_factory.mktemp("kimi_k2")
    lines = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    (directory / "tiktoken.model").write_bytes(b"\n".join(lines))
    named = {KIMI_K2_LEN: "[BOS]", KIMI_K2_LEN + 1: "[EOS]", KIMI_K2_LEN + 2: "<|im_end|>"}
    added = {str(token_id): {"content": name} for token_id, name in named.items()}
    write_json(
        directory / "tokenizer_config.json", {"added_tokens_decoder": added, "eos_token": "[EOS]"}
    )
    write_json(directory / "config.json", {"model_type": "kimi_k2", "vocab_size": 163_840})
    specials = {name: token_id for token_id, name in named.items()}
    return load_tokenizer(str(directory)), kimi_encoding(ranks, specials)


@many
@given(text=TEXTS)
def test_the_real_vocabulary_of_kimi(kimi_k2, text):
    ours, theirs = kimi_k2
    text = text.replace("<|reserved_token_", "<|other_token_")
    assert ours.encode(text).tolist() == theirs.encode(text, allowed_special="all")


def test_the_real_vocabulary_of_kimi_knows_every_character(kimi_k2):
    ours, theirs = kimi_k2
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(characters), 997):
        text = "a ".join(characters[start : start + 997])
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)
    assert ours.encode("Hello, world!").tolist() == [19180, 11, 2695, 0]
    assert ours.vocab_size == 163_840


@pytest.fixture(scope="module")
def tekken(tmp_path_factory) -> tuple[Tekken, Tekkenizer]:
    directory = tmp_path_factory.mktemp("tekken")
    path = build_tekken_checkpoint(directory, "tekken_240911.json", "v13") / "tekken.json"
    return Tekken(path), Tekkenizer.from_file(path)


@many
@given(text=TEXTS)
def test_a_tekken_file_is_read_as_mistral_common_reads_it(tekken, text):
    ours, theirs = tekken
    if any(token.content in text for token in ours.backend.get_added_tokens_decoder().values()):
        return  # for its own reader, control tokens are letters
    expected = theirs.encode(text, bos=False, eos=False)
    assert ours.backend.encode(text, add_special_tokens=False).ids == expected


UNIGRAM_SPACES = {
    "collapsed": normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    ),
    "stripped": normalizers.Strip(),
    "kept": None,
}


@pytest.fixture(scope="module", params=["always", "first", "never"])
def unigrams(request, tmp_path_factory) -> dict[str, Tokenizer]:
    """SentencePiece's other kind of model, by what becomes of its spaces."""
    found = {}
    for name, normalizer in UNIGRAM_SPACES.items():
        model = tokenizers.Tokenizer(models.Unigram())
        model.normalizer = normalizer
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=request.param)
        model.decoder = decoders.Metaspace(prepend_scheme=request.param)
        trainer = trainers.UnigramTrainer(
            vocab_size=300, unk_token="<unk>", special_tokens=["<unk>", "</s>"], show_progress=False
        )
        model.train_from_iterator(CORPUS, trainer)
        directory = tmp_path_factory.mktemp(name)
        model.save(str(directory / "tokenizer.json"))
        write_json(
            directory / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"},
        )
        write_json(directory / "config.json", {"model_type": "t5"})
        found[name] = load_tokenizer(str(directory))
    return found


@pytest.mark.parametrize("spaces", UNIGRAM_SPACES)
@many
@given(words=st.lists(st.sampled_from(["the", "Hello", "</s>", " ", "  ", "\n", "a", "1", "東"])))
def test_a_unigram_model_is_cut_where_nothing_changes(unigrams, spaces, words):
    tokenizer, text = unigrams[spaces], "".join(words * 20)
    pieces = [each for piece in tokenizer.encode_pieces(text) for each in piece.ids.tolist()]
    assert pieces == tokenizer.encode(text).tolist()


def test_files_are_found_by_name_only(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x"}), encoding="utf-8")
    files = CheckpointFiles(str(tmp_path))
    assert files.json("config.json") == {"model_type": "x"}
    assert files.find("tiktoken.model") is None
    assert files.json("generation_config.json") == {}
