"""Long work that only a few may be at: the others wait before they have begun.

Each step of such work makes something long for the next one. Where many begin at once, all of that
is there at once, and waits for the slowest step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from itertools import chain
from math import inf
from typing import Any

from slime_router.json_text import sizes

LONG_LEN = 2**16  # bytes of what a prompt is made of
MOST_LONG = 4  # such prompts that are made at a time: one is encoded, while others are rendered
LONG_TALK = 64  # messages: from here on a step may take a millisecond
_CHARACTER_LEN = 4  # bytes at most
_MESSAGE_LEN = 128  # bytes, for the names of its fields
_TEXT = frozenset((str,))


class Turnstile:
    """Lets `places` of those in whose work is long, in the order of their coming; all others pass.

    `long_len`: bytes of JSON from which on work is long.
    """

    def __init__(self, places: int = MOST_LONG, long_len: int = LONG_LEN) -> None:
        self._places = asyncio.Semaphore(places)
        self._passage = nullcontext()
        self._long_len = long_len

    def __repr__(self) -> str:
        return f"<Turnstile {self._places!r}>"

    def passing(self, values: Iterable[Any]) -> AbstractAsyncContextManager[object]:
        """For the block, what is made of these values is worked at."""
        values = tuple(values)
        if _most_len(values) < self._long_len:
            return self._passage
        left = self._long_len
        for size in chain.from_iterable(map(sizes, values)):
            left -= size
            if left <= 0:
                return self._places
        return self._passage


async def others_run() -> None:
    """Between two steps that take milliseconds each for a long conversation, see `LONG_TALK`."""
    await asyncio.sleep(0)


def _most_len(values: Sequence[Any]) -> float:
    """No more bytes than this are in texts, or in messages that are texts alone; others: no end."""
    total = 0
    for each in values:
        texts = (each,) if type(each) is str else each.values() if type(each) is dict else (None,)
        if not _TEXT.issuperset(map(type, texts)):
            return inf
        total += _MESSAGE_LEN + _CHARACTER_LEN * sum(map(len, texts))
    return total
