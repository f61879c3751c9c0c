"""Checkpoints without `tokenizer.json` or without a Jinja template, made on the spot."""

from __future__ import annotations

import base64
import importlib
import importlib.resources
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_router.chat.decoder import byte_alphabet
from tests.tiny import CONTEXT_LEN, VOCAB_LEN, build_tiny_checkpoint

KIMI_TOKENS = ("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>")
KIMI_KEPT = ("<think>", "</think>")  # control tokens that skip_special_tokens keeps
KIMI_TEMPLATE = (
    "{% if tools %}<|im_middle|>{{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_assistant|>' if message.role == 'assistant' else '<|im_user|>' }}"
    "{{ message.role }}<|im_middle|>{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)
# A tokenizer as checkpoints bring it along: slow, by tiktoken. `{methods}` may add to it.
TOKENIZER_CODE = '''
import tiktoken
from tiktoken.load import load_tiktoken_bpe
from transformers import PreTrainedTokenizer

class Slow(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "tiktoken.model"}
    num_reserved_special_tokens = 20
    pat_str = "|".join([
        r"""[\\p{Han}]+""",
        r""" ?[\\p{L}&&[^\\p{Han}]]+""",
        r"""\\p{N}{1,3}""",
        r""" ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*""",
        r"""\\s*[\\r\\n]+""",
        r"""\\s+(?!\\S)""",
        r"""\\s+""",
    ])

    def __init__(self, vocab_file, added_tokens_decoder=None, **kwargs):
        ranks = load_tiktoken_bpe(vocab_file)
        named = {int(i): str(token) for i, token in (added_tokens_decoder or {}).items()}
        end = len(ranks) + self.num_reserved_special_tokens + 2
        self.names = {
            named.get(i, f"<|reserved_token_{i}|>"): i for i in range(len(ranks), end)
        }
        self.model = tiktoken.Encoding(
            "slow", pat_str=self.pat_str, mergeable_ranks=ranks, special_tokens=self.names
        )
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return self.model.n_vocab

    def get_vocab(self):
        return dict(self.names)

    def encode(self, text, add_special_tokens=False, **kwargs):
        return self.model.encode(text, allowed_special="all")
{methods}
'''
SORTS_TOOLS = """
    def apply_chat_template(self, conversation, tools=None, shout=False, **kwargs):
        tools = tools and [dict(sorted(tool.items())) for tool in tools]
        text = super().apply_chat_template(conversation, tools=tools, **kwargs)
        return text.upper() if shout else text
"""
RENDERS = """
    def apply_chat_template(self, conversation, tools=None, tokenize=True,
                            add_generation_prompt=False, thinking_effort="max", **kwargs):
        text = f"<|im_middle|>{thinking_effort}"
        for message in conversation:
            text += f"<|im_user|>{message['role']}<|im_middle|>{message['content']}<|im_end|>"
        if add_generation_prompt:
            text += "<|im_assistant|>assistant<|im_middle|>"
        return self.encode(text) if tokenize else text
"""


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def tiny_ranks(directory: Path) -> dict[bytes, int]:
    """The tiny checkpoint's vocabulary as tiktoken would keep it."""
    build_tiny_checkpoint(directory)
    model = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    alphabet = byte_alphabet()
    return {bytes(alphabet[c] for c in token): rank for token, rank in model["vocab"].items()}


def build_tiktoken_checkpoint(
    directory: Path,
    *,
    code: str | None = None,
    template: str | None = KIMI_TEMPLATE,
    model_type: str = "kimi_k2",
    architecture: str = "",
) -> Path:
    """Shaped as Kimi K2's: ranks, names of control tokens, and perhaps a tokenizer's code."""
    ranks = tiny_ranks(directory / "scratch")
    shutil.rmtree(directory / "scratch")
    lines = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    (directory / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    ids = {name: VOCAB_LEN + index for index, name in enumerate(KIMI_TOKENS + KIMI_KEPT)}
    tokenizer_config: dict[str, Any] = {
        "tokenizer_class": "Slow",
        "bos_token": "[BOS]",
        "eos_token": {"content": "[EOS]", "__type": "AddedToken"},
        "added_tokens_decoder": {
            str(token_id): {"content": name, "special": name not in KIMI_KEPT}
            for name, token_id in ids.items()
        },
    }
    if template is not None:
        tokenizer_config["chat_template"] = template
    if code is not None:
        tokenizer_config["auto_map"] = {"AutoTokenizer": ["tokenization_slow.Slow", None]}
        (directory / "tokenization_slow.py").write_text(code, encoding="utf-8")
    write_json(directory / "tokenizer_config.json", tokenizer_config)
    config = {
        "model_type": model_type,
        "architectures": [architecture] if architecture else [],
        "vocab_size": VOCAB_LEN + 16,
        "max_position_embeddings": CONTEXT_LEN,
    }
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {"eos_token_id": ids["<|im_end|>"]})
    return directory


def slow_code(methods: str = "") -> str:
    """The tokenizer's code, perhaps with methods more."""
    return TOKENIZER_CODE.replace("{methods}", methods).replace("\\\\", "\\")


DEEPSEEK_TOKENS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "｜DSML｜",
)


