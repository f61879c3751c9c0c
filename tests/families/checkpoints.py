"""Checkpoints to examine families with: a real vocabulary, a family's control tokens, a template.

The model's own vocabulary is seldom to be had. What matters of it is which of its tokens are
control tokens: those are added to a real vocabulary, as special tokens, in a scratch directory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from slime_router.checkpoint.checkpoint import load_checkpoint
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.template.chat_template import ChatTemplate
from slime_router.template.renderer import JinjaRenderer
from slime_router.tokens.model import Model
from slime_router.tokens.tokenizer import Tokenizer
from tests.vocabularies import CACHE as VOCABULARIES
from tests.vocabularies import vocabulary

CACHE = VOCABULARIES.with_name("families")


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: its template and what it is served with."""

    name: str
    template: str | None  # None: the vocabulary's own
    vocabulary: str = "qwen3"
    controls: tuple[str, ...] = ()  # added to the vocabulary
    ends: tuple[str, ...] = ()  # end tokens; the vocabulary's own where none are named
    tools: str | None = None  # names of SGLang's parsers
    reasoning: str | None = None
    strips: bool = False  # white space after its control tokens (`rstrip`)
    bos: str | None = None

    @property
    def made_of(self) -> tuple[object, ...]:
        """What its files are made of: those that differ in the template alone share them."""
        return self.vocabulary, self.controls, self.ends, self.strips, self.bos

    def tokenizer(self) -> Tokenizer:
        """Loaded once; it never changes."""
        return _tokenizer(self)

    def chat_template(self) -> ChatTemplate:
        """A new one: its self-test is run again, and it has seen no conversation."""
        return ChatTemplate(self.tokenizer())

    def parsers(self) -> ReplyParsers:
        """The parsers of replies that the family is served with."""
        return _parsers(self)


@lru_cache(maxsize=4)  # each takes 40 MB
def _parsers(family: Family) -> ReplyParsers:
    return ReplyParsers(
        load_parsers,
        tools=family.tools,
        reasoning=family.reasoning,
        new_call_id=family.chat_template().spelling.new_id,
        added_tokens=family.tokenizer().added_names(),
    )


@lru_cache(maxsize=4)  # each takes 40 MB
def _tokenizer(family: Family) -> Tokenizer:
    model = _model(_directory(family))
    if family.template is not None:
        model = replace(model, renderer=JinjaRenderer(model.hf, family.template))
    return Tokenizer(model)


@lru_cache(maxsize=2)  # a second each; `tests/conftest.py` has those that share one in a row
def _model(directory: Path) -> Model:
    return load_checkpoint(str(directory))


def _directory(family: Family) -> Path:
    """Where the files lie."""
    code = Path(__file__).read_bytes()
    directory = CACHE / sha256(code + repr(family.made_of).encode()).hexdigest()[:16]
    if not directory.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".new-") as scratch:
            whole = Path(scratch, "whole")
            whole.mkdir()
            write_checkpoint(family, whole)
            with suppress(OSError):  # another process was faster
                whole.rename(directory)
    return directory


def write_checkpoint(family: Family, directory: Path) -> None:
    """The files that a tokenizer is loaded from."""
    source = vocabulary(family.vocabulary)
    model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    ids = with_controls(model, family.controls, strips=family.strips)
    settings.pop("added_tokens_decoder", None)  # the library reads them from tokenizer.json
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if family.bos is not None:
        settings["bos_token"] = family.bos
    if family.ends:
        settings["eos_token"] = family.ends[0]
        settings.setdefault("bos_token", None)
    ends = [ids[end] for end in family.ends] or None
    write_json(directory / "tokenizer.json", model)
    write_json(directory / "tokenizer_config.json", settings)
    write_json(directory / "config.json", {"model_type": "qwen3"})
    write_json(directory / "generation_config.json", {"eos_token_id": ends} if ends else {})


def with_controls(
    model: dict[str, Any], controls: Sequence[str], *, strips: bool = False
) -> dict[str, int]:
    """Adds control tokens to a `tokenizer.json`; the ids of all its added tokens, by content."""
    ids = {each["content"]: each["id"] for each in model["added_tokens"]}
    known = model["model"]["vocab"]
    last = max([*(known.values() if isinstance(known, dict) else ()), *ids.values()], default=0)
    for content in controls:
        if content in ids:
            continue
        last += 1
        ids[content] = last
        model["added_tokens"].append(
            {
                "id": last,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": strips,
                "normalized": False,
                "special": True,
            }
        )
    return ids


def write_json(path: Path, value: Any) -> None:
    """One file of the checkpoint."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
