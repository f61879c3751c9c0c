"""What a checkpoint's directory holds decides how it is read, and what is refused, in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slime_router.checkpoint import sglang_entry, tekken, tiktoken_file
from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.errors import BadRequest, SetupError
from slime_router.types import TemplateOptions
from tests.checkpoints import (
    KIMI_KEPT,
    KIMI_TOKENS,
    RENDERS,
    SORTS_TOOLS,
    build_deepseek_checkpoint,
    build_glm_checkpoint,
    build_tiktoken_checkpoint,
    slow_code,
    tiny_ranks,
    write_json,
)
from tests.tiny import CHATML, VOCAB_LEN, build_tiny_checkpoint

HELLO = [{"role": "user", "content": "Hello"}]
PLAIN = TemplateOptions()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def hide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a package one that is not installed."""
    import importlib

    real = importlib.import_module

    def without(asked: str, package: str | None = None) -> object:
        if asked.split(".")[0] == name:
            raise ImportError(f"No module named {name!r}")
        return real(asked, package)

    monkeypatch.setattr(importlib, "import_module", without)


class TestTiktoken:
    def test_is_read_as_the_package_reads_it(self, directory):
        tokenizer = load_tokenizer(str(build_tiktoken_checkpoint(directory)))
        names = {name: VOCAB_LEN + i for i, name in enumerate(KIMI_TOKENS + KIMI_KEPT)}
        for name, token_id in names.items():
            assert tokenizer.encode(f"Hello{name}").tolist()[-1] == token_id
            assert tokenizer.is_control(token_id)
            assert tokenizer.is_special(token_id) == (name not in KIMI_KEPT)
        assert tokenizer.eos_ids == {names["[EOS]"], names["<|im_end|>"]}
        assert tokenizer.vocab_size == VOCAB_LEN + 16

    def test_ids_without_a_name_are_control_tokens_as_far_as_the_model_has_them(self, directory):
        tokenizer = load_tokenizer(str(build_tiktoken_checkpoint(directory)))
        last = VOCAB_LEN + 15
        assert tokenizer.encode(f"<|reserved_token_{last}|>").tolist() == [last]
        assert len(tokenizer.encode(f"<|reserved_token_{last + 1}|>")) > 1

    def test_the_pattern_is_read_from_the_checkpoints_code_which_is_not_run(self, directory):
        code = "raise RuntimeError('it was run')\n" + slow_code()
        path = build_tiktoken_checkpoint(directory, code=code, model_type="other")
        tokenizer = load_tokenizer(str(path))
        # Its pattern keeps a word apart from what stands before it, other than Kimi's own.
        ids = tokenizer.encode("{Hello").tolist()
        assert ids == [*tokenizer.encode("{"), *tokenizer.encode("Hello")]

    @pytest.mark.parametrize(
        "spelled",
        [
            "PATTERN = r'''\\p{L}+|[^\\p{L}]+'''\n",
            "PATTERN: str = r'''\\p{L}+''' + '|' + r'''[^\\p{L}]+'''\n",
            "PARTS = r'''\\p{L}+'''\nPATTERN = '|'.join((PARTS, r'''[^\\p{L}]+'''))\n",
        ],
    )
    def test_a_pattern_of_the_module_is_found_too(self, directory, spelled):
        code = spelled + "class Slow:\n    def build(self): return Encoding(pat_str=PATTERN)\n"
        path = build_tiktoken_checkpoint(directory, code=code, model_type="other")
        ids = load_tokenizer(str(path)).encode("Hello, 1").tolist()
        assert len(ids) >= 2

    def test_with_trust_the_checkpoints_own_tokenizer_is_the_witness(self, directory):
        path = build_tiktoken_checkpoint(directory, code=slow_code(), model_type="other")
        load_tokenizer(str(path), trust_remote_code=True)
        lies = "    def encode(self, text, **kwargs):\n        return [7]\n"
        code = directory / "tokenization_slow.py"
        code.write_text(slow_code(lies), encoding="utf-8")
        with pytest.raises(SetupError, match="cannot be reproduced exactly"):
            load_tokenizer(str(path), trust_remote_code=True)

    def test_with_trust_its_own_code_renders(self, directory):
        path = build_tiktoken_checkpoint(directory, code=slow_code(SORTS_TOOLS))
        tokenizer = load_tokenizer(str(path), trust_remote_code=True)
        tool = {"type": "function", "function": {"name": "f"}}
        text = tokenizer.render(HELLO, TemplateOptions(tools=(tool,)))
        assert '{"function": {"name": "f"}, "type": "function"}' in text
        loud = tokenizer.render(HELLO, TemplateOptions(kwargs={"shout": True}))
        assert "HELLO" in loud, "an argument of its own is the template's"
        with pytest.raises(BadRequest, match="'tokenize' is not an argument"):
            tokenizer.render(HELLO, TemplateOptions(kwargs={"tokenize": True}))
        with pytest.raises(BadRequest) as refused:
            tokenizer.render(HELLO, TemplateOptions(kwargs={"messages": []}))
        assert refused.value.param == "chat_template_kwargs.messages"

    def test_a_template_of_the_users_own_needs_no_code(self, directory):
        path = build_tiktoken_checkpoint(directory, code=slow_code(SORTS_TOOLS))
        assert load_tokenizer(str(path), chat_template=CHATML).chat_template == CHATML

    def test_a_template_in_a_file_of_its_own_goes_first(self, directory):
        path = build_tiktoken_checkpoint(directory)
        (directory / "chat_template.jinja").write_text("own {{ messages }}", encoding="utf-8")
        assert load_tokenizer(str(path)).chat_template == "own {{ messages }}"

    @pytest.mark.parsers
    def test_a_model_that_has_code_in_the_place_of_a_template(self, directory):
        path = build_tiktoken_checkpoint(
            directory, code=slow_code(RENDERS), template=None, architecture="KimiK3ForCausalLM"
        )
        tokenizer = load_tokenizer(str(path), trust_remote_code=True)
        assert tokenizer.chat_template == "the checkpoint's own Slow"
        text = tokenizer.render(HELLO, TemplateOptions(kwargs={"reasoning_effort": "low"}))
        assert text == (
            "<|im_middle|>low<|im_user|>user<|im_middle|>Hello<|im_end|>"
            "<|im_assistant|>assistant<|im_middle|>"
        )

    @pytest.mark.parsers
    def test_its_text_must_read_as_its_ids(self, directory):
        code = slow_code(RENDERS.replace("return self.encode(text)", "return [7]"))
        path = build_tiktoken_checkpoint(
            directory, code=code, template=None, architecture="KimiK3ForCausalLM"
        )
        with pytest.raises(SetupError, match="renders token ids that no text stands for"):
            load_tokenizer(str(path), trust_remote_code=True)