GLM_TOKENS = (
    *("[gMASK]", "<|endoftext|>", "<sop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)


def build_glm_checkpoint(directory: Path) -> Path:
    """A tiny vocabulary with GLM's control tokens, and no template."""
    return build_deepseek_checkpoint(directory, "GlmMoeDsaForCausalLM", "glm_moe_dsa", GLM_TOKENS)


def build_deepseek_checkpoint(
    directory: Path,
    architecture: str = "DeepseekV32ForCausalLM",
    model_type: str = "deepseek_v32",
    tokens: Sequence[str] = DEEPSEEK_TOKENS,
) -> Path:
    """A tiny vocabulary with DeepSeek's control tokens, and no template.

    The second of `tokens` ends a turn.
    """
    build_tiny_checkpoint(directory)
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["normalizer"] = None
    names = [*tokens, "<think>", "</think>"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    data["added_tokens"] = [
        {"id": VOCAB_LEN + index, "content": name, "special": "think" not in name, **flags}
        for index, name in enumerate(names)
    ]
    write_json(path, data)
    eos = VOCAB_LEN + 1
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokens[1]},
    )
    config = {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": VOCAB_LEN + 16,
        "max_position_embeddings": CONTEXT_LEN,
        "eos_token_id": eos,
    }
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {"eos_token_id": eos})
    return directory


TEKKEN_PART_LEN = 5000
TEKKEN_FILES = ("tekken_240718.json", "tekken_240911.json")


def build_tekken_checkpoint(directory: Path, name: str, version: str | None = None) -> Path:
    """One of the vocabularies in `mistral-common`, or the like in a later version of the format."""
    base = importlib.import_module("mistral_common.tokens.tokenizers.base")
    source = importlib.resources.files("mistral_common") / "data" / name
    data = json.loads(source.read_text(encoding="utf-8"))
    if version is not None:
        data["config"]["version"] = version
        data["special_tokens"] = [
            {"rank": rank, "token_str": token.value, "is_control": True}
            for rank, token in enumerate(base.SpecialTokens)
        ]
        # A part of the vocabulary is as good, and soon read.
        data["config"]["default_vocab_size"] = 1000 + TEKKEN_PART_LEN
        if int(version[1:]) >= 15:
            efforts = {"values": ["none", "high"], "default": "none"}
            data["model_settings_builder"] = {"reasoning_effort": efforts}
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "tekken.json", data)
    params = {
        "dim": 64,
        "n_layers": 2,
        "vocab_size": data["config"]["default_vocab_size"],
        "max_seq_len": CONTEXT_LEN,
    }
    write_json(directory / "params.json", params)
    return directory
