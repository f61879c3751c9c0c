"""Long chats, of which only what is new is read: nobody can tell."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from slime_router.api.anthropic.messages import BILLING
from slime_router.generation.middleware import CallNext
from slime_router.template import heard
from slime_router.types import GenerateCall, GenerateChunk, Message
from tests.integration.gateway import CHAT, assistant, served, user

LONG = "word " * 40


@pytest.fixture(autouse=True)
def _every_chat_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard, "LONG_LEN", 0)


async def rude(call: GenerateCall, call_next: CallNext) -> AsyncGenerator[GenerateChunk, None]:
    """A plug-in that writes to what it is given."""
    for message in call.messages or ():
        message["content"] += "!"
    async for chunk in call_next(call):
        yield chunk


def talk(turns: int) -> list[Message]:
    messages = [user(LONG)]
    for number in range(turns):
        messages += [assistant(f"Reply {number}."), user(f"Question {number}?")]
    return messages


async def test_a_long_chat_gets_what_it_gets_in_a_router_that_has_not_seen_it():
    async with served() as (router, worker):
        for turns in range(6):
            await router.chat(talk(turns))
        known = router.gateway.context.message_texts
        assert 0 < len(known) <= 2
        seen = [request.body["input_ids"] for request in worker.requests]
    async with served() as (router, worker):
        await router.chat(talk(5))
        assert worker.requests[0].body["input_ids"] == seen[-1]


async def assert_unseen_is_the_same(path: str, body: Callable[[int], dict[str, Any]]) -> None:
    """Six turns are sent one after the other; the last one also to a router that saw none."""
    async with served() as (router, worker):
        for turns in range(6):
            status, _ = await router.post(path, body(turns))
            assert status == 200
        assert 0 < len(router.gateway.context.message_texts) <= 2
        seen = [request.body["input_ids"] for request in worker.requests]
    async with served() as (router, worker):
        await router.post(path, body(5))
        assert worker.requests[0].body["input_ids"] == seen[-1]


def in_blocks(turns: int) -> dict[str, Any]:
    """As Claude Code has it: its first block differs in every request."""
    first, *others = talk(turns)
    blocks = [{"type": "text", "text": part} for part in ("One.", first["content"])]
    system = [{"type": "text", "text": f"{BILLING} {turns}"}, {"type": "text", "text": "Hm."}]
    messages = [user(blocks), *others]
    return {"model": "tiny", "max_tokens": 5, "system": system, "messages": messages}


def in_items(turns: int) -> dict[str, Any]:
    """As Codex has it."""
    items: list[dict[str, Any]] = [*talk(0)]
    for number in range(turns):
        call = {"call_id": f"c{number}", "name": "look", "arguments": "{}"}
        items += [
            {"type": "reasoning", "summary": [], "content": []},
            {"type": "function_call", **call},
            {"type": "function_call_output", "call_id": f"c{number}", "output": f"{number}"},
        ]
    return {"model": "tiny", "instructions": "Look.", "input": items}


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/messages", in_blocks), ("/v1/responses", in_items)]
)
async def test_long_bodies_of_other_apis_get_what_they_get_in_a_router_that_has_not_seen_them(
    path, body
):
    await assert_unseen_is_the_same(path, body)


async def test_an_error_names_the_place_of_a_new_message_in_blocks():
    async with served() as (router, _):
        await router.post("/v1/messages", in_blocks(5))
        broken = in_blocks(5)
        broken["messages"].append({"role": "user"})
        status, answer = await router.post("/v1/messages", broken)
        assert status == 400
        assert "messages[11].content" in answer["error"]["message"]


async def test_all_items_of_a_long_input_are_stored():
    async with served() as (router, _):
        for turns in range(3):
            _, answer = await router.post("/v1/responses", in_items(turns))
        _, kept = await router.get(f"/v1/responses/{answer['id']}/input_items?limit=100")
        assert len(kept["data"]) == len(in_items(2)["input"])


async def test_long_input_can_continue_a_response():
    """The items before it are not in the body, so nothing is remembered of it."""
    more = [user("And now?"), assistant("Well."), user("So?")]
    seen = []
    for is_known in (False, True):
        async with served() as (router, worker):
            _, first = await router.post("/v1/responses", in_items(2))
            if is_known:
                await router.post("/v1/responses", {"model": "tiny", "input": more})
            kept = len(router.gateway.context.message_texts)
            body = {"model": "tiny", "input": more, "previous_response_id": first["id"]}
            status, _ = await router.post("/v1/responses", body)
            assert status == 200
            assert len(router.gateway.context.message_texts) == kept
            seen.append(worker.requests[-1].body["input_ids"])
    assert seen[0] == seen[1]


async def test_an_error_names_the_place_of_a_new_message():
    async with served() as (router, _):
        await router.chat(talk(1))
        broken = {"role": "user", "content": None}
        status, body = await router.post(CHAT, {"messages": [*talk(1), broken]})
        assert (status, body["error"]["param"]) == (400, "messages[3].content")
        part = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
        status, body = await router.post(CHAT, {"messages": [*talk(1), user([part])]})
        assert (status, body["error"]["param"]) == (400, "messages[3].content[0].image_url.url")


async def test_a_plugin_that_writes_to_messages_changes_nobody_elses():
    async with served(middleware_paths=(f"{__name__}:rude",)) as (router, worker):
        for _ in range(3):
            await router.chat(talk(2))
        first, *others = [request.body["input_ids"] for request in worker.requests]
        assert others == [first, first]
    async with served() as (router, worker):
        await router.chat([{**each, "content": each["content"] + "!"} for each in talk(2)])
        assert worker.requests[0].body["input_ids"] == first


async def test_nor_does_it_change_what_was_made_of_blocks():
    body = {"model": "tiny", "max_tokens": 5, "messages": talk(2)}
    async with served(middleware_paths=(f"{__name__}:rude",)) as (router, worker):
        for _ in range(3):
            await router.post("/v1/messages", body)
        first, *others = [request.body["input_ids"] for request in worker.requests]
        assert others == [first, first]
