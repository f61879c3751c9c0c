"""The key that a client sends to a router that has keys, from where it is configured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from slime_router.configured_file import configured_text


def configured_key(environ: Mapping[str, str], names: Iterable[str]) -> str | None:
    """The key that the first of these variables holds, or that the file named by NAME_FILE does.

    Raises:
        ValueError: that file cannot be read, or is empty; the message is one line for the user.
    """
    for name in names:
        if key := environ.get(name):
            return key
        if file := environ.get(f"{name}_FILE"):
            try:
                key = configured_text(Path(file)).strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise ValueError(f"{name}_FILE: cannot read {file}: {exc}") from None
            if not key:
                raise ValueError(f"{name}_FILE: {file} is empty")
            return key
    return None


def key_headers(key: str | None) -> dict[str, str]:
    """The headers that carry it."""
    return {"Authorization": f"Bearer {key}"} if key else {}
