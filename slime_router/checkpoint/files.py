"""The files of a checkpoint: in a directory, or in a repository of the Hugging Face hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slime_router.checkpoint import hub
from slime_router.errors import SetupError, one_line


class CheckpointFiles:
    """Finds and reads a checkpoint's files by their names; a missing one is None or empty.

    Its errors do not name the checkpoint: the loader does.
    """

    def __init__(self, path_or_id: str) -> None:
        """SetupError where the name is a path without a directory, or an id that is out of reach.

        Attributes:
            name: the id; or the directory that has the files.
        """
        is_path = path_or_id.startswith(("/", "./", "../"))
        try:
            is_directory = Path(path_or_id).is_dir()
            is_path |= Path(path_or_id).exists()
        except OSError as exc:  # it may not be looked at, or its name is too long
            raise SetupError(f"cannot be read: {exc.strerror}") from exc
        if is_path and not is_directory:
            raise SetupError("no such directory")
        self.name = path_or_id if is_directory else hub.reached(path_or_id)

    def find(self, filename: str) -> Path | None:
        """Where the file is on this machine; fetched first where it is not."""
        with without_torch_advice():
            from transformers.utils.hub import cached_file

        try:
            path = cached_file(self.name, filename)
        except OSError:
            return None
        return None if path is None else Path(path)

    def find_ending(self, suffix: str) -> Path | None:
        """The first file in a checkpoint's directory whose name ends like this."""
        return next(iter(sorted(Path(self.name).glob(f"*{suffix}"))), None)

    def text(self, filename: str) -> str | None:
        """The text of the file; SetupError where it is not text."""
        path = self.find(filename)
        if path is None:
            return None
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as exc:
            raise SetupError(f"bad {filename}: {one_line(exc)}") from exc

    def json(self, filename: str) -> dict[str, Any]:
        """The object that the file holds; SetupError where it holds another value."""
        text = self.text(filename)
        if text is None:
            return {}
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise SetupError(f"bad {filename}: {one_line(exc)}") from exc
        if not isinstance(value, dict):
            raise SetupError(f"bad {filename}: not a JSON object")
        return value

    def chat_template(self) -> str | None:
        """The Jinja template in its own file, or in the tokenizer's configuration."""
        own = self.text("chat_template.jinja")
        if own is not None:
            return own
        return default_template(self.json("tokenizer_config.json").get("chat_template"))


@contextmanager
def without_torch_advice() -> Iterator[None]:
    """Without torch, `transformers` warns that it has no models. None is needed here."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger = logging.getLogger("transformers")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def default_template(template: Any) -> str | None:
    """The one that is used, of all the templates that a checkpoint may have.

    Raises:
        SetupError: one of several has no name or no template.
    """
    if isinstance(template, list):  # as tokenizer_config.json spells several
        try:
            template = {each["name"]: each["template"] for each in template}
        except (KeyError, TypeError) as exc:
            raise SetupError("bad chat_template: each of several needs 'name', 'template'") from exc
    if isinstance(template, dict):
        template = template.get("default") or template.get("tool_use")
    return template if isinstance(template, str) else None


def object_in(values: Mapping[str, Any], field: str, filename: str) -> dict[str, Any]:
    """The object in a field of a file; empty where there is none, SetupError for another value."""
    found = values.get(field) or {}
    if not isinstance(found, dict):
        raise bad_value(filename, field, "an object", found)
    return found


def bad_value(filename: str, field: str, expected: str, found: object) -> SetupError:
    """The error for a field that holds something else than it should."""
    return SetupError(f"bad {filename}: {field} is not {expected}: {str(found)[:80]!r}")
