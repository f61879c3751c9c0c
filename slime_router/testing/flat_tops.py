"""Top logprobs as SGLang lays them out in two flat arrays. Pure."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def lays_flat(body: Mapping[str, Any]) -> bool:
    """Whether a request asks for those of its output as base64."""
    names = ("return_flat_raw_output_top_logprobs", "return_flat_raw_top_logprobs_b64")
    return all(body.get(name) for name in names)


def flat_tops(nested: Sequence[Sequence[Sequence[Any]]], count: int) -> dict[str, Any]:
    """What `meta_info` has in place of the nested ones, `count` at each position."""
    values = np.array([[each[0] for each in row] for row in nested], "<f4").reshape(-1, count)
    ids = np.array([[each[1] for each in row] for row in nested], "<i4").reshape(-1, count)
    return {
        "output_top_logprobs_val_flat_b64": b64encode(values.tobytes()).decode(),
        "output_top_logprobs_idx_flat_b64": b64encode(ids.tobytes()).decode(),
        "output_top_logprobs_val_flat_b64_dtype": "float32",
        "output_top_logprobs_idx_flat_b64_dtype": "int32",
        "output_top_logprobs_shape": list(values.shape),
        "output_top_logprobs_null_prefix": 0,
    }
