"""The tiny checkpoint as a file, and its tokenizer as a router has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.tokens.tokenizer import Tokenizer
from tests.tiny import build_tiny_checkpoint


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Iterator[Tokenizer]:
    tokenizer = load_tokenizer(str(directory))
    yield tokenizer
    tokenizer.close()
