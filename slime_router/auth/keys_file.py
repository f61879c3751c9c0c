"""The file of named API keys: a JSON object, or lines `name: key`. No error contains a key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from slime_router.auth.keys import check_key
from slime_router.configured_file import configured_text
from slime_router.errors import SetupError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


def read_keys_file(path: Path) -> dict[str, str]:
    """The keys by name.

    Raises:
        SetupError: the file cannot be read, has no keys, or holds an invalid name or key.
    """
    place = f"--api-keys-file {path}"
    try:
        text = configured_text(path)
    except OSError as exc:
        raise SetupError(f"{place}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise SetupError(f"{place}: is not UTF-8") from exc
    keys: dict[str, str] = {}
    pairs = _json_pairs(text, place) if text.lstrip().startswith("{") else _line_pairs(text, place)
    for name, key, where in pairs:
        if not _NAME.fullmatch(name):
            raise SetupError(f"{where}: a name is at most 128 of the characters A-Za-z0-9._@-")
        check_key(key, where)
        if name in keys:
            raise SetupError(f"{where}: the name {name!r} is given twice")
        keys[name] = str(key)
    if not keys:
        raise SetupError(f"{place}: has no keys")
    return keys


def _json_pairs(text: str, place: str) -> list[tuple[str, object, str]]:
    try:
        # Pairs, not a dict: a name given twice must be noticed.
        pairs = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as exc:
        raise SetupError(f"{place}: is not JSON: {exc}") from None  # its cause holds the text
    except (ValueError, RecursionError):  # the former of a number of thousands of digits
        raise SetupError(f"{place}: is not an object of names and keys") from None
    return [(name, key, f"{place}, key {i}") for i, (name, key) in enumerate(pairs, 1)]


def _line_pairs(text: str, place: str) -> Iterator[tuple[str, object, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{place}, line {number}"
        name, colon, key = line.partition(":")
        if not colon:
            raise SetupError(f"{where}: is not 'name: key'")
        yield name.strip(), key.strip(), where
