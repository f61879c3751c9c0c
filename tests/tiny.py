"""A tiny checkpoint, trained on the spot: a byte-level BPE with ChatML, shaped as Qwen's are."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

VOCAB_LEN = 512  # tokens that the BPE learns, its 256 bytes included
SPARE_IDS = 27  # ids the model has and the tokenizer has not, as real checkpoints do
CONTEXT_LEN = 2048
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK_TOKENS = ("<think>", "</think>")  # control tokens that skip_special_tokens keeps

# How Qwen cuts text before BPE.
SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Plain ChatML: each message stands alone, so that every longer conversation appends.
CHATML = """\
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if tools -%}
{{- '<|im_start|>system\n' -}}
{%- if system -%}{{- system + '\n\n' -}}{%- endif -%}
{{- '# Tools\n\nThe signatures of the functions that can be called:\n<tools>' -}}
{%- for tool in tools -%}{{- '\n' + tool | tojson -}}{%- endfor -%}
{{- '\n</tools>\n\nCall a function with a JSON object between <tool_call> tags:\n' -}}
{{- '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n' -}}
{%- elif system -%}
{{- '<|im_start|>system\n' + system + '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\n' -}}
{%- if message.reasoning_content -%}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' -}}
{%- endif -%}
{%- if message.content -%}{{- message.content -}}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{%- if message.content or not loop.first -%}{{- '\n' -}}{%- endif -%}
{{- '<tool_call>\n{"name": "' + function.name + '", "arguments": ' -}}
{%- if function.arguments is string -%}
{{- function.arguments -}}
{%- else -%}
{{- function.arguments | tojson -}}
{%- endif -%}
{{- '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- elif message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- else -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

CORPUS = (
    "You are a helpful assistant. The user asks and the assistant answers in a few words.",
    "Hello there! How are you today? I am fine, thank you. Hello world, hello again.",
    "What is the weather in Paris? It is sunny in Paris and it rains in Berlin.",
    "SELECT name, count(*) FROM users GROUP BY name HAVING count(*) > 10;",
    '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}',
    '{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}',
    "def add(first, second):\n    return first + second\n\n\nfor index in range(10):\n    pass",
    "the quick brown fox jumps over the lazy dog, and then the dog sleeps the whole day",
    "thinking about the question: first this, then that, so the answer is forty two.\n\nYes.\n",
    "東京は日本の首都です。 Grüße aus Köln, déjà vu, naïve café. Привет мир. 🙂🙃",
)


def build_tiny_checkpoint(directory: Path) -> Path:
    """Write the checkpoint's files into `directory` (made when missing) and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    _train().save(str(directory / "tokenizer.json"))
    for name, content in _configs().items():
        (directory / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return directory


def _train() -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_LEN,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS]
    )
    return tokenizer


def _configs() -> dict[str, dict[str, object]]:
    first = VOCAB_LEN
    ids = {token: first + index for index, token in enumerate(SPECIAL_TOKENS + THINK_TOKENS)}
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHATML,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT_LEN,
            "added_tokens_decoder": {
                str(ids[token]): {
                    "content": token,
                    "lstrip": False,
                    "rstrip": False,
                    "single_word": False,
                    "normalized": False,
                    "special": token in SPECIAL_TOKENS,
                }
                for token in ids
            },
        },
        "config.json": {
            "model_type": "qwen2",
            "vocab_size": VOCAB_LEN + len(ids) + SPARE_IDS,
            "max_position_embeddings": CONTEXT_LEN,
            "eos_token_id": ids["<|im_end|>"],
        },
        "generation_config.json": {
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        },
    }