class TestGlm:
    @pytest.mark.parsers
    def test_a_format_can_be_asked_for_by_its_name(self, directory):
        path = str(build_glm_checkpoint(directory))
        assert load_tokenizer(path).chat_template is None, "its name alone says too little"
        tokenizer = load_tokenizer(path, chat_template="glm-5.3")
        assert tokenizer.render(HELLO, PLAIN).endswith("<|user|>Hello<|assistant|><think>")
        assert tokenizer.chat_template == "SGLang's Python template glm-5.3"

    def test_a_vocabulary_of_another_family_is_refused(self, directory):
        path = str(build_tiny_checkpoint(directory))
        with pytest.raises(SetupError, match=r"no vocabulary for glm-5.3: it has no token '\[gM"):
            load_tokenizer(path, chat_template="glm-5.3")


def break_ranks(directory: Path, line: bytes) -> None:
    path = directory / "tiktoken.model"
    path.write_bytes(path.read_bytes() + line)


def without_control_tokens(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "added_tokens_decoder": {}})


def without_template(directory: Path) -> Path:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "chat_template": None})
    return directory


def two_ids(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["added_tokens_decoder"][str(VOCAB_LEN)]["content"] = "the"
    write_json(path, config)


def only_sentence_piece(directory: Path) -> None:
    (directory / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    write_json(directory / "config.json", {"model_type": "llama"})


def llama_ranks(directory: Path) -> None:
    """`tokenizer.model` that is a file of tiktoken's: `transformers` would guess its pattern."""
    build_tiktoken_checkpoint(directory, model_type="llama")
    (directory / "tiktoken.model").rename(directory / "tokenizer.model")


DYNAMIC = slow_code().replace('pat_str = "|".join', 'pat_str = str("|").join')
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing at all": (
        lambda path: None,
        r"the directory has no vocabulary, such as tokenizer\.json$",
    ),
    "weights alone": (
        lambda path: write_json(path / "config.json", {"model_type": "qwen3"}),
        "the directory has no vocabulary",
    ),
    "a vocabulary that is broken": (
        lambda path: (path / "tokenizer.json").write_text("{"),
        "cannot load the tokenizer: ",
    ),
    "only a SentencePiece file": (only_sentence_piece, "tokenizer"),
    "ranks without code, of an unknown model": (
        lambda path: build_tiktoken_checkpoint(path, model_type="other"),
        r"tiktoken.model without a constant split pattern \(there is no tokenizer code\)",
    ),
    "ranks by another name": (llama_ranks, "tokenizer.model without a constant split pattern"),
    "a pattern that is computed": (
        lambda path: build_tiktoken_checkpoint(path, code=DYNAMIC),
        r"without a constant split pattern \(tokenization_slow.py builds it\)",
    ),
    "code that is not Python": (
        lambda path: build_tiktoken_checkpoint(path, code="class ("),
        "bad tokenization_slow.py: ",
    ),
    "a pattern of too many parts": (
        lambda path: build_tiktoken_checkpoint(path, code="P = " + " + ".join(["'a'"] * 2000)),
        "bad tokenization_slow.py: ",
    ),
    "code that renders": (
        lambda path: build_tiktoken_checkpoint(path, code=slow_code(SORTS_TOOLS)),
        "tokenization_slow.py renders chats: start with --trust-remote-code",
    ),
    "a model whose format is its code": (
        lambda path: build_tiktoken_checkpoint(
            path, template=None, architecture="KimiK3ForCausalLM"
        ),
        "its own Python code renders chats: start with --trust-remote-code",
    ),
    "ranks with a hole": (
        lambda path: break_ranks(build_tiktoken_checkpoint(path), b"enp6eg== 9999\n"),
        "bad tiktoken.model: the ranks do not count from 0",
    ),
    "ranks that are not base64": (
        lambda path: break_ranks(build_tiktoken_checkpoint(path), b"!!! 512\n"),
        "bad tiktoken.model: ",
    ),
    "no control tokens": (
        lambda path: without_control_tokens(
            build_tiktoken_checkpoint(path, code=slow_code().replace("reserved_special", "other"))
        ),
        "tiktoken.model without control tokens in tokenizer_config.json",
    ),
    "a control token that is an ordinary one": (
        lambda path: two_ids(build_tiktoken_checkpoint(path)),
        "the token 'the' has two ids",
    ),
    "a broken tekken file": (
        lambda path: write_json(path / "tekken.json", {"vocab": []}),
        "bad tekken.json: ",
    ),
    "a vocabulary that is not DeepSeek's": (
        lambda path: write_json(
            build_tiny_checkpoint(path) / "config.json",
            {"model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"]},
        ),
        "no vocabulary for DeepSeek-V4-Pro: ",
    ),
    "a vocabulary that is not that of DeepSeek V3.2": (
        lambda path: write_json(
            without_template(build_tiny_checkpoint(path)) / "config.json",
            {"model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"]},
        ),
        "no vocabulary for DeepSeek-V3.2: it has no token '<｜begin",
    ),
    "a format of token ids": (
        lambda path: write_json(
            without_template(build_tiny_checkpoint(path)) / "config.json",
            {"model_type": "inkling", "architectures": ["InklingForConditionalGeneration"]},
        ),
        "SGLang renders its chats by 'inkling', which the router cannot do as text",
    ),
}


