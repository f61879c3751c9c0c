"""What a tokenizer of `tokenizers` is made of: its normalizer, its decoder, as plain values.

The package shows that of the tokenizer as a whole only, with all of its vocabulary, which is
megabytes; of a part, its pickled state has it.
"""

from __future__ import annotations

import json
from typing import Any

from slime_router.errors import SetupError


def components(part: Any) -> list[dict[str, Any]]:
    """The plain components of a backend's normalizer, decoder, ...: sequences are opened.

    Raises:
        SetupError: this version of `tokenizers`, or a part written in Python, does not show them.
    """
    if part is None:
        return []
    try:
        found = _flatten(json.loads(part.__getstate__()))
    except Exception as exc:  # a part that is written in Python raises a bare one
        raise _misfit(part) from exc
    if not all(isinstance(component.get("type"), str) for component in found):
        raise _misfit(part)
    return found


def _flatten(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    [members] = [value for value in state.values() if isinstance(value, list)]
    return [leaf for member in members for leaf in _flatten(member)]


def _misfit(part: Any) -> SetupError:
    name = f"{type(part).__module__}.{type(part).__name__}"
    return SetupError(f"this version of tokenizers does not fit: what {name} does is not shown")
