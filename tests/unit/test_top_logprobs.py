"""Top logprobs of a part of a turn."""

from __future__ import annotations

import numpy as np

from slime_router.trajectory.measures.top_logprobs import TopLogprobs
from slime_router.types import token_ids


def test_a_part_begins_at_its_own_first_logprob() -> None:
    whole = TopLogprobs(
        np.array([0, 2, 3, 3, 6], np.int64),
        token_ids([10, 11, 20, 40, 41, 42]),
        np.array([-1, -2, -3, -4, -5, -6], np.float32),
    )
    part = whole.between(1, 4)
    part.check(3)
    assert len(part) == 3
    assert part.offsets.tolist() == [0, 1, 1, 4]
    assert part.lengths.tolist() == [1, 0, 3]
    assert part.ids.tolist() == [20, 40, 41, 42]
    assert part.logprobs.tolist() == [-3, -4, -5, -6]
    assert len(whole.between(2, 2)) == 0
