"""What the router and its sessions decide about a call, whatever its client asks. Pure.

Every call of every API passes through here once, after all doors and plug-ins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from slime_router.auth.caller import owned, owner_of, shown
from slime_router.engine.request import asked_for, has_finite_top_k, sampling_params, truncates
from slime_router.types import GenerateCall, Pins
from slime_router.values import replace

_SHOWN_LEN = 40  # characters of a value in a receipt
_PARTING_NAMES = ("lora_path", "extra_key", "cache_salt")
_PARTING_FIELDS = frozenset(_PARTING_NAMES)


@dataclass(frozen=True, slots=True)
class SamplingRules:
    """What holds for all calls: `pins`, and the `top_k` of a truncated sampling without one.

    Without a finite `top_k` no worker says what it samples from; None leaves it away. So many
    `top_logprobs` of each token are kept in sessions that do not say it themselves.
    """

    pins: Pins = field(default_factory=Pins)
    mask_top_k: int | None = None
    top_logprobs: int = 0

    def applied(self, call: GenerateCall, pins: Pins | None = None) -> GenerateCall:
        """The call under these rules; a session's own `pins` go before those of all.

        Its notes say what was replaced.
        """
        usual = call.sampling.usual_max_tokens
        if usual is not None and call.sampling.max_tokens is None:  # nor does its session say it
            call = replace(call, sampling=replace(call.sampling, max_tokens=usual))
        pins = self.pins if pins is None else pins.over(self.pins)
        if pins.names:
            replaced = ", ".join(_replaced(call, pins))
            call = call.pinned(pins)
            if replaced:
                call = replace(call, notes=(*call.notes, f"pinned: {replaced}"))
        if self.mask_top_k is None:
            return call
        params = sampling_params(call)
        if not truncates(params) or has_finite_top_k(params):
            return call
        note = f"top_k {self.mask_top_k} added, so that the worker says what it samples from"
        return replace(call, mask_top_k=self.mask_top_k, notes=(*call.notes, note))


def _replaced(call: GenerateCall, pins: Pins) -> Iterator[str]:
    """What the client asked for and does not get: each with the value that it gave."""
    asked = asked_for(sampling_params(call))
    pinned = asked_for(sampling_params(call.pinned(pins)))
    for name in pins.names:
        if name in asked and asked[name] != pinned.get(name):
            yield f"{name} {orjson.dumps(asked[name]).decode()[:_SHOWN_LEN]}"


def parting(fields: Mapping[str, Any]) -> str:
    """A name for the adapter, extra key and cache salt in `fields`; "" where there are none.

    It is a digest: every node and turn below has it, and none need know what it stands for.
    """
    if _PARTING_FIELDS.isdisjoint(fields):  # as mostly
        return ""
    values = [fields.get(name) or None for name in _PARTING_NAMES]
    return blake2b(orjson.dumps(values), digest_size=16).hexdigest() if any(values) else ""


def parting_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a body says of the fields that part the caches."""
    return {name: body[name] for name in _PARTING_NAMES if body.get(name)}


def with_fields(call: GenerateCall, fields: Mapping[str, Any]) -> GenerateCall:
    """The call with its session's own fields for the worker: adapter, extra key, priority.

    The extra key is appended to the one that the call has. The caches are parted accordingly; an
    adapter that the session replaces parts nothing, as it samples nothing.
    """
    if not fields:
        return call
    asked, own = dict(call.asked), dict(fields)
    if "extra_key" in own:
        own["extra_key"] = f"{asked.get('extra_key') or ''}{own['extra_key']}"
    lost = [name for name in ("lora_path", "priority") if name in own and asked.get(name)]
    replaced = [name for name in lost if asked[name] != own[name]]
    notes = (f"set by the session: {', '.join(replaced)}",) if replaced else ()
    adapter, extra_key = fields.get("lora_path"), fields.get("extra_key")
    if adapter or extra_key:
        is_lost = adapter and asked.get("lora_path")
        base = parting({**asked, "lora_path": None}) if is_lost else shown(call.scope)
        digest = blake2b(orjson.dumps([base, adapter, extra_key]), digest_size=16)
        call = replace(call, scope=owned(owner_of(call.scope), digest.hexdigest()))
    return replace(call.asking({**asked, **own}), notes=(*call.notes, *notes))
