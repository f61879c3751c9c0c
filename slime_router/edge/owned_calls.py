"""What one caller asks a worker, kept apart from what others ask it.

Two callers may use one rid, and a worker ends every generation whose rid begins with that of an
abort. So the rid that a worker sees begins with what only its caller's key can make. With
`--isolate-tenants` the worker's cache is parted likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slime_router.auth.caller import Caller
from slime_router.types import GenerateCall
from slime_router.values import replace


def own_call(call: GenerateCall, who: Caller, *, is_isolated: bool) -> GenerateCall:
    """The call as it goes to a worker for `who`."""
    if who.tag:
        asked_as = call.asked_as and who.own_rid(call.asked_as)
        call = replace(call, rid=who.own_rid(call.rid), asked_as=asked_as)
    if not is_isolated or not who.owner:
        return call
    return call.asking(own_fields(call.asked, who))


def own_fields(fields: Mapping[str, Any], who: Caller) -> dict[str, Any]:
    """`fields` with the caller's part of the worker's cache."""
    key = fields.get("extra_key")
    if isinstance(key, list):
        return {**fields, "extra_key": [f"{who.partition}{each or ''}" for each in key]}
    return {**fields, "extra_key": f"{who.partition}{key or ''}"}
