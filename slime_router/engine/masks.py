"""What a token was sampled from: whether a worker is asked for that, and why not. Pure.

Under top-p, top-k, min-p or greedy sampling a token comes from a part of the vocabulary, its mask.
SGLang says which ids were left, and the log-probability of the sampled one among them, where
`top_k` is finite and at most its `--sampling-mask-max-tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from slime_router.choices import Capture
from slime_router.engine.request import has_finite_top_k, truncates
from slime_router.pool.worker import Worker
from slime_router.types import GenerateCall

Uncaptured: TypeAlias = Literal["", "not_asked", "no_top_k", "refused", "pair", "not_given"]

MASK: Final = "output_token_sampling_mask"
LOGPROBS: Final = "output_token_sampling_logprobs"
LENGTH: Final = "output_token_sampling_mask_length"


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """Whether a worker is asked for masks, and what it means where an answer has none.

    `is_clients`: the client asked by itself, and gets them.

    uncaptured: "" where the whole vocabulary was sampled from, else
    not_asked: nothing asks for them: by `--capture`, or as there is no session
    no_top_k:  SGLang gives them only where `top_k` is finite
    refused:   the worker has refused: its cap, a speculative or a custom sampler, an old version
    pair:      prefill and decode workers
    not_given: it was asked, and has answered without
    """

    asks: bool = False
    uncaptured: Uncaptured = ""
    is_clients: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """What the body of the request has for it, at top level."""
        if not self.asks or self.is_clients:
            return {}
        return {"return_sampling_mask": True, "sampling_logprobs_mode": "selected"}


NO_MASKS = MaskPlan()


def mask_plan(
    call: GenerateCall, params: Mapping[str, Any], capture: Capture, worker: Worker
) -> MaskPlan:
    """The plan for `call` at this worker, which may have sampling defaults of its own.

    `params` are the call's `sampling_params`.
    """
    if call.asked.get("return_sampling_mask"):
        is_read = call.asked.get("sampling_logprobs_mode") in (None, "selected")
        return MaskPlan(asks=is_read, uncaptured="not_given", is_clients=True)
    if worker.preferred_sampling:
        params = {**worker.preferred_sampling, **params}
    if capture == "off" or not truncates(params):
        return NO_MASKS
    reason = _obstacle(call, capture, params, is_pair=worker.kind != "regular")
    return MaskPlan(asks=not reason, uncaptured=reason or "not_given")


def _obstacle(
    call: GenerateCall, capture: Capture, params: Mapping[str, Any], *, is_pair: bool
) -> Uncaptured:
    if capture == "tokens" or (capture == "full" and call.session_id is None):
        return "not_asked"
    if call.masks_refused:
        return "refused"
    if is_pair:
        return "pair"
    return "" if has_finite_top_k(params) else "no_top_k"


def without_masks(item: dict[str, Any]) -> dict[str, Any]:
    """A worker's item as it would be if nobody had asked for masks."""
    meta = item.get("meta_info")
    if not isinstance(meta, dict):
        return item
    rest = {name: value for name, value in meta.items() if name not in (MASK, LOGPROBS, LENGTH)}
    return {**item, "meta_info": rest}
