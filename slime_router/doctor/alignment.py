"""Meeting: where two sides that have diverged continue with the same tokens.

Nearest first, in windows that grow, so that the cost is that of the stretch that differs. Nothing
quadratic is done: the tokens of a whole conversation can be on either side.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from slime_router.doctor.token_text import TokenText
from slime_router.types import TokenIds

GRAM_LEN = 8  # equal tokens in a row that show that both sides are at the same place again
SIGHT_LEN = 64  # tokens that are searched first; four times as many when they do not meet there

Ends: TypeAlias = tuple[int, int]  # where a stretch that differs ends, held and rendered

_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def common_len(one: TokenIds, other: TokenIds) -> int:
    """How many tokens both have in common at the start."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length


def meeting(held: TokenText, i: int, rendered: TokenText, j: int) -> Ends:
    """The nearest place after `held[i] != rendered[j]` from which the tokens agree.

    Where both sides have the same control tokens up to there, it is the first of these: turns are
    compared one by one. Where they never agree again, it is the end of both.
    """
    i_end, j_end = _nearest(held, i, rendered, j)
    controls = held.controls_in(i, i_end), rendered.controls_in(j, j_end)
    kinds = held.ids[controls[0]], rendered.ids[controls[1]]
    if len(kinds[0]) and np.array_equal(*kinds):
        return int(controls[0][0]), int(controls[1][0])
    return i_end, j_end


def _nearest(held: TokenText, i: int, rendered: TokenText, j: int) -> Ends:
    rest = held.ids[i:], rendered.ids[j:]
    sight = SIGHT_LEN
    while True:
        found = _nearest_gram(rest[0][:sight], rest[1][:sight])
        if found is not None:
            return i + found[0], j + found[1]
        if sight >= max(map(len, rest)):
            break
        sight *= 4
    suffix_len = common_len(rest[0][::-1], rest[1][::-1])
    if suffix_len:
        return len(held) - suffix_len, len(rendered) - suffix_len
    return _last_control(held, i, rendered, j) or _next_control(held, i, rendered, j)


def _nearest_gram(one: TokenIds, other: TokenIds) -> Ends | None:
    """The nearest place at which `GRAM_LEN` tokens in a row are the same."""
    _, first, second = np.intersect1d(_hashes(one), _hashes(other), return_indices=True)
    if not len(first):
        return None
    nearest = int((first + second).argmin())
    at, beside = int(first[nearest]), int(second[nearest])
    is_equal = np.array_equal(one[at : at + GRAM_LEN], other[beside : beside + GRAM_LEN])
    return (at, beside) if is_equal else None  # hashes can collide


def _hashes(ids: TokenIds) -> NDArray[np.uint64]:
    """Of each run of `GRAM_LEN` tokens."""
    hashes = np.zeros(max(len(ids) - GRAM_LEN + 1, 0), np.uint64)
    for offset in range(GRAM_LEN):
        hashes *= _HASH_FACTOR
        hashes += ids[offset : offset + len(hashes)].astype(np.uint64)
    return hashes


def _last_control(held: TokenText, i: int, rendered: TokenText, j: int) -> Ends | None:
    """Where both have the control token that ends the held side, and what follows it."""
    controls = held.controls_in(max(i, len(held) - GRAM_LEN), len(held))
    if not len(controls):
        return None
    last = int(controls[-1])
    tail = held.ids[last:]
    for at in rendered.controls_in(j, len(rendered)).tolist():
        if np.array_equal(rendered.ids[at : at + len(tail)], tail):
            shared = common_len(held.ids[i:last][::-1], rendered.ids[j:at][::-1])
            return last - shared, at - shared
    return None


def _next_control(held: TokenText, i: int, rendered: TokenText, j: int) -> Ends:
    """The end of the side that is in its last turn, and the end of that turn on the other."""
    ends = len(held), len(rendered)
    controls = held.controls_in(i, ends[0]), rendered.controls_in(j, ends[1])
    if len(controls[0]) and not len(controls[1]):
        return int(controls[0][0]), ends[1]
    if len(controls[1]) and not len(controls[0]):
        return ends[0], int(controls[1][0])
    return ends
