"""Of long work a few are at a time, in order; what is short never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from slime_router.waiting import turnstile as module
from slime_router.waiting.fair_queue import Party
from slime_router.waiting.turnstile import Turnstile

NOBODY = Party("", "")
LONG, SHORT = [{"content": "x" * 50}, {"content": "x" * 50}], [{"content": "x"}]


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_long_wait_and_the_short_pass():
    turnstile = Turnstile(2, 100)
    begun, may_end = [], asyncio.Event()

    async def work(name: str, value: list[dict[str, str]]) -> None:
        async with turnstile.passing(value, Party("", name)):
            begun.append(name)
            await may_end.wait()

    async with asyncio.TaskGroup() as tasks:
        for number in range(4):
            tasks.create_task(work(f"long {number}", LONG))
        await settled()
        tasks.create_task(work("short", SHORT))
        await settled()
        assert begun == ["long 0", "long 1", "short"]
        may_end.set()
    assert begun[3:] == ["long 2", "long 3"]


async def test_whoever_leaves_gives_the_place_on():
    turnstile = Turnstile(1, 100)
    begun = []

    async def work(name: str) -> None:
        async with turnstile.passing(LONG, NOBODY):
            begun.append(name)
            await asyncio.Event().wait()

    first, second, third = (asyncio.create_task(work(name)) for name in "abc")
    await settled()
    second.cancel()  # while it waits
    await settled()
    assert begun == ["a"], "it had no place to give"
    first.cancel()
    await settled()
    assert begun == ["a", "c"]
    third.cancel()
    await asyncio.gather(first, second, third, return_exceptions=True)


@pytest.mark.parametrize(
    ("value", "is_long"), [("x" * 99, False), ("x" * 100, True), (None, False)]
)
async def test_what_is_long(value, is_long):
    turnstile = Turnstile(1, 100)
    async with turnstile.passing(LONG, NOBODY):
        entering = asyncio.ensure_future(turnstile.passing(iter([value]), NOBODY).__aenter__())
        await settled()
        assert entering.done() is not is_long
        entering.cancel()
        await settled()


async def test_characters_of_four_bytes_are_long_sooner():
    turnstile = Turnstile(1, 10_000)
    async with turnstile.passing(["x" * 10_000], NOBODY):
        entering = asyncio.ensure_future(turnstile.passing(["😀" * 2500], NOBODY).__aenter__())
        await settled()
        assert not entering.done()
        entering.cancel()
        await settled()


async def test_owners_take_turns_however_much_each_has():
    turnstile = Turnstile(1, 100)
    begun: list[str] = []

    async def work(owner: str, name: str) -> None:
        async with turnstile.passing(LONG, Party(owner, name)):
            begun.append(owner)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(work("many", f"{number}"))
        await asyncio.sleep(0)
        for number in range(2):
            tasks.create_task(work("few", f"{number}"))
    assert begun.index("few") <= 3
    assert sorted(begun) == ["few"] * 2 + ["many"] * 20
    assert "".join(each[0] for each in begun).count("ff") == 0


async def test_whoever_is_cancelled_as_its_turn_comes_gives_the_place_on():
    turnstile = Turnstile(1, 100)
    await turnstile.enter(NOBODY)
    two, three = (asyncio.create_task(turnstile.enter(Party("", name))) for name in "ab")
    await settled()
    turnstile.leave()
    two.cancel()  # it was given the place, and has not run since
    await settled()
    assert two.cancelled()
    assert three.done()
    turnstile.leave()
    await asyncio.wait_for(turnstile.enter(NOBODY), 30)


async def test_whoever_is_cancelled_while_it_waits_takes_no_turn_of_its_owner():
    """Neither before it is noticed, as here of the first, nor afterwards."""
    turnstile, begun = Turnstile(1, 100), []

    async def work(owner: str, name: str) -> None:
        await turnstile.enter(Party(owner, ""))
        begun.append(name)

    await turnstile.enter(NOBODY)
    names = (("x", "x1"), ("a", "a1"), ("a", "a2"), ("b", "b1"))
    tasks = [asyncio.create_task(work(owner, name)) for owner, name in names]
    await settled()
    tasks[1].cancel()
    await settled()
    tasks[0].cancel()
    for _ in range(3):
        turnstile.leave()
        await settled()
    assert begun == ["a2", "b1"]
    await asyncio.wait_for(turnstile.enter(NOBODY), 30)


@pytest.mark.parametrize("unsaid", [None, "", []])
async def test_a_long_conversation_is_not_walked_through(monkeypatch, unsaid):
    def walked(_: object) -> Iterator[int]:
        raise AssertionError

    monkeypatch.setattr(module, "sizes", walked)
    talk = [{"role": "user", "content": "x" * 50}, {"role": "assistant", "content": unsaid}] * 64
    turnstile = Turnstile(1, 50 * 64)
    async with turnstile.passing(talk, NOBODY):
        assert turnstile._free == 0
