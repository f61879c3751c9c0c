"""The sampling masks of a fake worker: which requests for them it refuses, and what it gives. Pure.

By SGLang's rules: `top_k` is finite and at most the worker's cap (greedy sampling is a `top_k` of
1), and a mask has the sampled token and others that follow it in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slime_router.testing.script import Refusal

MOST = 4  # ids in a mask


def mask_refusal(body: Mapping[str, Any], params: Mapping[str, Any], cap: int) -> Refusal | None:
    """Why a worker gives no masks to this request; None where it does, or is not asked."""
    if body.get("sampling_logprobs_mode") is not None and not body.get("return_sampling_mask"):
        words = "sampling_logprobs_mode can only be set when return_sampling_mask=true."
        return Refusal({"error": {"message": words}})
    top_k = width(params)
    if not body.get("return_sampling_mask") or 0 < top_k <= cap:
        return None
    words = (
        "return_sampling_mask requires top_k=1 for greedy sampling or finite 1 < top_k <= "
        f"{cap}; got top_k={top_k}. Lower top_k or increase --sampling-mask-max-tokens."
    )
    return Refusal({"error": {"message": words}})


def width(params: Mapping[str, Any]) -> int:
    """How many tokens may be sampled from; -1: all."""
    if params.get("temperature") == 0:
        return 1
    return params.get("top_k") or -1


def mask_fields(
    body: Mapping[str, Any],
    params: Mapping[str, Any],
    ids: Sequence[int],
    *,
    begin: int,
    vocab_size: int,
) -> dict[str, Any]:
    """What `meta_info` has for the tokens from `begin` on; nothing where it was not asked for."""
    if not body.get("return_sampling_mask"):
        return {}
    count = min(width(params), MOST)
    masks = [[(token + rank) % vocab_size for rank in range(count)] for token in ids[begin:]]
    steps = range(begin, len(ids))
    logprobs = [-0.25 * (step % 4 + 1) if count > 1 else 0.0 for step in steps]
    return {
        "output_token_sampling_mask": masks,
        "output_token_sampling_logprobs": logprobs,
        "output_token_sampling_mask_length": len(ids),
    }
