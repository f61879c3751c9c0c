"""What clients make of a turn with tool calls when they send it back: it is still that turn.

The next prompt begins with all held tokens of the turn, however the client spells it; where it is
another turn, with other calls or after other messages, it is not taken for the held one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from slime_router.generation.prompts.made_prompt import MadePrompt
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.types import GenerateCall, Message, ReplyFormat, TemplateOptions
from tests.needs import skip_without
from tests.stack import Sample, Stack
from tests.talk import NOON, real_tokenizer, stop, user

skip_without("tokenizers", "parsers")
pytestmark = [pytest.mark.tokenizers, pytest.mark.parsers]

IM_END = 151645
PARSERS = ReplyParsers(load_parsers, tools="qwen25", reasoning="qwen3")
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("edit", "bash")
)
# As the model spells it; no serialiser would: a space before a colon.
WRITTEN = '{"path":"a.py","new" : "x\\n\\u00e9", "count": 1.0}'
CALL = f'<tool_call>\n{{"name": "edit", "arguments": {WRITTEN}}}\n</tool_call>'
SECOND = '\n<tool_call>\n{"name":"bash","arguments":{"cmd":"ls"}}\n</tool_call>'
THOUGHT = "<think>\nI edit it.\n</think>\n\n"
SUFFIX = (
    "\n<|im_start|>user\n<tool_response>\ndone\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)
ASKED = [{"role": "system", "content": "You edit."}, user("Edit a.py")]


class ToolTalk(Stack):
    """A stack on Qwen3 that reads tool calls, and what it made of the last call."""

    def __init__(self) -> None:
        super().__init__(tokenizer=real_tokenizer("qwen3"), parsers=PARSERS)
        self.maker._now = lambda: NOON
        self.prompts: list[MadePrompt] = []
        self.held: list[int] = []
        make = self.maker.make

        async def noted(call: GenerateCall, context_len: int | None = None) -> MadePrompt:
            self.prompts.append(prompt := await make(call, context_len))
            return prompt

        self.maker.make = noted  # type: ignore[method-assign]  # to see what was made

    async def say(self, messages: Sequence[Message], text: str, **fields: Any) -> Message:
        """The reply as a client gets it; `held` is what its turn holds."""
        tools = fields.pop("tools", TOOLS)
        call = self.call(
            ["", ""],
            **{
                "template": TemplateOptions(tools=tools),
                "reply": ReplyFormat(tools=tools),
                "messages": tuple(copy.deepcopy(list(messages))),
                **fields,
            },
        )
        ids = [*self.tokenizer.encode(text).tolist(), IM_END]
        self.samples.append(Sample(ids, stop(IM_END), chunk_len=3))
        reply: Message = {"role": "assistant", "content": "", "reasoning_content": ""}
        calls: list[Any] = []
        async with self.router.generate(call) as chunks:
            async for chunk in chunks:
                reply["content"] += chunk.text
                reply["reasoning_content"] += chunk.reasoning
                for delta in chunk.tool_calls:
                    if delta.index == len(calls):
                        function = {"name": delta.name, "arguments": ""}
                        calls.append({"id": delta.id, "type": "function", "function": function})
                    calls[delta.index]["function"]["arguments"] += delta.arguments
        if calls:
            reply["tool_calls"] = calls
        self.held = self.sent[-1] + ids
        return reply

    async def goes_on(self, messages: Sequence[Message], reply: Message) -> MadePrompt:
        """The prompt of the next turn: the messages, the reply, the results of its calls."""
        calls = reply.get("tool_calls") or []
        results = [
            {"role": "tool", "tool_call_id": call.get("id"), "content": "done"} for call in calls
        ]
        await self.say([*messages, reply, *(results or [user("go on")])], "Done.")
        return self.prompts[-1]


@pytest.fixture
def talk() -> ToolTalk:
    return ToolTalk()


def spelled(spell: Callable[[Any], Any]) -> Callable[[Message], Message]:
    """Arguments read, and written again by `spell`."""

    def change(reply: Message) -> Message:
        for call in reply["tool_calls"]:
            function = call["function"]
            function["arguments"] = spell(json.loads(function["arguments"]))
        return reply

    return change


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def without(*names: str) -> Callable[[Message], Message]:
    return lambda reply: {key: value for key, value in reply.items() if key not in names}


def having(**fields: Any) -> Callable[[Message], Message]:
    return lambda reply: {**reply, **fields}


def prefixed(reply: Message) -> Message:
    return {**reply, "content": "\n" + reply["content"]}


def as_parts(reply: Message) -> Message:
    return {**reply, "content": [{"type": "text", "text": reply["content"]}]}


def in_both(*changes: Callable[[Message], Message]) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        for each in changes:
            reply = each(reply)
        return reply

    return change


def with_defaults(reply: Message) -> Message:
    """As Claude Code does it: a default of the schema is filled in, lines lose their ends."""
    arguments = json.loads(reply["tool_calls"][0]["function"]["arguments"])
    arguments = {**arguments, "new": arguments["new"].rstrip(), "replace_all": False}
    reply["tool_calls"][0]["function"]["arguments"] = json.dumps(arguments)
    return reply


def noisy(reply: Message) -> Message:
    """As litellm sends it."""
    extra: Message = {
        "provider_specific_fields": {"a": 1},
        "refusal": None,
        "annotations": [],
        "audio": None,
    }
    calls = [{**call, "index": index} for index, call in enumerate(reply["tool_calls"])]
    return {**reply, **extra, "function_call": None, "tool_calls": calls}


no_reasoning = without("reasoning_content")
CLIENTS: dict[str, Callable[[Message], Message]] = {
    "pydantic-ai": lambda reply: reply,
    "litellm": noisy,
    "openai-agents": no_reasoning,
    "autogen": no_reasoning,
    "crewai": in_both(no_reasoning, having(content=None)),
    "ai-sdk": spelled(compact),
    "qwen-code": in_both(spelled(compact), without("content")),
    "langchain": in_both(no_reasoning, spelled(json.dumps)),
    "inspect": in_both(spelled(json.dumps), prefixed),
    "openhands": in_both(no_reasoning, spelled(json.dumps), as_parts),
    "claude-code": spelled(lambda value: value),
    "claude-code-defaults": with_defaults,
    "mini-swe-agent": in_both(no_reasoning, without("content")),
    "reasoning-renamed": lambda reply: {
        **no_reasoning(reply),
        "reasoning": reply["reasoning_content"],
    },
    "keys-sorted": lambda reply: json.loads(json.dumps(reply, sort_keys=True)),
    "content-empty": having(content=""),
    "no-type": lambda reply: {
        **reply,
        "tool_calls": [without("type")(call) for call in reply["tool_calls"]],
    },
}
TEXTS = {
    "call": CALL,
    "thought": THOUGHT + CALL,
    "thought and content": THOUGHT + "Now. " + CALL,
    "two calls": THOUGHT + CALL + SECOND,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_turn_goes_on_in_its_own_tokens(talk, client, text):
    reply = await talk.say(ASKED, TEXTS[text])
    held = talk.held
    prompt = await talk.goes_on(ASKED, CLIENTS[client](copy.deepcopy(reply)))
    assert prompt.receipt.status == "extended"
    assert prompt.receipt.reused == len(held)
    assert prompt.ids.tolist()[: len(held)] == held
    rest = talk.tokenizer.decode(prompt.ids.tolist()[len(held) :], skip_special_tokens=False)
    assert rest.startswith("\n<|im_start|>user\n<tool_response>\ndone\n</tool_response>")
    if text != "two calls":
        assert rest == SUFFIX


@pytest.mark.parametrize("client", CLIENTS)
async def test_the_third_turn_goes_on_as_well(talk, client):
    """The mended reply stands in the middle of what the third turn is asked with."""
    reply = CLIENTS[client](await talk.say(ASKED, THOUGHT + CALL))
    result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "done"}
    messages = [*ASKED, reply, result]
    second = CLIENTS[client](await talk.say(messages, THOUGHT + "More. " + CALL))
    held = talk.held
    prompt = await talk.goes_on(messages, second)
    assert prompt.receipt.status == "extended"
    assert prompt.ids.tolist()[: len(held)] == held


@pytest.mark.parametrize(
    "spell", [str, str.lstrip, lambda text: "\n" + text.lstrip(), lambda text: "\n" + text]
)
@pytest.mark.parametrize("change", [lambda reply: reply, no_reasoning])
async def test_the_line_ends_behind_reasoning_may_come_back_or_not(talk, change, spell):
    """A client reads them, as with SGLang's own route; many strip them from what they send back."""
    reply = await talk.say(ASKED, THOUGHT + "It is done.")
    assert reply["content"] == "\n\nIt is done."
    held = talk.held
    echo = change({**reply, "content": spell(reply["content"])})
    prompt = await talk.goes_on(ASKED, echo)
    assert (prompt.receipt.status, prompt.receipt.reused) == ("extended", len(held))
    assert prompt.ids.tolist()[: len(held)] == held


