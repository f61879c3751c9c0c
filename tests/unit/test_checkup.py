"""The judge of the check-up: each way in which a prompt can be wrong is seen, and named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slime_router.chat.encoder import After
from slime_router.checkup.judge import Judge, OfTemplate
from slime_router.checkup.scenarios import Said
from slime_router.checkup.split import odd_split
from slime_router.checkup.stand import Sample, Stand, Turn
from slime_router.types import Finish, Message, Prompt, TemplateOptions, token_ids
from tests.stack import NO_PARSERS, chat_template, tiny_tokenizer

PLAIN = TemplateOptions()
HI: Message = {"role": "user", "content": "Hello there"}
MORE: Message = {"role": "user", "content": "How are you"}
TOKENIZER = tiny_tokenizer()
JUDGE = Judge(TOKENIZER, chat_template(TOKENIZER))
WHOLE = {"skip_special_tokens": False}
[END] = TOKENIZER.encode("<|im_end|>").tolist()


def hello(_: Prompt) -> Sample:
    ids = odd_split(TOKENIZER, "Hello world", After.TEXT)
    return Sample((*ids, END), Finish("stop", matched=END))


async def two_turns() -> tuple[Turn, Turn, list[Message]]:
    stand = Stand(TOKENIZER, chat_template(TOKENIZER), NO_PARSERS)
    before = await stand.say([HI], PLAIN, hello)
    messages = [HI, before.reply, MORE]
    return before, await stand.say(messages, PLAIN, hello), messages


def changed(turn: Turn, ids: list[int]) -> Turn:
    return replace(turn, prompt=replace(turn.prompt, ids=token_ids(ids)), ids=tuple(ids))


async def faults(change: Any) -> list[str]:
    before, after, messages = await two_turns()
    ids = change(list(before.held), list(after.ids[len(before.held) :]))
    return JUDGE.next_prompt(before, changed(after, ids), messages, [MORE], PLAIN)


async def test_what_is_right_has_no_faults():
    assert await faults(lambda held, suffix: held + suffix) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda held, suffix: [*held[:-2], held[-1], *suffix], "held tokens are left at"),
        (lambda held, suffix: [*held, END, *suffix], "stands twice"),
        (lambda held, suffix: held + suffix[1:], "missing at the seam"),
        (lambda held, suffix: held + suffix[:-3], "not what the template prints"),
        (
            lambda held, suffix: held + TOKENIZER.encode("\n<|im_start|>assistant\n").tolist(),
            "a user message is missing",
        ),
        (
            lambda held, suffix: (
                held + odd_split(TOKENIZER, TOKENIZER.decode(suffix, **WHOLE), After.CONTROL)
            ),
            "not what the template prints",
        ),
    ],
    ids=["held", "twice", "seam", "cut", "message", "split"],
)
async def test_a_fault_is_named(change, named):
    assert any(named in fault for fault in await faults(change))


async def test_a_turn_that_was_cut_must_be_closed():
    def cut(_: Prompt) -> Sample:
        return Sample(tuple(odd_split(TOKENIZER, "Hello wor", After.TEXT)), Finish("length"))

    stand = Stand(TOKENIZER, chat_template(TOKENIZER), NO_PARSERS)
    before = await stand.say([HI], PLAIN, cut)
    messages = [HI, before.reply, MORE]
    after = await stand.say(messages, PLAIN, hello)
    assert JUDGE.next_prompt(before, after, messages, [MORE], PLAIN) == []
    held = len(before.held)
    open_ids = [*after.ids[:held], *after.ids[held + 1 :]]
    found = JUDGE.next_prompt(before, changed(after, open_ids), messages, [MORE], PLAIN)
    assert any("not closed" in fault for fault in found)


async def test_a_reply_is_read_as_it_was_said():
    before, _, _ = await two_turns()
    assert JUDGE.reply(before, Said("Hello world"), reads_thinking=False) == []
    wrong = replace(before, reply={"role": "assistant", "content": "Hello<|im_end|>"})
    found = JUDGE.reply(wrong, Said("Hello world"), reads_thinking=False)
    assert [fault.partition(":")[0] for fault in found] == [
        "an end token is in the content",
        "the content was read as 'Hello<|im_end|>'",
    ]
    calling = Said(calls=(("f", {"a": "b"}),))
    found = JUDGE.reply(before, calling, reads_thinking=False)
    assert any("calls were read" in fault for fault in found)


async def test_a_message_that_the_template_drops_is_no_fault_of_the_router():
    before, after, messages = await two_turns()
    lost: Message = {"role": "assistant", "content": "not in the prompt"}
    with pytest.raises(OfTemplate, match="drops"):
        JUDGE.next_prompt(before, after, messages, [{**lost, "role": "user"}], PLAIN)


def test_an_odd_split_spells_the_same_in_other_tokens():
    text = "Hello there, what is the weather in Paris?<|im_end|>"
    ids = odd_split(TOKENIZER, text, After.TEXT)
    assert TOKENIZER.decode(ids, **WHOLE) == text
    assert ids != TOKENIZER.encode(text).tolist()
    assert ids[-1] == END
