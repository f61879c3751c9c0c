"""Several rows in flat arrays: their parts one after the other, and where each one ends."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from slime_router.types import WeightVersion

Array = NDArray[Any]
NO_VERSION = -1  # the index of a token that no worker named a version of


def joined(arrays: Iterable[Array], dtype: DTypeLike) -> Array:
    """All arrays joined into one; an empty array if there are no arrays."""
    return np.concatenate([np.zeros(0, dtype), *arrays], dtype=dtype, casting="unsafe")


def offsets_of(lengths: Iterable[int]) -> NDArray[np.int64]:
    """Where parts of these lengths begin and end: part `i` is `[offsets[i], offsets[i + 1])`."""
    return np.cumsum([0, *lengths], dtype=np.int64)


def version_column(
    versions: Iterable[WeightVersion | None],
) -> tuple[NDArray[np.int32], list[WeightVersion]]:
    """The index of each token's version among all there are; they change seldom, so by runs."""
    runs = [(version, len(tuple(run))) for version, run in groupby(versions)]
    known: dict[WeightVersion, int] = {}
    ids = [NO_VERSION if v is None else known.setdefault(v, len(known)) for v, _ in runs]
    return np.repeat(np.array(ids, np.int32), [length for _, length in runs]), list(known)
