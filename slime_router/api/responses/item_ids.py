"""Ids of output items. Each has its response's in it: any router finds that in a shared store."""

from __future__ import annotations

import re

_RESPONSE = "resp_"
_ID_LEN = 48  # hex digits of a response
_ITEM = re.compile(rf"[a-z]+_([0-9a-f]{{{_ID_LEN}}})[0-9a-f]{{4,}}")


def item_id(prefix: str, response_id: str, index: int) -> str:
    """The id of a response's output item, such as `msg_...`."""
    return f"{prefix}_{response_id.removeprefix(_RESPONSE)}{index:04x}"


def response_of_item(name: str) -> str | None:
    """The id of the response that has this output item; None where the id does not say."""
    found = _ITEM.fullmatch(name)
    return None if found is None else f"{_RESPONSE}{found[1]}"
