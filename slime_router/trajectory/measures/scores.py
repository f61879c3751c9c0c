"""What another model thinks of a row: the log-probability of each of its tokens. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from slime_router.types import WeightVersion


@dataclass(frozen=True, slots=True, eq=False)
class TeacherScore:
    """One worker group's view of the tokens of a row.

    `logprobs` has shape `[tokens]`, and is NaN where it was not asked for: of the first token, and
    of those before the response. `top_ids` and `top_logprobs` have shape `[tokens, k]`, with -1 and
    NaN there; k may be 0.
    """

    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    version: WeightVersion | None

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.logprobs.nbytes + self.top_ids.nbytes + self.top_logprobs.nbytes


Scores: TypeAlias = Mapping[str, TeacherScore]  # of a row, by worker group


def nbytes(scores: Scores) -> int:
    """The memory that they take together."""
    return sum(score.nbytes for score in scores.values())


def rescored(
    before: Mapping[str, Scores], group: str, scores: Mapping[str, TeacherScore]
) -> dict[str, Scores]:
    """What changes where a group has scored rows, each by its last turn, once more.

    `before` has what turns had; what the group said before of other rows is gone.
    """
    changed: dict[str, Scores] = {}
    for turn_id, known in before.items():
        others = {name: score for name, score in known.items() if name != group}
        if turn_id in scores:
            changed[turn_id] = {**others, group: scores[turn_id]}
        elif group in known:
            changed[turn_id] = others
    return changed
