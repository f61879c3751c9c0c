"""Replies that come back as other clients spell them: the turn goes on anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slime_router.types import Message
from tests.families.catalogue import family
from tests.families.conversation import FamilyTalk
from tests.integration.gateway import CHAT, Served, user
from tests.integration.test_tool_calls import CALL, SECOND, TOOLS, ask, parsing, say
from tests.stack import tiny_tokenizer

pytestmark = pytest.mark.parsers

THOUGHT = "<think>\nhm, 東京\n</think>\n\n"
SAID = "It is sunny there."


SHOWS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def said(content: Any, **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def merged(message: Message) -> str:
    return f"<think>{message['reasoning_content']}</think>{message['content']}"


SPELLINGS: dict[str, Callable[[Message], Message]] = {
    "named": lambda m: {**m, "name": "Agent"},
    "named, no reasoning": lambda m: said(m["content"], name="Agent"),
    "as sampled": lambda _: said(THOUGHT + SAID),
    "merged": lambda m: said(merged(m)),
    "merged, stripped": lambda _: said("<think>hm, 東京</think>" + SAID),
    "merged without the mark before": lambda _: said("hm, 東京\n</think>\n\n" + SAID),
    "merged in parts": lambda _: said([text(THOUGHT), text(SAID)]),
    "CRLF": lambda _: said((THOUGHT + SAID).replace("\n", "\r\n")),
    "parts": lambda _: said([text("It is"), text(" sunny"), text(" there.")]),
    "parts between words": lambda _: said([text("It is"), text("sunny there.")]),
    "parts and a line end": lambda _: said([text("It is"), text(" sunny there.\n")]),
    "a line end": lambda m: said(m["content"] + "\n"),
    "a thinking part": lambda _: said([{"type": "thinking", "thinking": "hm"}, text(SAID)]),
    "a reasoning part": lambda _: said([{"type": "reasoning", "text": "hm, 東京"}, text(SAID)]),
    "thinking in parts": lambda _: said(
        [{"type": "thinking", "thinking": [text("hm, 東京")]}, text("It is sunny"), text(" there.")]
    ),
    "a refusal part": lambda _: said([text("It is "), {"type": "refusal", "refusal": SAID[6:]}]),
}


async def go_on(router: Served, reply: Message, *, question: str = "Hi") -> dict[str, Any]:
    _, receipt = await router.chat([user(question), reply, user("So?")], tools=TOOLS)
    return receipt


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
async def test_a_reply_is_recognised_however_it_is_spelled(spell):
    async with parsing() as (router, worker):
        say(worker, THOUGHT + SAID)
        message = (await ask(router))["choices"][0]["message"]
        receipt = await go_on(router, spell(message))
        assert receipt["status"] == "extended"
        assert receipt["reason"] == "continues the turn"
        for other in (said("<think>no</think>" + SAID), said([text("It"), text("  is")])):
            assert (await go_on(router, other))["reason"] != "continues the turn"


async def test_of_two_that_say_the_same_the_thinking_in_the_content_chooses():
    """Without it either may be meant; with it, one."""
    async with parsing() as (router, worker):
        for thought in ("one", "two"):
            say(worker, f"<think>\n{thought}\n</think>\n\n{SAID}")
            await ask(router)
        first, second = router.gateway.store._turns.values()
        await go_on(router, said(f"<think>\none\n</think>\n\n{SAID}"))
        *_, third = router.gateway.store._turns.values()
        assert third.base == first.id != second.id


@pytest.mark.parametrize(
    "content",
    [
        [
            {"type": "thinking", "thinking": "one"},
            text(" two "),
            {"type": "reasoning", "text": "three"},
        ],
        [{"type": "thinking", "thinking": [text("one"), text("three")]}, text(" two ")],
    ],
)
async def test_thinking_in_parts_is_the_reasoning_of_its_message(content):
    """A worker's own chat takes such parts of an assistant, and of nobody else."""
    async with parsing(chat_template=SHOWS_REASONING) as (router, worker):
        _, receipt = await router.chat([user("Hi"), said(content), user("So?")])
        ids = worker.requests[-1].body["input_ids"]
        prompt = tiny_tokenizer().decode(ids, skip_special_tokens=False)
        assert "assistant\n<think>onethree</think> two " in prompt
        status, reply = await router.post(CHAT, json={"messages": [user(content)]})
    assert receipt["status"] == "fresh"
    assert (status, reply["error"]["param"][:24]) == (400, "messages[0].content[0].t")


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "thinking"}, "thinking"),
        ({"type": "thinking", "thinking": 5}, "thinking"),
        ({"type": "reasoning", "text": None}, "text"),
        ({"type": "thinking", "thinking": [{"type": "image"}]}, "thinking[0].text"),
    ],
)
async def test_a_broken_thinking_part_is_a_400_that_names_it(part, param):
    async with parsing() as (router, _):
        messages = [user("Hi"), said([part]), user("So?")]
        status, reply = await router.post(CHAT, json={"messages": messages})
    assert (status, reply["error"]["param"]) == (400, f"messages[1].content[0].{param}")


