"""Long work aside: in a thread, so that the event loop, and with it every stream, goes on.

Python runs one thread at a time, and takes turns every few milliseconds. So each door that has such
work does one piece of it at a time: more of them would leave the loop less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

INLINE_SIZE = 16_000  # tokens, or as much else as takes about a millisecond


class Aside:
    """Does what is long in a thread; one piece after the other."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Aside {'busy' if self._turn.locked() else 'free'}>"

    async def run(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises; it touches nothing that changes meanwhile.

        Work of a smaller `size` than `INLINE_SIZE` is done at once, without a thread. A caller that
        is cancelled leaves; its work runs to its end, and the next piece waits for that.
        """
        if size < INLINE_SIZE:
            return work(*args, **kwargs)
        await self._turn.acquire()
        in_context = partial(copy_context().run, work, *args, **kwargs)
        ending = asyncio.get_running_loop().run_in_executor(None, in_context)
        ending.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(ending)
