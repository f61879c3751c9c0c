"""Top logprobs of a part of a turn."""

from __future__ import annotations

import numpy as np
import pytest

from slime_router.trajectory.measures.top_logprobs import TopLogprobs, of_nested
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


@pytest.mark.parametrize(
    ("offsets", "ids", "logprobs"),
    [
        ([], [], []),
        ([0, 1], [10], [-1]),
        ([0, 1, 1, 2], [10, 11], [-1, -2]),
        ([1, 1, 2], [10, 11], [-1, -2]),
        ([0, 2, 1], [10], [-1]),
        ([0, 1, 2], [10], [-1]),
        ([0, 1, 2], [10, 11], [-1]),
        ([0, 1, 2], [10], [-1, -2]),
    ],
    ids=[
        "nothing", "too few", "too many", "a late start", "backwards", "no ids", "no logprobs",
        "an id too few",
    ],
)  # fmt: skip
def test_parts_that_do_not_belong_together_are_refused(offsets, ids, logprobs) -> None:
    tops = TopLogprobs(np.array(offsets, np.int64), token_ids(ids), np.array(logprobs, np.float32))
    with pytest.raises(ValueError, match="not those of 2 tokens"):
        tops.check(2)


def test_what_a_worker_nests_is_laid_flat_and_cannot_be_changed() -> None:
    tops = of_nested([[(-1.0, 10), (-2.0, 11)], [], [(-3.0, 30)]])
    tops.check(3)
    of_nested([[]]).check(1)
    assert tops.offsets.tolist() == [0, 2, 2, 3]
    assert [tops.ids.tolist(), tops.logprobs.tolist()] == [[10, 11, 30], [-1.0, -2.0, -3.0]]
    assert [each.dtype for each in (tops.offsets, tops.logprobs)] == [np.int64, np.float32]
    assert not any(each.flags.writeable for each in (tops.offsets, tops.ids, tops.logprobs))
