"""What the tokens of a turn were sampled from, where that is a part of the vocabulary.

In CSR: the mask of token `i` is `ids[offsets[i] : offsets[i + 1]]`. An empty mask is the whole
vocabulary, or one that nobody knows: then the token's log-probability is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slime_router.types import NO_TOKENS, TokenIds

Offsets = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """The masks of so many tokens.

    `offsets` has shape `[tokens + 1]`, `ids` `[offsets[-1]]`, and `logprobs` `[tokens]`: of each
    token among the ids of its mask.
    """

    offsets: Offsets
    ids: TokenIds
    logprobs: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """How many ids each mask has, shape `[tokens]`."""
        return np.diff(self.offsets).astype(np.int32)

    def first(self, count: int) -> Distribution:
        """The part for the first `count` tokens."""
        offsets = self.offsets[: count + 1]
        return Distribution(offsets, self.ids[: offsets[-1]], self.logprobs[:count])

    def last(self, start: int) -> Distribution:
        """The part for the tokens from `start` on."""
        begin = self.offsets[start]
        offsets = self.offsets[start:] - begin
        return Distribution(offsets, self.ids[begin:], self.logprobs[start:])

    def check(self, output_len: int) -> None:
        """Whether its parts belong together, and to so many tokens.

        Raises:
            ValueError: they do not.
        """
        offsets, has_start = self.offsets, len(self.offsets) > 0 and self.offsets[0] == 0
        is_whole = (
            has_start and offsets[-1] == len(self.ids) and bool((np.diff(offsets) >= 0).all())
        )
        if not is_whole or len(offsets) != output_len + 1 or len(self.logprobs) != output_len:
            raise ValueError(f"sampling masks that are not those of {output_len} tokens")


def distribution(
    lengths: NDArray[np.int32], ids: TokenIds, logprobs: NDArray[np.float32]
) -> Distribution:
    """One of masks of these `lengths`, one after the other in `ids`."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    for array in (offsets, ids, logprobs):
        array.setflags(write=False)
    return Distribution(offsets, ids, logprobs)


def no_masks(count: int) -> Distribution:
    """One for this many tokens that says nothing about any of them."""
    logprobs = np.full(count, np.nan, np.float32)
    return distribution(np.zeros(count, np.int32), NO_TOKENS, logprobs)
