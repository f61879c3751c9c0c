"""The likeliest tokens at the position of each sampled one, for trainers that learn from them.

In CSR: those at token `i` are `ids[offsets[i] : offsets[i + 1]]`, with `logprobs` beside them, over
the whole vocabulary. There may be none of some tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slime_router.types import TokenIds, token_ids


@dataclass(frozen=True, slots=True, eq=False)
class TopLogprobs:
    """The likeliest tokens at each of a number of tokens.

    `offsets` has shape `[tokens + 1]`, `ids` and `logprobs` have `[offsets[-1]]`.
    """

    offsets: NDArray[np.int64]
    ids: TokenIds
    logprobs: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int32]:
        """How many there are at each token, shape `[tokens]`."""
        return np.diff(self.offsets).astype(np.int32)

    def between(self, start: int, end: int) -> TopLogprobs:
        """The part for the tokens `[start, end)`."""
        begin, stop = self.offsets[start], self.offsets[end]
        offsets = self.offsets[start : end + 1] - begin
        return TopLogprobs(offsets, self.ids[begin:stop], self.logprobs[begin:stop])

    def check(self, output_len: int) -> None:
        """Whether its parts belong together, and to so many tokens.

        Raises:
            ValueError: they do not.
        """
        offsets, has_start = self.offsets, len(self.offsets) > 0 and self.offsets[0] == 0
        is_whole = has_start and bool((np.diff(offsets) >= 0).all())
        sizes = {len(self.ids), len(self.logprobs)}
        if not is_whole or sizes != {int(offsets[-1])} or len(offsets) != output_len + 1:
            raise ValueError(f"top logprobs that are not those of {output_len} tokens")


def top_logprobs(
    lengths: NDArray[np.int32], ids: TokenIds, logprobs: NDArray[np.float32]
) -> TopLogprobs:
    """Built from how many each token has, with `ids` and `logprobs` of all one after the other."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    for array in (offsets, ids, logprobs):
        array.setflags(write=False)
    return TopLogprobs(offsets, ids, logprobs)


def of_nested(tokens: Sequence[Sequence[tuple[float, int]]]) -> TopLogprobs:
    """Built from one list of (log-probability, id) for each token."""
    pairs = [pair for token in tokens for pair in token]
    return top_logprobs(
        np.array([len(token) for token in tokens], np.int32),
        token_ids([token for _, token in pairs]),
        np.array([logprob for logprob, _ in pairs], np.float32),
    )


def laid_out(
    spans: Sequence[tuple[int, int, TopLogprobs | None]], length: int
) -> TopLogprobs | None:
    """The likeliest tokens of a row of `length` tokens; only some spans have any.

    The spans follow each other, and do not overlap. None where none of them has any.
    """
    known = [
        (start, end, tops.between(0, end - start)) for start, end, tops in spans if tops is not None
    ]
    if not any(len(tops.ids) for *_, tops in known):
        return None
    lengths = np.zeros(length, np.int32)
    for start, end, tops in known:
        lengths[start:end] = tops.lengths
    return top_logprobs(
        lengths,
        np.concatenate([tops.ids for *_, tops in known]),
        np.concatenate([tops.logprobs for *_, tops in known]),
    )
