"""Loading, encoding, control tokens and decoding, on the tiny checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.errors import BadRequest, ContextLengthExceeded, SetupError
from slime_router.tokens import tokenizer as module
from slime_router.tokens.control_tokens import ControlTokens
from slime_router.tokens.decoder import TokenBytes, byte_alphabet
from slime_router.tokens.encoder import LONG_PIECE_LEN, MIN_PIECE_LEN, Encoder
from slime_router.tokens.tokenizer import After, Tokenizer
from slime_router.types import Message, TemplateOptions
from tests import vocabularies
from tests.tiny import CONTEXT_LEN, SPARE_IDS, SPECIAL_TOKENS, THINK_TOKENS

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
PLAIN = TemplateOptions()


@pytest.fixture(scope="module")
def mistral() -> Iterator[Tokenizer]:
    tokenizer = load_tokenizer(str(vocabularies.vocabulary("mistral_7b_sp")))
    yield tokenizer
    tokenizer.close()


def changed(directory: Path, tmp_path: Path, filename: str, **changes: Any) -> str:
    """A copy of the checkpoint with some keys of one file changed; None drops the key."""
    copied = Path(shutil.copytree(directory, tmp_path / "copy"))
    content = json.loads((copied / filename).read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    (copied / filename).write_text(json.dumps(content))
    return str(copied)


def control_id(tokenizer: Tokenizer, literal: str) -> int:
    [(start, end, found)] = tokenizer.find_controls(literal)
    assert literal[start:end] == literal
    return found


class TestLoad:
    def test_reads_what_the_checkpoint_says(self, tokenizer: Tokenizer) -> None:
        end_of_text, _, end_of_turn = (control_id(tokenizer, each) for each in SPECIAL_TOKENS)
        last = control_id(tokenizer, THINK_TOKENS[-1])
        assert tokenizer.vocab_size == last + 1 + SPARE_IDS
        assert tokenizer.context_len == CONTEXT_LEN
        assert tokenizer.eos_ids == {end_of_text, end_of_turn}

    def test_text_config_counts_where_there_is_one(self, directory: Path, tmp_path: Path) -> None:
        inner = {"vocab_size": 9000, "max_position_embeddings": 77}
        path = changed(directory, tmp_path, "config.json", text_config=inner)
        tokenizer = load_tokenizer(path)
        assert (tokenizer.vocab_size, tokenizer.context_len) == (9000, 77)

    def test_configuration_files_may_be_missing(self, directory: Path, tmp_path: Path) -> None:
        path = changed(directory, tmp_path, "config.json", vocab_size=None)
        Path(path, "config.json").unlink()
        Path(path, "generation_config.json").unlink()
        tokenizer = load_tokenizer(path)
        assert tokenizer.context_len is None
        assert tokenizer.vocab_size == control_id(tokenizer, THINK_TOKENS[-1]) + 1
        assert tokenizer.eos_ids == {control_id(tokenizer, "<|im_end|>")}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            (
                "truncation",
                {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            ),
            (
                "padding",
                {
                    "strategy": {"Fixed": 64},
                    "direction": "Right",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": SPECIAL_TOKENS[0],
                },
            ),
        ],
    )
    def test_a_text_is_neither_cut_nor_padded_whatever_the_file_says(
        self, tokenizer: Tokenizer, directory: Path, tmp_path: Path, name: str, value: Any
    ) -> None:
        made = load_tokenizer(changed(directory, tmp_path, "tokenizer.json", **{name: value}))
        text = "Hello there, how are you today?"
        assert made.encode(text).tolist() == tokenizer.encode(text).tolist()

    @pytest.mark.parametrize(
        ("template", "source"),
        [
            ([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}], "D"),
            ([{"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R"}], "T"),
            (None, None),
        ],
    )
    def test_default_template_is_taken(
        self, directory: Path, tmp_path: Path, template: Any, source: str | None
    ) -> None:
        path = changed(directory, tmp_path, "tokenizer_config.json", chat_template=template)
        assert load_tokenizer(path).chat_template == source

    def test_template_can_be_given_as_file_or_text(self, directory: Path, tmp_path: Path) -> None:
        text = "{{ messages[0].content }}!"
        file = tmp_path / "own.jinja"
        file.write_text(text)
        for given in (text, str(file)):
            tokenizer = load_tokenizer(str(directory), chat_template=given)
            assert tokenizer.chat_template == text
            assert tokenizer.render(HELLO, PLAIN) == "Hello!"

    def test_errors_are_one_line_that_names_the_culprit(
        self, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(directory)
        empty = tmp_path / "empty"
        empty.mkdir()
        template = tmp_path / "bad.jinja"
        template.write_text("{% if %}")
        broken = changed(directory, tmp_path, "config.json")
        Path(broken, "generation_config.json").write_text("{")
        cases: list[tuple[str, str | None, str, str]] = [
            (str(tmp_path / "none"), None, str(tmp_path / "none"), "no such directory"),
            (str(empty), None, str(empty), "the directory has no vocabulary"),
            ("config.json", None, "config.json", "a file, not a directory"),
            (broken, None, broken, "bad generation_config.json"),
            (str(directory), str(template), str(template), "bad chat template"),
            (str(directory), "none.jinja", "none.jinja", "No such file"),
        ]
        for path, chat_template, culprit, reason in cases:
            with pytest.raises(SetupError) as caught:
                load_tokenizer(path, chat_template=chat_template)
            assert caught.value.message.startswith(f"{culprit}: ")
            assert reason in caught.value.message
            assert "\n" not in caught.value.message

    def test_tokenizer_without_a_fast_form_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
        (tmp_path / "config.json").write_text('{"model_type": "ctrl"}')
        (tmp_path / "vocab.json").write_text('{"a": 0, "<unk>": 1}')
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        with pytest.raises(SetupError, match="no fast tokenizer"):
            load_tokenizer(str(tmp_path))

    def test_tokenizer_that_loses_spaces_is_refused(self, directory: Path, tmp_path: Path) -> None:
        stripped = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
        path = changed(directory, tmp_path, "tokenizer.json", normalizer=stripped)
        # Without the model's type `transformers` takes tokenizer.json as it is.
        Path(path, "config.json").unlink()
        with pytest.raises(SetupError, match="loses spaces"):
            load_tokenizer(path)


class TestEncode:
    def test_ids_are_read_only_int32(self, tokenizer: Tokenizer) -> None:
        for ids in (tokenizer.encode("Hello"), tokenizer.encode_pieces("Hello")[0].ids):
            assert ids.dtype == np.int32
            assert not ids.flags.writeable

    def test_no_text_has_no_tokens_and_no_pieces(self, tokenizer: Tokenizer) -> None:
        for after in After:
            assert tokenizer.encode("", after).tolist() == []
            assert tokenizer.encode_pieces("", after) == ()

    def test_pieces_begin_with_the_control_token_that_opens_a_message(
        self, tokenizer: Tokenizer
    ) -> None:
        """Control tokens close together share a piece."""
        text = tokenizer.render([*HELLO, {"role": "assistant", "content": "Fine, thanks."}], PLAIN)
        assert [piece.text for piece in tokenizer.encode_pieces(text)] == [
            "<|im_start|>user\nHello",
            "<|im_end|>\n<|im_start|>assistant\nFine, thanks.",
            "<|im_end|>\n<|im_start|>assistant\n",
        ]
        assert len("<|im_end|>\n") < MIN_PIECE_LEN

    def test_long_text_is_cut_at_the_first_space_behind_a_word(self, tokenizer: Tokenizer) -> None:
        text = "x" * (LONG_PIECE_LEN - 1) + ", y z"
        assert [piece.text for piece in tokenizer.encode_pieces(text)] == [text[:-2], " z"]

    def test_text_without_spaces_stays_whole(self, tokenizer: Tokenizer) -> None:
        assert len(tokenizer.encode_pieces("x" * 5000)) == 1

    def test_lone_surrogate_is_the_clients_mistake(self, tokenizer: Tokenizer) -> None:
        for encode in (tokenizer.encode, tokenizer.encode_pieces):
            with pytest.raises(BadRequest, match="Unicode"):
                encode("a\ud800")

    async def test_long_text_is_encoded_in_the_thread(self, tokenizer: Tokenizer) -> None:
        """Short or long, in the thread or not: the pieces are the same."""
        for text in ("Hello there " * 4, "Hello there " * module.INLINE_TEXT_LEN):
            pieces = await tokenizer.encode_pieces_async(text)
            assert [(p.text, p.ids.tolist()) for p in pieces] == [
                (p.text, p.ids.tolist()) for p in tokenizer.encode_pieces(text)
            ]

    async def test_what_a_text_follows_takes_room_too(self, tokenizer: Tokenizer) -> None:
        text, held = "Hello there " * module.INLINE_TEXT_LEN, tokenizer.encode("Hello there")
        room = tokenizer.least_len(text) + 1
        assert await tokenizer.encode_pieces_async(text, context_len=room)
        with pytest.raises(ContextLengthExceeded, match=f"at least {room - 1 + len(held)} tokens"):
            await tokenizer.encode_pieces_async(text, held, context_len=room)

    async def test_closed_tokenizer_has_no_thread(self, directory: Path) -> None:
        tokenizer = load_tokenizer(str(directory))
        tokenizer.close()
        assert len(await tokenizer.encode_pieces_async("Hello")) == 1
        with pytest.raises(RuntimeError, match="shutdown"):
            await tokenizer.encode_pieces_async("Hello " * module.INLINE_TEXT_LEN)


@pytest.mark.tokenizers
class TestSentencePiece:
    """A tokenizer that puts a space before each text, and does not know what it follows."""

    @pytest.mark.parametrize("text", ["foo", " foo", "\nfoo", "1", "é", "foo</s>bar", "</s>foo"])
    def test_no_space_is_added_behind_text(self, mistral: Tokenizer, text: str) -> None:
        first_part = text.partition("</s>")[0]
        ids = mistral.encode(text, After.TEXT)
        assert mistral.decode(ids, skip_special_tokens=False).startswith(first_part)
        added = mistral.decode(mistral.encode("foo"), skip_special_tokens=False)
        assert added == " foo"  # or this test shows nothing

    def test_it_is_cut_at_control_tokens_only(self, mistral: Tokenizer) -> None:
        text = "the quick brown fox " * 100 + "</s>the end"
        assert [piece.text for piece in mistral.encode_pieces(text)] == [text[:2000], "</s>the end"]
        assert not mistral.is_anchor("a b", 1)


class TestControlTokens:
    def test_kinds_of_the_tiny_tokenizer(self, tokenizer: Tokenizer) -> None:
        for literal in SPECIAL_TOKENS + THINK_TOKENS:
            token_id = control_id(tokenizer, literal)
            assert tokenizer.is_control(token_id)
            assert tokenizer.is_special(token_id) == (literal in SPECIAL_TOKENS)
            assert tokenizer.token_bytes(token_id) == literal.encode()
        assert not tokenizer.is_control(0)
        assert not tokenizer.is_special(0)

    def test_controls_are_found_from_a_place_on(self, tokenizer: Tokenizer) -> None:
        text = "<think>a<|im_end|><|im_ <think"
        ids = control_id(tokenizer, "<think>"), control_id(tokenizer, "<|im_end|>")
        assert list(tokenizer.find_controls(text)) == [(0, 7, ids[0]), (8, 18, ids[1])]
        assert list(tokenizer.find_controls(text, 1)) == [(8, 18, ids[1])]
        assert list(tokenizer.find_controls(text, 9)) == []

    @pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
    def test_token_that_looks_around_is_no_anchor(self, flag: str) -> None:
        tokens = {
            0: AddedToken("<a>", normalized=False, **{flag: True}),
            1: AddedToken("<b>", normalized=False),
        }
        controls = ControlTokens(tokens, has_normalizer=False)
        assert [token_id for token_id in tokens if token_id in controls] == [1]

    def test_token_found_in_normalized_text_is_an_anchor_without_normalizer_only(self) -> None:
        tokens = {0: AddedToken("<a>", normalized=True)}
        assert 0 in ControlTokens(tokens, has_normalizer=False)
        assert 0 not in ControlTokens(tokens, has_normalizer=True)

    @pytest.mark.parametrize(
        "literals",
        [("<a>", "<a>b"), ("<a>", "x<a>y"), ("<ab", "b>"), ("aba",), (" a",), ("\n\n",)],
    )
    def test_tokens_that_overlap_are_no_anchors(self, literals: tuple[str, ...]) -> None:
        tokens = {i: AddedToken(each, normalized=False) for i, each in enumerate(literals)}
        assert len(ControlTokens(tokens, has_normalizer=False)) == 0

    def test_without_anchors_nothing_is_found(self) -> None:
        controls = ControlTokens({}, has_normalizer=False)
        assert list(controls.find("<a>")) == []
        assert controls.next_start("<a>", 0) == 3

    def test_anchors_of_a_text(self, tokenizer: Tokenizer) -> None:
        text = "a b, c\nd<think>e "
        sound = [index for index in range(len(text) + 1) if tokenizer.is_anchor(text, index)]
        assert sound == [0, 1, text.index("<think>"), text.index("e ") + 1]


class TestDecode:
    def test_unfinished_character_waits(self, tokenizer: Tokenizer) -> None:
        decoder = tokenizer.decoder(skip_special_tokens=False)
        ids = tokenizer.encode("\N{OGHAM LETTER BEITH}").tolist()  # not learned: byte by byte
        assert len(ids) == 3
        assert [decoder.push([token_id]) for token_id in ids] == ["", "", "\N{OGHAM LETTER BEITH}"]
        assert decoder.flush() == ""

    def test_character_that_never_came_is_replaced_at_the_end(self, tokenizer: Tokenizer) -> None:
        decoder = tokenizer.decoder(skip_special_tokens=False)
        first, *_ = tokenizer.encode("\N{OGHAM LETTER BEITH}").tolist()
        assert decoder.push([first]) == ""
        assert decoder.flush() == "\ufffd"
        assert decoder.flush() == ""

    def test_special_tokens_are_skipped_and_think_tokens_are_not(
        self, tokenizer: Tokenizer
    ) -> None:
        ids = tokenizer.encode("<|im_start|><think>a</think><|im_end|>")
        assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think>"
        assert (
            tokenizer.decode(ids, skip_special_tokens=False)
            == "<|im_start|><think>a</think><|im_end|>"
        )

    def test_ids_without_a_token_have_no_bytes(self, tokenizer: Tokenizer) -> None:
        for token_id in (-1, tokenizer.vocab_size - 1, tokenizer.vocab_size, 2**31 - 1):
            assert tokenizer.token_bytes(token_id) == b""


@pytest.mark.tokenizers
@pytest.mark.parametrize("name", vocabularies.NAMES)
def test_a_text_is_framed_as_the_checkpoint_frames_it(name: str) -> None:
    path = str(vocabularies.vocabulary(name))
    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    for text in ("Hello there", ""):
        framed = ours.framed(ours.encode(text)).tolist()
        assert framed == theirs.encode(text)


@pytest.mark.parametrize("joined_id", [None, 256, 300])
def test_a_token_that_spans_a_space_is_found_wherever_it_is_in_the_vocabulary(
    joined_id: int | None,
) -> None:
    """Also after ids that are left out. Then text is not cut there."""
    tokens = dict(byte_alphabet())
    merges = []
    if joined_id is not None:
        tokens["qĠ"], merges = joined_id, [("q", "Ġ")]
    backend = tokenizers.Tokenizer(models.BPE(tokens, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    encoder = Encoder(backend, ControlTokens({}, has_normalizer=False), TokenBytes(backend, {}))
    assert encoder.is_prefix_free is (joined_id is None)