@pytest.mark.parametrize("has_name", [False, True])
async def test_a_users_name_counts_only_where_it_is_printed(has_name):
    """One that an agent adds later changes nothing that the model saw."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}"
        + ("{{ m.name }}" if has_name else "")
        + "\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    async with parsing(chat_template=template) as (router, worker):
        say(worker, SAID)
        message = (await ask(router))["choices"][0]["message"]
        talk = [{**user("Hi"), "name": "Ann"}, message, user("So?")]
        _, receipt = await router.chat(talk, tools=TOOLS)
    assert ("continues the turn" in receipt["reason"]) != has_name


def result(call: dict[str, Any], value: str = "ok") -> Message:
    return {"role": "tool", "tool_call_id": call["id"], "content": value}


def apart(message: Message) -> tuple[Message, Message]:
    """Its calls in a message each."""
    first, second = message["tool_calls"]
    return {**message, "tool_calls": [first]}, said(None, tool_calls=[second])


PARTED: dict[str, Callable[[Message], list[Message]]] = {
    "results between": lambda m: [
        apart(m)[0],
        result(m["tool_calls"][0]),
        apart(m)[1],
        result(m["tool_calls"][1]),
    ],
    "results after": lambda m: [*apart(m), *map(result, m["tool_calls"])],
    "text, too": lambda m: [
        said(m["content"]),
        said(None, tool_calls=m["tool_calls"][:1]),
        result(m["tool_calls"][0]),
        apart(m)[1],
        result(m["tool_calls"][1]),
    ],
    "no result yet": lambda m: [apart(m)[0], result(m["tool_calls"][0]), apart(m)[1]],
}


@pytest.mark.parametrize("part", PARTED.values(), ids=PARTED)
async def test_calls_that_come_back_one_by_one_are_those_of_their_turn(part):
    """As loops have it that send each call back, and its result after it."""
    async with parsing() as (router, worker):
        talk: list[Message] = [user("Hi")]
        for _ in range(3):
            say(worker, "I look. " + CALL + SECOND)
            reply = await ask(router, messages=talk)
            talk += part(reply["choices"][0]["message"])
            say(worker, "")
            _, receipt = await router.chat([*talk, user("So?")], tools=TOOLS)
            assert (receipt["status"], receipt["reason"]) == ("extended", "continues the turn")
            *_, made, after = router.gateway.store._turns.values()
            assert (after.base, after.base_len) == (made.id, made.held_len)


async def test_calls_of_two_turns_stay_apart_and_one_that_is_missing_makes_another_turn():
    async with parsing() as (router, worker):
        talk: list[Message] = [user("Hi")]
        for _ in range(3):
            say(worker, CALL)
            message = (await ask(router, messages=talk))["choices"][0]["message"]
            talk += [message, result(message["tool_calls"][0])]
        _, receipt = await router.chat([*talk, user("So?")], tools=TOOLS)
        assert receipt["reason"] == "continues the turn"
        say(worker, CALL + SECOND + SECOND)
        message = (await ask(router, messages=talk))["choices"][0]["message"]
        calls = message["tool_calls"]
        lacking = [said(None, tool_calls=[call]) for call in calls[::2]]
        await router.chat([*talk, *lacking, user("So?")], tools=TOOLS)
        *_, made, after = router.gateway.store._turns.values()
        assert after.base != made.id


@pytest.mark.parametrize("between", [[user("Wait")], [said("Wait")]], ids=["user", "reply"])
async def test_calls_with_something_between_them_are_not_those_of_one_reply(between):
    """Nothing that was said may change its place."""
    async with parsing() as (router, worker):
        say(worker, CALL + SECOND)
        message = (await ask(router, messages=[user("Hi")]))["choices"][0]["message"]
        first, second = apart(message)
        results = [*map(result, message["tool_calls"])]
        talk = [user("Hi"), first, results[0], *between, second, results[1], user("So?")]
        await router.chat(talk, tools=TOOLS)
        *_, made, after = router.gateway.store._turns.values()
        assert after.base != made.id
        second = {**second, "content": "I look again."}
        await router.chat([user("Hi"), first, second, *results, user("So?")], tools=TOOLS)
        *_, after = router.gateway.store._turns.values()
        assert after.base != made.id


@pytest.mark.tokenizers
async def test_a_merged_reply_keeps_its_tokens_where_the_template_drops_its_thinking():
    """Qwen3's own template prints no reasoning of earlier turns."""
    talk = FamilyTalk(family("qwen3"))
    ask_it = user("What is the weather?")
    before = await talk.hear([ask_it], THOUGHT + SAID, "<|im_end|>")
    for content in (THOUGHT + SAID, [text(THOUGHT + "It is"), text(" sunny there.")]):
        after = await talk.hear([ask_it, said(content), user("So?")], "Yes.", "<|im_end|>")
        talk.suffix(before, after)