async def test_arguments_that_are_no_json_are_known_again(talk):
    text = CALL.replace('"count"', '"count')
    reply = await talk.say(ASKED, text)
    held = talk.held
    arguments = reply["tool_calls"][0]["function"]["arguments"]
    assert arguments.endswith('"count: 1.0}')
    prompt = await talk.goes_on(ASKED, reply)
    assert prompt.ids.tolist()[: len(held)] == held


async def test_ids_written_anew_are_known_by_what_is_said(talk):
    reply = await talk.say(ASKED, THOUGHT + CALL)
    held = talk.held
    reply["tool_calls"][0]["id"] = "call_mine"
    prompt = await talk.goes_on(ASKED, spelled(json.dumps)(reply))
    assert prompt.receipt.status == "extended"
    assert prompt.ids.tolist()[: len(held)] == held


async def test_of_two_replies_that_read_the_same_the_ids_choose(talk):
    first = await talk.say(ASKED, "<think>\nOne.\n</think>\n\n" + CALL)
    held = talk.held
    await talk.say(ASKED, "<think>\nTwo.\n</think>\n\n" + CALL)
    prompt = await talk.goes_on(ASKED, no_reasoning(first))
    assert prompt.ids.tolist()[: len(held)] == held


async def test_a_turn_named_by_its_id_goes_on_without_its_calls_ids(talk):
    reply = await talk.say(ASKED, THOUGHT + "Hello.")
    held = talk.held
    turn_id = next(iter(talk.store._turns))
    prompt = await talk.goes_on(ASKED, {"role": "assistant", "content": "Hi!", "turn": turn_id})
    assert reply["content"].strip() == "Hello."
    assert prompt.ids.tolist()[: len(held)] == held


