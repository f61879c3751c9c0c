"""What real templates print nowhere is named, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from slime_router.checkup.scenarios import TOOLS
from slime_router.choices import History
from slime_router.types import Message, TemplateOptions
from tests.families.catalogue import family
from tests.families.conversation import FamilyTalk
from tests.talk import user

pytestmark = [pytest.mark.tokenizers, pytest.mark.slow]  # a second for each family

ASK = user("Zuser")
SYSTEM: Message = {"role": "system", "content": "Zsystem"}
DEVELOPER: Message = {"role": "developer", "content": "Zdeveloper"}
REPLY: Message = {"role": "assistant", "content": "Zreply"}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abCD12345",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Zcity"}'},
        }
    ],
}
RESULT: Message = {"role": "tool", "content": "Zresult", "tool_call_id": "abCD12345"}
JSON: Message = {**RESULT, "content": '{"answer": "Zresult é", "list": [1,2]}'}
HISTORIES: tuple[History, ...] = ("held", "template")
TALKS: tuple[list[Message], ...] = (
    [SYSTEM, ASK],
    [DEVELOPER, ASK],
    [SYSTEM, DEVELOPER, ASK],
    [ASK, REPLY, SYSTEM, user("Znext")],
    [SYSTEM, ASK, REPLY, {**SYSTEM, "content": "Zlate"}, user("Znext")],
    [ASK, REPLY, DEVELOPER, user("Znext")],
    [ASK, SYSTEM],
    [SYSTEM],
    [ASK, CALL, RESULT],
    [ASK, CALL, JSON],
    [ASK, {**CALL, "content": "Zbeside"}, RESULT, user("Znext")],
    [ASK, CALL, RESULT, SYSTEM],
    [ASK, RESULT],
    [ASK, REPLY, user("  Znext\n line é \n")],
    [ASK, {**REPLY, "content": "<think>\nZthought\n</think>\n\nZreply"}, user("Znext")],
)


def lost(text: str, messages: Sequence[Message]) -> tuple[str, ...]:
    """The slow way: each message has a word that no other has."""
    words = [
        next(
            (
                word
                for word in reversed(str(each["content"]).replace('"', " ").split())
                if word[0] == "Z" != word[1]
            ),
            "",
        )
        for each in messages
    ]
    return tuple(f"messages[{at}]" for at, word in enumerate(words) if word not in text)


# The talks of which something is lost, by families that print least, and by some that print all.
LOSSES: dict[str, set[int]] = {
    "cohere2": {1, 2, 5, 8, 9, 10, 11, 12},  # developers and results
    "deepseek_r1_distill": {2, 4},  # a system message before another one
    "gemma3": {7},  # a system message alone
    "gptoss": {2, 3, 4, 5, 6, 11},  # late systems and developers
    "lfm2": set(),
    "llama3_1": {10},  # a text beside calls
    "llama_2": {2, 3, 4, 5, 6, 7},
    "phi3_5": {8, 9, 10, 11, 12},  # results
    "qwen3": set(),
    "qwen3_vl": {2, 3, 4, 5, 6, 11},
}


@pytest.mark.parametrize("name", LOSSES)
def test_texts_that_a_template_drops_are_named(name):
    template = family(name).chat_template()
    options = TemplateOptions(tools=TOOLS)
    found = set()
    for number, messages in enumerate(TALKS):
        text = template.try_render(messages, options)
        if text is None:
            continue
        named = template.left_out(text, messages, 0, 0, options, None)
        texts = tuple(name for name in named if name.endswith("]"))
        assert texts == lost(text, messages), messages
        found |= {number} if texts else set()
    assert found == LOSSES[name]


@pytest.mark.parametrize("name", ["gptoss", "qwen3", "llama3_1", "built-in llama3_2"])
def test_calls_of_which_only_the_first_is_printed_are_named(name):
    """Where a template refuses several calls, that is another matter."""
    template = family(name).chat_template()
    options = TemplateOptions(tools=TOOLS)
    [call] = CALL["tool_calls"]
    function = {**call["function"], "arguments": '{"city": "Zmore"}'}
    more: Message = {
        **CALL,
        "tool_calls": [call, {**call, "id": "abCD67890", "function": function}],
    }
    results = [RESULT, {**RESULT, "tool_call_id": "abCD67890"}]
    dropped = ("messages[1].tool_calls[1:]",) if name == "gptoss" else ()
    for calls, expected in (
        (CALL, ()),
        (more, dropped),
        ({key: value for key, value in more.items() if key != "content"}, dropped),
    ):
        messages = [ASK, calls, *results[: len(calls["tool_calls"])]]
        text = template.try_render(messages, options) or ""
        assert template.left_out(text, messages, 0, 0, options, None) == expected
        assert template.left_out(text, messages, 2, 0, options, None) == ()


# Whether a family's template drops calls beside a text.
DROPS_CALLS = {
    "built-in deepseek_v3": True,
    "deepseek_r1_distill": True,
    "deepseekv3": False,
    "deepseek_v31": False,
    "gptoss": False,
    "kimi_k2": False,
    "llama3_1": False,
    "qwen3": False,
}


@pytest.mark.parametrize("name", DROPS_CALLS)
def test_calls_that_a_template_drops_beside_a_text_are_named(name):
    """A held turn has both, as they were sampled; a rendered one has only the text."""
    template = family(name).chat_template()
    options = TemplateOptions(tools=TOOLS)
    for content in ("Zbeside", "", None):
        messages = [ASK, {**CALL, "content": content}, RESULT]
        text = template.try_render(messages, options) or ""
        is_lost = "Zcity" not in text
        assert is_lost == (DROPS_CALLS[name] and bool(content))
        named = template.left_out(text, messages, 0, 0, options, None)
        assert ("messages[1].tool_calls" in named) == is_lost


# Texts that stand in the prompt for another reason, too: with the first new message of each talk.
GO: Message = {"role": "system", "content": "go on"}
ECHOES: tuple[tuple[list[Message], int], ...] = (
    ([GO, ASK, REPLY, GO, user("Znext")], 3),
    ([user("go on"), REPLY, GO, user("Znext")], 2),
    ([ASK, REPLY, GO, user("go on then")], 2),
    ([ASK, REPLY, GO, user("go on")], 2),
    ([ASK, REPLY, user("go on"), GO], 2),
    ([ASK, REPLY, {**GO, "content": "assistant"}, user("Znext")], 2),
    ([ASK, CALL, {**RESULT, "content": "Zcity"}], 2),
    ([ASK, CALL, {**RESULT, "content": "Zcity"}], 0),
    ([ASK, CALL, {**RESULT, "content": "5"}, user("5")], 1),
)


@pytest.mark.parametrize("name", LOSSES)
def test_a_text_that_is_dropped_is_named_though_it_stands_elsewhere(name):
    template = family(name).chat_template()
    options = TemplateOptions(tools=TOOLS)
    for messages, first in ECHOES:
        text = template.try_render(messages, options)
        if text is None:
            continue
        marked = [{**m, "content": m["content"] and f"Z{at}Z"} for at, m in enumerate(messages)]
        again = template.render(marked, options)
        dropped = [
            f"messages[{at}]" for at in range(first, len(messages)) if f"Z{at}Z" not in again
        ]
        named = template.left_out(text, messages, first, 0, options, None)
        expected = [each for each in dropped if messages[int(each[9:-1])]["content"]]
        assert [each for each in named if each.endswith("]")] == expected, messages


@pytest.mark.parametrize("history", HISTORIES)
async def test_a_dropped_text_that_is_the_models_own_word_is_in_the_receipt(history):
    talk = FamilyTalk(family("qwen3_vl"), history=history)
    before = await talk.hear([ASK], "Hello", "<|im_end|>", tools=())
    for word in ("assistant", "Hello", "Zuser", "Znext"):
        late = {**SYSTEM, "content": word}
        asked = [ASK, before.reply, late, user("Znext")]
        after = await talk.hear(asked, "Yes", "<|im_end|>", tools=())
        assert after.prompt.receipt.reason.endswith("; the template leaves out messages[2]"), word


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3"])
def test_only_what_is_new_is_looked_for(name):
    template = family(name).chat_template()
    messages = [ASK, REPLY, SYSTEM, user("Znext"), REPLY, SYSTEM, user("Zlast")]
    text = template.render(messages, TemplateOptions())
    named = template.left_out(text, messages, 5, 0, TemplateOptions(), None)
    assert named == (("messages[5]",) if name == "qwen3_vl" else ())


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize(
    ("name", "end"), [("cohere2", "<|END_OF_TURN_TOKEN|>"), ("qwen3_vl", "<|im_end|>")]
)
async def test_a_late_message_that_is_dropped_is_in_the_receipt(name, end, history):
    talk = FamilyTalk(family(name), history=history)
    late = DEVELOPER
    fresh = await talk.hear([ASK, REPLY, late, user("Znext")], "Yes", end, tools=())
    assert fresh.prompt.receipt.reason.endswith("; the template leaves out messages[2]")
    before = await talk.hear([ASK], "Hello", end, tools=())
    assert "leaves out" not in before.prompt.receipt.reason
    asked = [ASK, before.reply, late, user("Znext")]
    after = await talk.hear(asked, "Yes", end, tools=())
    assert after.prompt.receipt.reason.endswith("; the template leaves out messages[2]")
    again = await talk.hear([*asked, after.reply, user("Zmore")], "Yes", end, tools=())
    assert "leaves out" not in again.prompt.receipt.reason, "it was said when it came"


FIELDS: tuple[tuple[str, list[Message], Sequence[dict[str, Any]], list[str]], ...] = (
    ("phi3", [ASK], TOOLS, ["tools"]),
    ("qwen2_5", [ASK], TOOLS, []),
    ("qwen2_5", [{**ASK, "name": "Ann"}], (), ["messages[0].name"]),
    ("qwen2_5", [ASK, {**REPLY, "reasoning_content": "Zthought"}, ASK], (),
     ["messages[1].reasoning_content"]),
    ("qwen3", [ASK, {**REPLY, "reasoning_content": "Zthought"}, ASK], (), []),
    ("gptoss", [ASK, {**CALL, "reasoning_content": "Zthought"}, RESULT], TOOLS, []),
    ("llama3", [ASK, CALL, RESULT], (), ["messages[1].tool_calls"]),
    ("llama3", [ASK, {**CALL, "tool_calls": []}, ASK], (), []),
    ("built-in deepseek_v3", [ASK, CALL, RESULT], TOOLS, ["tools"]),
)  # fmt: skip


@pytest.mark.parametrize(("name", "messages", "tools", "expected"), FIELDS)
async def test_fields_that_a_template_never_prints_are_in_the_receipt(
    name, messages, tools, expected
):
    heard = await FamilyTalk(family(name)).hear(messages, "Yes", tools=tools)
    reason = heard.prompt.receipt.reason.removesuffix("; tools not parsed")
    _, *named = reason.split("; the template leaves out ")
    assert named == expected


async def test_three_are_named_and_that_there_are_more():
    talk = FamilyTalk(family("qwen2_5"))
    named = {**ASK, "name": "Ann"}
    heard = await talk.hear([named, REPLY] * 4, "Yes", tools=())
    _, *found = heard.prompt.receipt.reason.split("; the template leaves out ")
    assert found == [f"messages[{at}].name" for at in (0, 2, 4)] + ["more"]
