"""A tiny checkpoint of a model that sees pictures, and what workers run it."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.testing import FakeWorker
from slime_router.testing.pictures import Sight
from slime_router.tokens.tokenizer import Tokenizer
from tests.checkpoints import write_json
from tests.integration.gateway import Words, tiny_worker
from tests.tiny import build_tiny_checkpoint

TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
PAD = TOKENS[1]
# As those of Qwen's models that see: parts one after the other, a picture in a frame.
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content or [] -%}
{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def build_seeing_checkpoint(directory: Path) -> Path:
    """Write it into `directory`, which is returned."""
    build_tiny_checkpoint(directory)
    path = directory / "tokenizer.json"
    backend = Backend.from_file(str(path))
    backend.add_special_tokens(
        [AddedToken(each, special=True, normalized=False) for each in TOKENS]
    )
    backend.save(str(path))
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder")
    write_json(directory / "tokenizer_config.json", settings | {"chat_template": TEMPLATE})
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    pad = backend.token_to_id(PAD)
    assert pad is not None
    write_json(
        directory / "config.json",
        config | {"image_token_id": pad, "vision_config": {"depth": 1}, "vocab_size": pad + 8},
    )
    return directory


@cache
def seeing_tokenizer(directory: Path) -> Tokenizer:
    """Its tokenizer."""
    return load_tokenizer(str(directory))


def seeing_worker(directory: Path, **settings: Any) -> FakeWorker:
    """A worker that runs the checkpoint in `directory`."""
    tokenizer = seeing_tokenizer(directory)
    assert tokenizer.picture_id is not None
    worker = tiny_worker(vocab_size=tokenizer.vocab_size, tokenizer=Words(tokenizer), **settings)
    worker._engine.sight = Sight(tokenizer.picture_id)
    return worker


def picture(name: str) -> str:
    """A data URL; other names are other pictures."""
    return f"data:image/png;base64,{base64.b64encode(name.encode()).decode()}"
