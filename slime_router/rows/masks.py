"""What the tokens of a row were sampled from: the masks of its turns, laid out along its tokens.

Of each token of the row: its mask, empty where the whole vocabulary was left (or nobody sampled),
and its log-probability within that mask. Where the mask of a truncated sampling is unknown, it is
empty too, and the log-probability is `LOWEST_LOGPROB`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slime_router.trajectory.measures.distribution import Distribution, distribution
from slime_router.trajectory.turn import Logprobs
from slime_router.types import NO_TOKENS

LOWEST_LOGPROB = -9999.0  # in place of one that is missing or not finite


@dataclass(frozen=True, slots=True)
class MaskedSpan:
    """The sampled tokens `[start, end)` of a row.

    `masks` and `logprobs`, over the whole vocabulary, are those of a turn that begins at `start`.
    `is_cut`: it was sampled from a part of the vocabulary, at least some of it from an unknown one.
    """

    start: int
    end: int
    masks: Distribution | None
    logprobs: Logprobs | None
    is_cut: bool


def laid_out(spans: Sequence[MaskedSpan], length: int) -> Distribution | None:
    """The masks of a row of `length` tokens; None where none of its turns has any.

    The spans follow each other, and do not overlap.
    """
    if all(span.masks is None for span in spans):
        return None
    lengths = np.zeros(length, np.int32)
    logprobs = np.zeros(length, np.float32)
    ids = [NO_TOKENS]
    for span in spans:
        place, count = slice(span.start, span.end), span.end - span.start
        found = np.full(count, np.nan, np.float32)
        if span.logprobs is not None and not span.is_cut:
            found[:] = span.logprobs[:count]
        if span.masks is not None:
            masks = span.masks.first(count)
            lengths[place] = masks.lengths
            ids.append(masks.ids)
            found = np.where(masks.lengths > 0, masks.logprobs, found)
        logprobs[place] = np.where(np.isfinite(found), found, LOWEST_LOGPROB)
    return distribution(lengths, np.concatenate(ids), logprobs)
