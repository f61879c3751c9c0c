"""Turns: one generation each, exactly as it was sampled. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slime_router.trajectory.experts import RoutedExperts
from slime_router.types import Finish, Receipt, TokenIds, VersionSpan, WeightVersion

Logprobs = NDArray[np.float32] | NDArray[np.float64]


def logprob_array(values: Sequence[float | None]) -> Logprobs:
    """Log-probabilities of shape `[tokens]`, NaN for a missing one, bit for bit as they came.

    SGLang computes them in float32, so half the memory keeps them exactly; where a worker gives
    more digits, float64 does.
    """
    exact = np.array(values, np.float64)  # None becomes NaN
    with np.errstate(over="ignore"):
        small = exact.astype(np.float32)
    is_exact = small.astype(np.float64).tobytes() == exact.tobytes()
    result = small if is_exact else exact
    result.setflags(write=False)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One generation as it was sampled."""

    id: str
    base: str | None  # the turn whose held tokens the prompt begins with
    base_len: int  # how many of them
    prompt_ids: TokenIds  # the prompt after those
    output_ids: TokenIds
    logprobs: Logprobs | None  # of output_ids; None when they were not asked for
    weight_versions: tuple[VersionSpan, ...]
    finish: Finish
    keys: tuple[bytes, ...] = ()  # the conversation with the reply appended
    spelling: bytes = b""  # how its replies are spelled, white space included
    asked: bytes | None = None  # the key of the conversation that it answered
    calls: tuple[tuple[str, str], ...] = ()  # id and name of the tool calls in the reply
    handles: tuple[str, ...] = ()  # those of their ids that no other turn can have
    session_id: str | None = None
    scope: str = ""
    date: str | None = None  # pinned for the conversation
    request_id: str = ""  # shared by the samples that one request asked for
    receipt: Receipt | None = None
    routed_experts: RoutedExperts | None = None
    epoch: int = 0  # counts weight updates; see `slime_router.weights`
    seq: int = 0  # set by the store

    @property
    def held_len(self) -> int:
        """Prompt and output tokens in all."""
        return self.base_len + len(self.prompt_ids) + len(self.output_ids)

    @property
    def own_len(self) -> int:
        """The tokens that it adds to its base."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def last_id(self) -> int | None:
        """The last held token that was sampled, whatever the worker says of the stop."""
        return int(self.output_ids[-1]) if len(self.output_ids) else None

    def output_versions(self) -> list[WeightVersion | None]:
        """The weight version of each output token, None where the worker gave none."""
        versions: list[WeightVersion | None] = [None] * len(self.output_ids)
        for span in self.weight_versions:
            start, end = max(span.start, 0), min(span.end, len(versions))
            versions[start:end] = [span.version] * max(end - start, 0)
        return versions


@dataclass(frozen=True, slots=True)
class Trace:
    """Tokens with what training needs of each; all of one length."""

    ids: TokenIds
    loss_mask: NDArray[np.int8]  # 1 where a model sampled the token
    logprobs: NDArray[np.float64]  # NaN where there is none
    weight_versions: tuple[WeightVersion | None, ...]
