"""Conversations to measure with: real text, the same in every run."""

from __future__ import annotations

import argparse
import inspect
import tarfile
import typing
from functools import cache
from pathlib import Path

import tokenizers

from slime_router.types import Message


@cache
def _source() -> str:
    """Half a million characters of code and English: the standard library's own source."""
    return "".join(inspect.getsource(module) for module in (argparse, inspect, tarfile, typing))


def prose(start: int, length: int) -> str:
    """`length` characters, each time others as `start` goes on."""
    text = _source()
    start %= len(text) - length
    return text[start : start + length]


def messages(count: int, text_len: int) -> list[Message]:
    """A system prompt, then user and assistant in turn; `text_len` characters in all."""
    each = text_len // count
    roles = ("system", *(("user", "assistant") * count)[: count - 1])
    return [
        {"role": role, "content": prose(index * each, each)} for index, role in enumerate(roles)
    ]


def reply_ids(checkpoint: Path, count: int) -> list[int]:
    """`count` output ids that end with the stop token of ChatML."""
    backend = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    stop_id = backend.token_to_id("<|im_end|>")
    assert stop_id is not None, "the checkpoint is not ChatML's"
    text = "Certainly. " + prose(0, 8 * count)
    return [*backend.encode(text, add_special_tokens=False).ids[: count - 1], stop_id]