# Not the turn


def renamed(reply: Message) -> Message:
    reply["tool_calls"][0]["function"]["name"] = "bash"
    return reply


def cut_short(reply: Message) -> Message:
    return {**reply, "tool_calls": reply["tool_calls"][:1]}


def doubled(reply: Message) -> Message:
    return {**reply, "tool_calls": [*reply["tool_calls"], reply["tool_calls"][0]]}


def turned(reply: Message) -> Message:
    return {**reply, "tool_calls": reply["tool_calls"][::-1]}


@pytest.mark.parametrize("change", [renamed, cut_short, doubled, turned])
async def test_other_calls_are_another_turn(talk, change):
    reply = await talk.say(ASKED, CALL + SECOND)
    held = talk.held
    prompt = await talk.goes_on(ASKED, change(reply))
    assert prompt.receipt.status != "extended"
    assert prompt.base is None
    assert prompt.ids.tolist()[: len(held)] != held


@pytest.mark.parametrize(
    "asked",
    [
        [ASKED[0], user("Edit b.py")],
        [{"role": "system", "content": "You do not edit."}, ASKED[1]],
        [ASKED[1]],
        [*ASKED, user("Now")],
    ],
)
async def test_the_same_calls_behind_other_messages_are_another_turn(talk, asked):
    reply = await talk.say(ASKED, THOUGHT + CALL)
    held = talk.held
    prompt = await talk.goes_on(asked, reply)
    assert prompt.receipt.status != "extended"
    assert prompt.ids.tolist()[: len(held)] != held


async def test_the_same_calls_under_other_tools_are_another_turn(talk):
    reply = await talk.say(ASKED, CALL)
    result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "done"}
    await talk.say([*ASKED, reply, result], "Done.", tools=TOOLS[:1])
    assert talk.prompts[-1].receipt.status != "extended"


async def test_the_same_calls_in_another_scope_are_another_turn(talk):
    reply = await talk.say(ASKED, CALL)
    result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "done"}
    await talk.say([*ASKED, reply, result], "Done.", scope="other")
    assert talk.prompts[-1].receipt.status == "fresh"


async def test_another_session_does_not_go_on_with_the_turn(talk):
    reply = await talk.say(ASKED, CALL, session_id="one")
    result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "done"}
    await talk.say([*ASKED, reply, result], "Done.", session_id="two")
    assert talk.prompts[-1].base is None
