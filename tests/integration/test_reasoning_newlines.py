"""Line breaks between reasoning and content: left in as SGLang does, or out; the tokens stay."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.types import ReplyFormat
from tests.integration.gateway import user
from tests.integration.storytellers import only_turn
from tests.integration.test_tool_calls import (
    CALL,
    THOUGHT,
    TOOLS,
    ask,
    ask_stream,
    folded,
    parsing,
    say,
    whole,
)
from tests.stack import tiny_tokenizer

pytestmark = pytest.mark.parsers

SAID = "It is\n\nsunny.\n"
strips_or_not = pytest.mark.parametrize("strips", [False, True])


@strips_or_not
async def test_content_begins_with_line_breaks_or_not(strips):
    """Streamed or not; those inside of it stay, and the next turn goes on."""
    async with parsing(strip_reasoning_newlines=strips) as (router, worker):
        say(worker, THOUGHT + SAID)
        reply = await ask(router)
        turn = only_turn(router)
        say(worker, THOUGHT + SAID)
        other = folded(await ask_stream(router))
        message = reply["choices"][0]["message"]
        _, receipt = await router.chat([user("Hi"), message, user("So?")], tools=TOOLS)
    assert message["content"] == other["content"] == ("" if strips else "\n\n") + SAID
    assert whole(reply)["reasoning"] == other["reasoning"]
    sampled = tiny_tokenizer().decode(turn.output_ids.tolist(), skip_special_tokens=True)
    assert sampled == THOUGHT + SAID
    assert receipt["reason"].startswith("continues the turn")


@strips_or_not
@pytest.mark.parametrize("stream", [False, True])
async def test_it_holds_at_the_other_doors(stream, strips):
    async with parsing(strip_reasoning_newlines=strips) as (router, worker):
        for path, body in (
            ("/v1/responses", {"input": "Hi"}),
            ("/v1/messages", {"messages": [user("Hi")], "max_tokens": 99}),
        ):
            say(worker, THOUGHT + SAID)
            async with router.http.post(path, json={**body, "stream": stream}) as response:
                raw = await response.read()
            assert (SAID.encode("unicode_escape") in raw) or stream
            assert (rb'"\n\n' in raw) != strips


@strips_or_not
async def test_line_breaks_before_a_call_are_no_content(strips):
    async with parsing(strip_reasoning_newlines=strips) as (router, worker):
        say(worker, THOUGHT + CALL)
        reply = whole(await ask(router))
    assert (reply["content"] or "").strip("\n") == ""
    assert not (strips and reply["content"])
    assert len(reply["calls"]) == 1


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<think>\n\n</think>\n\nHi", "Hi"),
        ("<think>a</think>\r\n\n  Hi", "  Hi"),
        ("<think>a</think>Hi\n", "Hi\n"),
        ("<think>a</think>\n\n", ""),
        ("\n\nHi", "\n\nHi"),  # nobody has thought
    ],
)
@pytest.mark.parametrize("size", [1, 3, 99])
def test_only_line_breaks_that_follow_reasoning(text, content, size):
    parsers = ReplyParsers(load_parsers, tools=None, reasoning="qwen3", strips_newlines=True)
    parser = parsers.parser(ReplyFormat(), prompt_tail="", history=())
    assert parser is not None
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    deltas: list[Any] = [parser.push(piece, is_last=False) for piece in pieces]
    deltas.append(parser.push("", is_last=True))
    assert "".join(delta.content for delta in deltas) == content
