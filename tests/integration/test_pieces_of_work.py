"""What takes long is done in pieces, between which others run: the loop's turns are counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import partial
from importlib import import_module
from typing import Any

import pytest

from slime_router.auth.caller import owned
from slime_router.types import GenerateCall, Message, TemplateOptions
from slime_router.waiting.turnstile import LONG_LEN, LONG_TALK, MOST_LONG
from tests.integration.gateway import CHAT, served, until, user
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


class Encoding:
    """In place of a tokenizer's encoding: whose texts are at it, until they may end."""

    def __init__(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.may_end = asyncio.Event()
        self._encode = stack.tokenizer.encode_pieces_async
        monkeypatch.setattr(type(stack.tokenizer), "encode_pieces_async", self._encoded)

    def has_begun(self, count: int) -> bool:
        """Whether so many have, and no more."""
        return len(self.begun) == count

    async def _encoded(self, text: str, *given: Any) -> Any:
        for name in ("flood", "guest", "short"):
            self.begun += [name] * (name in text)
        await self.may_end.wait()
        return await self._encode(text, *given)


async def test_few_long_prompts_are_made_at_a_time_each_owner_in_turn(monkeypatch):
    """Whoever comes with many of them keeps nobody else waiting, and short ones never wait."""
    stack = Stack()
    encoding = Encoding(stack, monkeypatch)

    async def make(owner: str, name: str, text: str, *, is_chat: bool) -> None:
        said: dict[str, Any] = {"text": text}
        if is_chat:
            said = {"messages": ({"role": "user", "content": text},)}
        call = GenerateCall(rid=name, turn_id=name, scope=owned(owner, ""), **said)
        stack.maker.release(await stack.maker.make(call))

    long = "word " * (LONG_LEN // 5)
    async with asyncio.TaskGroup() as tasks:
        for number in range(4 * MOST_LONG):
            text = f"flood {long}"
            tasks.create_task(make("a", f"a{number}", text, is_chat=bool(number % 2)))
        await until(lambda: len(encoding.begun) == MOST_LONG)
        tasks.create_task(make("b", "b", f"guest {long}", is_chat=True))
        tasks.create_task(make("a", "s", "short", is_chat=True))
        await until(lambda: "short" in encoding.begun)
        assert encoding.begun == ["flood"] * MOST_LONG + ["short"]
        encoding.may_end.set()
    assert encoding.begun.index("guest") <= MOST_LONG + 3
    assert encoding.begun.count("flood") == 4 * MOST_LONG


async def test_a_long_prompt_that_is_given_up_leaves_its_place(monkeypatch):
    stack = Stack()
    encoding = Encoding(stack, monkeypatch)
    text = "flood " + "word " * (LONG_LEN // 5)
    calls = [stack.call(text) for _ in range(3 * MOST_LONG)]
    tasks = [asyncio.create_task(stack.maker.make(call)) for call in calls]
    for round_ in range(1, 4):
        await until(partial(encoding.has_begun, round_ * MOST_LONG))
        for task in tasks[(round_ - 1) * MOST_LONG : round_ * MOST_LONG]:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    encoding.may_end.set()
    stack.maker.release(await stack.maker.make(stack.call(text)))


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
        if found := suffix(*args, **kwargs):
            threads.append(threading.current_thread())
        return found

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
        if not kwargs["is_near"]:
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


ASIDE = {  # what makes a long answer, and what is asked for it
    "metrics": ("slime_router.server.together.metrics", "exposition", "/metrics/prometheus"),
    "openapi": ("slime_router.api.openapi.description", "document", "/openapi.json"),
    "tree": ("slime_router.api.sessions.tokens", "outline", "/sessions/s/tree"),
    "its reply": ("slime_router.api.sessions.tokens", "_tree_reply", "/sessions/s/tree"),
    "retrieval": ("slime_router.api.retrieve", "trace_body", "/retrieve_from_text"),
}


@pytest.mark.parametrize(("module", "name", "path"), ASIDE.values(), ids=ASIDE)
async def test_long_answers_are_made_in_a_thread(monkeypatch, module, name, path):
    """So that streams go on meanwhile; what counts as long is nothing here."""
    monkeypatch.setattr("slime_router.aside.INLINE_SIZE", 0)
    make, threads = getattr(import_module(module), name), set()

    def noted(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.get_ident())
        return make(*args, **kwargs)

    monkeypatch.setattr(f"{module}.{name}", noted)
    async with served() as (router, _):
        await router.chat([user("Hi")], path=f"/sessions/s{CHAT}", max_tokens=4)
        method, body = ("POST", {"text": "Hi"}) if "retrieve" in path else ("GET", None)
        async with router.http.request(method, path, json=body) as response:
            assert response.status == 200, await response.text()
    assert len(threads) == 1
    assert threading.get_ident() not in threads
