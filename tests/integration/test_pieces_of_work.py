"""What takes long is done in pieces, between which others run: the loop's turns are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from slime_router.types import GenerateCall, Message, TemplateOptions
from slime_router.waiting.turnstile import LONG_TALK
from tests.stack import Stack


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
