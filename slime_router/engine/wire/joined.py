"""Chunks that came together, as one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slime_router.types import GenerateChunk


def together(chunks: Sequence[GenerateChunk]) -> list[GenerateChunk]:
    """Each run of chunks under the same weights as one."""
    runs = [[chunks[0]]]
    for chunk in chunks[1:]:
        if runs[-1][-1].weight_version == chunk.weight_version or chunk.weight_versions:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    return [run[0] if len(run) == 1 else _joined(run) for run in runs]


def _joined(chunks: Sequence[GenerateChunk]) -> GenerateChunk:
    """Chunks as one: their tokens concatenated, everything else from the last."""
    lists: dict[str, Any] = {}
    for name in ("output_ids", "logprobs", "top_logprobs"):
        parts = [getattr(chunk, name) for chunk in chunks]
        if parts[-1] is not None:
            lists[name] = [each for part in parts if part is not None for each in part]
    if any(chunk.masks is not None for chunk in chunks):
        lists |= _masks(chunks)
    for name in ("routed_experts", "indexer_topk"):
        found = (getattr(chunk, name) for chunk in reversed(chunks))
        lists[name] = next((each for each in found if each is not None), None)
    return chunks[-1]._replace(**lists)


def _masks(chunks: Sequence[GenerateChunk]) -> dict[str, Any]:
    """The masks of all chunks; none if some chunk lacks its own, which is the worker's fault."""
    sampled = [chunk for chunk in chunks if chunk.output_ids]
    if any(chunk.masks is None or chunk.mask_logprobs is None for chunk in sampled):
        return {"masks": None, "mask_logprobs": None, "uncaptured": "not_given"}
    return {
        "masks": [mask for chunk in sampled for mask in chunk.masks or ()],
        "mask_logprobs": [value for chunk in sampled for value in chunk.mask_logprobs or ()],
        "uncaptured": "",
    }