@pytest.mark.parsers
@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_that_cannot_be_served_exactly_is_refused_in_one_line(directory, what):
    build, message = REFUSED[what]
    build(directory)
    with pytest.raises(SetupError, match=message) as caught:
        load_tokenizer(str(directory))
    assert str(caught.value).startswith(f"{directory}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("package", "build", "hint"),
    [
        ("tiktoken", build_tiktoken_checkpoint, tiktoken_file.PACKAGE_HINT),
        (
            "mistral_common",
            lambda path: write_json(path / "tekken.json", {}),
            tekken.PACKAGE_HINT,
        ),
        ("sglang", build_deepseek_checkpoint, "run `slime-router install-parsers`"),
        (
            "deepseek_recipe",
            lambda path: build_deepseek_checkpoint(path, "DeepseekV4ForCausalLM", "deepseek_v4"),
            r"pip install 'slime-router\[deepseek\]'",
        ),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(
    directory, monkeypatch, package, build, hint
):
    build(directory)
    if package == "deepseek_recipe":
        module = sglang_entry.import_from_sglang("parser.deepseek_recipe_renderer")

        def missing() -> object:
            raise ImportError("no deepseek_recipe")

        monkeypatch.setattr(module, "load_deepseek_recipe", missing)
    else:
        hide(package, monkeypatch)
    pattern = hint.replace("[", r"\[") if "\\" not in hint else hint
    with pytest.raises(SetupError, match=pattern) as caught:
        load_tokenizer(str(directory))
    assert "\n" not in str(caught.value)


def test_without_sglang_a_template_still_serves(directory, monkeypatch):
    build_deepseek_checkpoint(directory)
    (directory / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    hide("sglang", monkeypatch)
    assert load_tokenizer(str(directory)).chat_template == CHATML


def test_a_fast_tokenizer_goes_before_the_other_files(directory):
    build_tiny_checkpoint(directory)
    (directory / "tekken.json").write_text("broken", encoding="utf-8")
    (directory / "tiktoken.model").write_text("broken", encoding="utf-8")
    assert load_tokenizer(str(directory)).chat_template == CHATML


def test_the_ranks_of_the_tiny_vocabulary_are_whole(directory):
    ranks = tiny_ranks(directory)
    assert sorted(ranks.values()) == list(range(VOCAB_LEN))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("config.json", [], "bad config.json: not a JSON object"),
        ("config.json", [["vocab_size", 5]], "bad config.json: not a JSON object"),
        ("generation_config.json", None, "bad generation_config.json: not a JSON object"),
        ("config.json", {"text_config": 3}, "bad config.json: text_config is not an object: '3'"),
        ("config.json", {"vocab_size": "9"}, "vocab_size is not a number of tokens: '9'"),
        ("config.json", {"vocab_size": True}, "vocab_size is not a number of tokens"),
        ("config.json", {"text_config": {"vocab_size": -1}}, "vocab_size is not a number"),
        ("config.json", {"max_position_embeddings": "4k"}, "max_position_embeddings is not a num"),
        ("config.json", {"eos_token_id": "</s>"}, "eos_token_id is not a token id or a list of"),
        ("config.json", {"architectures": "Qwen3"}, "architectures is not a list of names"),
        ("generation_config.json", {"eos_token_id": [1, "x"]}, "bad generation_config.json: eos"),
        ("tokenizer_config.json", {"auto_map": ["a.B"]}, "bad tokenizer_config.json: auto_map"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9999": {}}}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"600": {"content": 3}}}, "not a text"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9" * 11: {"content": "<a>"}}},
            "a token id: ",
        ),
        ("tokenizer_config.json", {"chat_template": [1]}, "bad chat_template"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "bad chat_template"),
    ],
)
def test_a_file_with_other_values_than_it_should_have_is_one_line(
    directory: Path, name: str, value: object, reason: str
) -> None:
    path = build_tiktoken_checkpoint(directory)
    kept = json.loads((path / name).read_text()) if (path / name).exists() else {}
    write_json(path / name, {**kept, **value} if isinstance(value, dict) else value)
    with pytest.raises(SetupError) as caught:
        load_tokenizer(str(path))
    assert caught.value.message.startswith(f"{path}: ")
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"multimodal": ["vision"]}, "bad params.json: multimodal is not an object"),
        ({"vocab_size": "9"}, "bad params.json: vocab_size is not a number of tokens: '9'"),
        ({"max_seq_len": [4]}, "bad params.json: max_seq_len is not a number of"),
    ],
)
def test_the_same_of_mistrals_own_file(directory, params, reason):
    build_tiny_checkpoint(directory)
    (directory / "config.json").unlink()
    write_json(directory / "params.json", params)
    with pytest.raises(SetupError, match=reason):
        load_tokenizer(str(directory))


def test_a_file_that_nests_without_end_is_one_line(directory):
    (build_tiny_checkpoint(directory) / "generation_config.json").write_text("[" * 100_000)
    with pytest.raises(SetupError, match=r"bad generation_config\.json: ") as caught:
        load_tokenizer(str(directory))
    assert "\n" not in caught.value.message


def test_what_cannot_be_opened_as_ranks_is_one_line(directory):
    build_tiktoken_checkpoint(directory)
    (directory / "tiktoken.model").unlink()
    (directory / "qwen.tiktoken").mkdir()
    with pytest.raises(SetupError, match=r"bad qwen.tiktoken: Is a directory"):
        load_tokenizer(str(directory))
