"""Long work that only a few may be at: the others wait before they have begun.

Each step of such work makes something long for the next one. Where many begin at once, all of that
is there at once, and waits for the slowest step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from itertools import chain
from typing import Any

from slime_router.json_text import sizes
from slime_router.types import Message

LONG_LEN = 2**16  # bytes of what a prompt is made of
MOST_LONG = 4  # such prompts that are made at a time: one is encoded, while others are rendered
LONG_TALK = 64  # messages: from here on a step may take a millisecond


class Turnstile:
    """Lets `places` of those in whose work is long, in the order of their coming; all others pass.

    `long_len`: bytes of JSON from which on work is long.
    """

    def __init__(self, places: int = MOST_LONG, long_len: int = LONG_LEN) -> None:
        self._places = asyncio.Semaphore(places)
        self._long_len = long_len

    def __repr__(self) -> str:
        return f"<Turnstile {self._places!r}>"

    def passing(self, values: Iterable[Any]) -> AbstractAsyncContextManager[object]:
        """For the block, what is made of these values is worked at."""
        left = self._long_len
        for size in chain.from_iterable(map(sizes, values)):
            left -= size
            if left <= 0:
                return self._places
        return nullcontext()


async def others_run(messages: Sequence[Message]) -> None:
    """Between two steps that take milliseconds each for a long conversation."""
    if len(messages) >= LONG_TALK:
        await asyncio.sleep(0)
