"""What takes long is done in pieces, between which others run: the loop's turns are counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from slime_router.types import GenerateCall, Message, TemplateOptions
from slime_router.waiting.turnstile import LONG_TALK
from tests.stack import Sample, Stack, is_free


async def turns_of_the_loop(work: Coroutine[Any, Any, object]) -> int:
    """How often others get to run until `work` is done."""
    turns = 0
    loop = asyncio.get_running_loop()

    def count() -> None:
        nonlocal turns
        turns += 1
        if not task.done():
            loop.call_soon(count)

    task = asyncio.create_task(work)
    loop.call_soon(count)
    await task
    return turns


def talk(messages: int) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    return tuple({"role": roles[i % 2], "content": f"word {i}"} for i in range(messages))


async def test_the_prompt_of_a_long_conversation_is_made_in_pieces():
    stack = Stack()

    async def make(messages: int) -> None:
        call = GenerateCall(
            rid="r", turn_id="t", messages=talk(messages), template=TemplateOptions()
        )
        stack.maker.release(await stack.maker.make(call))

    at_once = await turns_of_the_loop(make(LONG_TALK - 1))
    in_pieces = await turns_of_the_loop(make(LONG_TALK + 1))
    assert in_pieces >= at_once + 4  # to recognise it, to render it, to look at that, to encode it


async def test_a_turn_that_nobody_has_rendered_from_is_continued_in_a_thread(monkeypatch):
    """As after a restart: to see that the template appends, all of it is rendered, twice."""
    stack = Stack()
    asked = [f"word {number}" for number in range(LONG_TALK + 1)]
    said = await stack.generate(stack.call(asked), Sample([65, 66, 67]))
    stack.maker._layouts._layouts.clear()
    threads = []
    suffix = stack.template.suffix

    def noted(*args, **kwargs):
        threads.append(threading.current_thread())
        return suffix(*args, **kwargs)

    monkeypatch.setattr(stack.template, "suffix", noted)
    for question in ("and", "then"):
        asked = [*asked, said, question]
        turn = await stack.turn(stack.call(asked), Sample([65, 66, 67]))
        assert turn.receipt is not None
        assert turn.receipt.status == "extended"
    first, second = threads
    assert first is not threading.main_thread()
    assert second is threading.main_thread()


async def test_a_turn_may_be_dropped_while_it_is_rendered(monkeypatch):
    """Then all is rendered; and what was reserved is given back, also where the call is over."""
    stack = Stack()
    asked = [f"word {number}" for number in range(LONG_TALK + 1)]
    before = stack.call(asked, session_id="s")
    said = await stack.generate(before, Sample([65, 66, 67]))
    stack.maker._layouts._layouts.clear()
    suffix, loop = stack.template.suffix, asyncio.get_running_loop()
    begun, goes_on = asyncio.Event(), threading.Event()

    def slow(*args, **kwargs):
        loop.call_soon_threadsafe(begun.set)
        goes_on.wait(10)
        return suffix(*args, **kwargs)

    monkeypatch.setattr(stack.template, "suffix", slow)
    call = stack.call([*asked, said, "and"], session_id="s")
    task = asyncio.create_task(stack.maker.make(call))
    left = asyncio.create_task(stack.maker.make(call))
    async with asyncio.timeout(20):
        await begun.wait()
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    stack.store.delete_session("s")
    goes_on.set()
    prompt = await task
    assert prompt.receipt.status != "extended"
    stack.maker.release(prompt)
    assert not stack.maker._continued
    assert is_free(stack.cache)
