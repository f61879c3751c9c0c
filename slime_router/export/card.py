"""The README of an export, as a card that Hugging Face's `datasets` reads: the schema. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from slime_router.export.columns import COLUMNS, Column
from slime_router.export.manifest import NAME

_WORDS = f"""\
# Training rows

Written by `slime-router export`: one row for each sequence that is ready to train on.
Which file holds which version of which session is in `{NAME}`, a line of JSON for each file.
Of a session with several versions, the highest counts.
"""


def card_of(form: str, suffix: str) -> bytes:
    """What stands in it for a format."""
    table = "".join(
        f"| `{each.name}` | {_kind_name(each.kind)} | {each.words} |\n" for each in COLUMNS
    )
    words = f"{_WORDS}\n| column | | |\n|---|---|---|\n{table}"
    if form == "safetensors":
        return words.encode()
    head = {
        "configs": [{"config_name": "default", "data_files": f"rows-*{suffix}"}],
        "dataset_info": {"features": [_feature(each, form) for each in COLUMNS]},
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{words}".encode()


def _feature(column: Column, form: str) -> dict[str, Any]:
    kind = column.kind
    if isinstance(kind, str):
        text = kind == "binary" and form == "jsonl"  # base64
        return {"name": column.name, "dtype": "string" if text else kind}
    return {"name": column.name, **_list(kind, form)}


def _list(kind: Sequence[Any], form: str) -> dict[str, Any]:
    first = kind[0]
    if isinstance(first, Column):
        return {"list": [_feature(each, form) for each in kind]}
    return {"sequence": first if isinstance(first, str) else _list(first, form)}


def _kind_name(kind: Any) -> str:
    if isinstance(kind, str):
        return kind
    first = kind[0]
    if isinstance(first, Column):
        return "list of " + ", ".join(f"`{each.name}` ({_kind_name(each.kind)})" for each in kind)
    return f"list of {_kind_name(first)}"
