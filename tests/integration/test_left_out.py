"""What the chat template does not print: the receipt, the counter and the log name it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from slime_router.choices import History
from tests.integration.gateway import CHAT, Served, assistant, served, user

TEMPLATE = (
    "{% for m in messages %}{% if loop.first or m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LATE = {"role": "system", "content": "Be brief."}
LOGGED = "the template leaves out messages[2] of a request"
HISTORIES: tuple[History, ...] = ("held", "template")


async def named(router: Served, *messages: dict[str, Any], **fields: Any) -> tuple[str, list[str]]:
    """The reply's text, and what the receipt says is not in the prompt."""
    body = {"model": "tiny", "messages": messages, "max_tokens": 2, **fields}
    async with router.http.post(CHAT, json=body) as response:
        reply = await response.json()
        assert response.status == 200, reply
        reason: str = orjson.loads(response.headers["x-slime-receipt"])["reason"]
    _, *names = reason.removesuffix("; tools not parsed").split("; the template leaves out ")
    return reply["choices"][0]["message"]["content"], names


@pytest.mark.parametrize("history", HISTORIES)
async def test_a_late_system_message_is_named_with_the_request_that_brings_it(history, caplog):
    async with served(history=history, chat_template=TEMPLATE) as (router, _):
        _, names = await named(router, user("Hello"), assistant("Yes?"), LATE, user("More"))
        assert names == ["messages[2]"]  # none of it was known
        text, names = await named(router, user("Hi"))
        assert names == []
        talk = [user("Hi"), assistant(text), LATE, user("More")]
        text, names = await named(router, *talk)
        assert names == ["messages[2]"]
        _, names = await named(router, *talk, assistant(text), user("And more"))
        assert names == []
        _, metrics = await router.get("/metrics")
    assert metrics["template"] == {"left_out": 2}
    assert [line for line in caplog.messages if "leaves out" in line] == [LOGGED]


async def test_fields_are_named_and_counted_with_each_request():
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    async with served(chat_template=TEMPLATE) as (router, _):
        for _ in range(2):
            _, names = await named(router, {**user("Hi"), "name": "Ann"}, tools=tools)
            assert names == ["tools", "messages[0].name"]
        _, metrics = await router.get("/metrics")
    assert metrics["template"] == {"left_out": 2}
