"""Long work that only a few may be at: the others wait before they have begun.

Each step of such work leaves something long behind for the next one. Where many begin at once, all
of that is there at once, and the last step has it all before it.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from slime_router.json_text import sizes


class Turnstile:
    """Lets `places` of those in whose work is long, in the order of their coming; all others pass.

    `long_len`: bytes of JSON from which on work is long.
    """

    def __init__(self, places: int, long_len: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._long_len = long_len

    def __repr__(self) -> str:
        return f"<Turnstile {self._places!r}>"

    def passing(self, value: Any) -> AbstractAsyncContextManager[object]:
        """For the block, what is made of `value` is worked at."""
        left = self._long_len
        for size in sizes(value):
            left -= size
            if left <= 0:
                return self._places
        return nullcontext()
