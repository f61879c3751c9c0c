"""What a worker's answer says beside its tokens fits them, or the worker has failed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from slime_router.engine import answer
from slime_router.errors import WorkerFailed
from slime_router.types import VersionSpan

IDS = [5, 6]


@pytest.mark.parametrize(
    "masks",
    [
        None,
        [[5]],  # of one token
        [[5], [6], [7]],
        [[5], None],
        [[5], []],
        [[5], [5, 7]],  # without the token itself
        [[5], [6, 7, 6]],  # an id twice
        [[5], [6, 10]],  # an id that the vocabulary has not
        [[5], [6, -1]],
    ],
)
def test_masks_hold_their_own_tokens_once(masks: Any) -> None:
    with pytest.raises(WorkerFailed):
        answer.masks(masks, IDS, vocab_size=10)


def test_masks_are_taken_as_they_came() -> None:
    masks = [[5], [9, 6, 0]]
    assert answer.masks(masks, IDS, vocab_size=10) is masks


@pytest.mark.parametrize(
    "values", [None, [-1.0], [-1.0] * 3, [-1.0, None], [-1.0, math.nan], [-1.0, "0"], [-1.0, True]]
)
def test_each_token_has_a_logprob_among_its_mask(values: Any) -> None:
    with pytest.raises(WorkerFailed):
        answer.mask_logprobs(values, IDS)
    assert answer.mask_logprobs([0, -1.5], IDS) == [0.0, -1.5]


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        (None, ()),
        ([], ()),
        ([("a", 0, 2)], (VersionSpan("a", 0, 2),)),
        ([("a", 0, 1), (7, 1, 2)], (VersionSpan("a", 0, 1), VersionSpan(7, 1, 2))),
        ([("a", 0, 1), (None, 1, 2)], (VersionSpan("a", 0, 1),)),
        ([("a", 1, 1)], (VersionSpan("a", 1, 1),)),
        ([("a", 0, 2), ("b", 1, 2)], None),  # they overlap
        ([("a", 1, 2), ("b", 0, 1)], None),  # in another order
        ([("a", 2, 1)], None),
        ([("a", 0, 3)], None),  # beyond the output
        ([("a", None, 2)], None),
        ([("a", 0, None)], None),
        ([("a", 0, 2.0)], None),
        ([(True, 0, 2)], None),
        ([("x" * (answer.MAX_VERSION_LEN + 1), 0, 2)], None),
        ([("a", 0, 0)] * (answer.MAX_EMPTY_SPANS + 3), None),
    ],
)
def test_versions_are_of_tokens_that_there_are(
    spans: Any, found: tuple[VersionSpan, ...] | None
) -> None:
    given = spans and [{"version": v, "start": start, "end": end} for v, start, end in spans]
    if found is None:
        with pytest.raises(WorkerFailed):
            answer.version_spans(given, len(IDS))
    else:
        assert answer.version_spans(given, len(IDS)) == found


def test_as_many_empty_spans_are_taken_as_there_may_be() -> None:
    spans = [{"version": "a", "start": 0, "end": 0}] * (answer.MAX_EMPTY_SPANS + len(IDS))
    assert len(answer.version_spans(spans, len(IDS))) == len(spans)
    assert answer.version("x" * answer.MAX_VERSION_LEN) is not None
