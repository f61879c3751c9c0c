"""Long work goes to a thread, one piece at a time; short work is done at once."""

from __future__ import annotations

import asyncio
import threading

import pytest

from slime_router.aside import INLINE_SIZE, Aside
from tests.integration.gateway import until


def thread() -> int:
    return threading.get_ident()


async def test_what_is_short_is_done_at_once_and_what_is_long_elsewhere():
    aside = Aside()
    assert await aside.run(INLINE_SIZE - 1, thread) == thread()
    assert await aside.run(INLINE_SIZE, thread) != thread()


async def test_the_loop_goes_on_and_long_pieces_follow_each_other():
    aside, go_on = Aside(), threading.Event()
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        assert go_on.wait(30)
        return number

    pieces = [asyncio.create_task(aside.run(INLINE_SIZE, work, each)) for each in (1, 2)]
    await until(lambda: begun == [1])
    assert await aside.run(0, thread) == thread(), "short work does not wait for it"
    assert begun == [1]
    go_on.set()
    assert await asyncio.gather(*pieces) == begun == [1, 2]


async def test_what_it_raises_is_raised_and_the_next_piece_has_its_turn():
    aside = Aside()

    def fail() -> None:
        raise ValueError("no")

    for size in (0, INLINE_SIZE):
        with pytest.raises(ValueError, match="no"):
            await aside.run(size, fail)
    assert await aside.run(INLINE_SIZE, thread) != thread()


async def test_a_piece_whose_caller_left_keeps_its_turn_until_it_ends():
    aside, go_on = Aside(), threading.Event()
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        assert go_on.wait(30)
        return number

    left, stays = (asyncio.create_task(aside.run(INLINE_SIZE, work, each)) for each in (1, 2))
    await until(lambda: begun == [1])
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    for _ in range(100):
        await asyncio.sleep(0)
    assert begun == [1], "there is one thread at a time, whoever has left"
    go_on.set()
    assert await stays == 2
