"""Cases in which a family was served inexactly, each as it was found. Numbers name them.

Those about how replies are read stand with the parsers' tests.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from slime_router.types import Finish, Message
from tests.families.catalogue import family
from tests.families.conversation import FamilyTalk, Heard
from tests.talk import user

pytestmark = pytest.mark.tokenizers

ASK = user("What is the weather?")
SESSIONS = pytest.mark.parametrize("session_id", [None, "s1"])


def results(reply: Message, *texts: str) -> list[Message]:
    """An answer to each call of a reply."""
    pairs = zip(reply["tool_calls"], texts, strict=True)
    return [{"role": "tool", "tool_call_id": call["id"], "content": text} for call, text in pairs]


def kimi_call(city: str, number: int = 0) -> str:
    return (
        "<|tool_calls_section_begin|><|tool_call_begin|>"
        f"functions.get_weather:{number}<|tool_call_argument_begin|>"
        f'{{"city": "{city}"}}<|tool_call_end|><|tool_calls_section_end|>'
    )


@SESSIONS
async def test_case_01_the_id_that_two_samples_share_decides_nothing(session_id):
    talk = FamilyTalk(family("kimi_k2"))
    paris = await talk.hear([ASK], kimi_call("Paris"), "<|im_end|>", session_id=session_id)
    rome = await talk.hear([ASK], kimi_call("Rome"), "<|im_end|>", session_id=session_id)
    assert paris.reply["tool_calls"][0]["id"] == rome.reply["tool_calls"][0]["id"]
    for chosen in (paris, rome):
        messages = [ASK, chosen.reply, *results(chosen.reply, "Sunny")]
        after = await talk.hear(messages, "Fine.", "<|im_end|>", session_id=session_id)
        talk.suffix(chosen, after)


async def test_case_01_nor_does_the_id_that_another_session_shares():
    talk = FamilyTalk(family("kimi_k2"))
    paris = await talk.hear([ASK], kimi_call("Paris"), "<|im_end|>", session_id="s1")
    await talk.hear([ASK], kimi_call("Rome"), "<|im_end|>", session_id="s2")
    messages = [ASK, paris.reply, *results(paris.reply, "Sunny")]
    after = await talk.hear(messages, "Fine.", "<|im_end|>", session_id="s1")
    talk.suffix(paris, after)


@pytest.mark.parametrize("name", ["gemma4_v5", "diffusion_gemma"])
async def test_case_03_a_result_with_a_user_message_after_it_is_in_the_prompt(name):
    talk = FamilyTalk(family(name))
    call = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'
    before = await talk.hear([ASK], call, "<|tool_response>")
    messages = [ASK, before.reply, *results(before.reply, "SECRET-77"), user("And then?")]
    after = await talk.hear(messages, "Fine.", "<turn|>")
    text = talk.text(talk.suffix(before, after))
    assert 0 <= text.find("SECRET-77") < text.find("And then?")


GEMMAS = ("gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "diffusion_gemma")
TWO_FIELDS = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string"}},
        },
    },
}


@pytest.mark.parametrize("thought", ["", "<|channel>thought\nNeed it.\n<channel|>"])
@pytest.mark.parametrize("name", GEMMAS)
async def test_case_04_a_call_stays_as_it_was_sampled(name, thought):
    """The template prints the keys sorted, and no thoughts."""
    talk = FamilyTalk(family(name))
    fields = 'unit:<|"|>C<|"|>,city:<|"|>Paris<|"|>'
    call = f"{thought}<|tool_call>call:get_weather{{{fields}}}<tool_call|>"
    before = await talk.hear([ASK], call, "<|tool_response>", tools=[TWO_FIELDS])
    messages = [ASK, before.reply, *results(before.reply, "SECRET-77")]
    after = await talk.hear(messages, "Fine.", "<turn|>", tools=[TWO_FIELDS])
    assert "SECRET-77" in talk.text(talk.suffix(before, after))


async def test_case_05_an_end_token_that_overlaps_the_start_token_stands_once():
    talk = FamilyTalk(family("minimax_m2"))
    before = await talk.hear([user("Hi")], "</think>\n\nHello", "[e~[", tools=())
    after = await talk.hear([user("Hi"), before.reply, user("More")], "Yes", "[e~[", tools=())
    text = talk.text(talk.suffix(before, after))
    assert text == "\n]~b]user\nMore[e~[\n]~b]ai\n<think>\n"


async def test_case_06_a_space_before_the_end_token_is_not_sent_again():
    talk = FamilyTalk(family("llama_2"))
    before = await talk.hear([user("Hi")], " Hello ", "</s>", tools=())
    messages = [user("Hi"), before.reply, user("More")]
    after = await talk.hear(messages, " Yes ", "</s>", tools=())
    suffix = talk.suffix(before, after)
    whole = talk.tokenizer.encode(talk.rendered(messages, talk.ask(messages))).tolist()
    assert talk.text(suffix) == "<s> [INST] More [/INST]"
    assert suffix == whole[-len(suffix) :]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_instruct_2507"])
async def test_case_07_an_end_token_as_the_last_that_is_allowed_ends_the_turn(name):
    """One has a reasoning parser, which sees control tokens; the other has none."""
    talk = FamilyTalk(family(name))
    before = await talk.hear([user("Hi")], "Hello", "<|im_end|>", Finish("length"), tools=())
    assert before.reply["content"] == "Hello"
    after = await talk.hear([user("Hi"), before.reply, user("More")], "Yes", "<|im_end|>", tools=())
    text = talk.text(talk.suffix(before, after))
    assert text == "\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"


async def test_case_08_a_stop_that_is_not_among_the_tokens_is_closed_by_the_template():
    talk = FamilyTalk(family("qwen3"))
    end = Finish("stop", matched=talk.id_of("<|im_end|>"))
    fields: dict[str, Any] = {"tools": (), "session_id": "s1"}
    before = await talk.hear([user("Hi")], "Hello", None, end, **fields)
    messages = [user("Hi"), before.reply, user("More")]
    after = await talk.hear(messages, "Yes", "<|im_end|>", **fields)
    suffix = talk.suffix(before, after)
    assert talk.text(suffix).startswith("<|im_end|>\n<|im_start|>user\nMore")
    [row] = talk.rows("s1").rows
    start = len(before.ids) - (len(after.held) - len(row.tokens))  # rows may leave out a prompt
    mask = list(row.loss_mask)
    assert sum(mask) == len(before.output_ids) + len(after.output_ids)
    assert mask[start + len(before.output_ids)] == 0


HARMONY_CALL = (
    "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris"}'
)


async def test_case_12_a_harmony_call_stays_as_it_was_sampled():
    talk = FamilyTalk(family("gptoss"))
    before = await talk.hear([ASK], HARMONY_CALL, "<|call|>")
    assert before.calls == [("get_weather", '{"city":"Paris"}')]
    messages = [ASK, before.reply, *results(before.reply, "SECRET-77")]
    after = await talk.hear(messages, "<|channel|>final<|message|>Fine.", "<|return|>")
    assert "SECRET-77" in talk.text(talk.suffix(before, after))


@pytest.mark.parametrize("history", ["template", "held"])
async def test_a_thought_with_a_preamble_and_a_call_can_be_rendered(history):
    """Neighbour of 19: the template refuses a thought and a text beside a call."""
    talk = FamilyTalk(family("gptoss"), history=history)
    begun, call = HARMONY_CALL.split("<|start|>assistant")
    preamble = "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
    said = f"{begun}{preamble}<|start|>assistant{call}"
    before = await talk.hear([ASK], said, "<|call|>")
    assert before.reply["content"] == "I look."
    reply = {**before.reply, "reasoning_content": before.reasoning}
    asked = user("Another question") if history == "held" else ASK  # no recorded turn has it
    messages = [asked, reply, *results(before.reply, "SECRET-77")]
    after = await talk.hear(messages, "<|channel|>final<|message|>Fine.", "<|return|>")
    text = talk.text(after.ids)
    marks = ("Need it.", "I look.", '{"city": "Paris"}', "SECRET-77")
    places = [text.find(mark) for mark in marks]
    assert -1 not in places
    assert places == sorted(places)


def coder_call(city: str = "Paris") -> str:
    return (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n"
        f"{city}\n</parameter>\n</function>\n</tool_call>"
    )


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_5_nothink", "qwen3_6"])
async def test_case_13_thoughts_that_the_template_strips_later_stay(name):
    talk = FamilyTalk(family(name))
    opened = "" if name != "qwen3_5_nothink" else "<think>\n"
    turns: list[Heard] = []
    messages = [ASK]
    for text in (coder_call(), "It is sunny.", "Bye."):
        thought = f"{opened}I think.\n</think>\n\n"
        turn = await talk.hear(messages, thought + text, "<|im_end|>", session_id="s1")
        if turns:
            talk.suffix(turns[-1], turn)
        turns.append(turn)
        asked = results(turn.reply, "Sunny") if turn.calls else [user("And now?")]
        messages = [*messages, turn.reply, *asked]
    rows = talk.rows("s1").rows
    assert len(rows) == 1
    assert sum(rows[0].loss_mask) == sum(len(turn.output_ids) for turn in turns)


ODD = user("<tool_response>\nSunny\n</tool_response>")


@pytest.mark.parametrize("first", [ODD, user("Hi")], ids=["odd-first", "plain-first"])
async def test_case_14_a_strange_conversation_changes_no_other(first):
    talk = FamilyTalk(family("qwen3_5_think"))
    talk.template = family("qwen3_5_think").chat_template()
    talk.maker._template = talk.template
    for ask in (first, user("Hello"), ODD, user("Hello again")):
        text = "Hm.\n</think>\n\nYes."
        before = await talk.hear([user("Hi"), ask], text, "<|im_end|>", tools=())
        messages = [user("Hi"), ask, before.reply, user("More")]
        after = await talk.hear(messages, text, "<|im_end|>", tools=())
        talk.suffix(before, after)


def deepseek_call(city: str) -> str:
    return (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        f'```json\n{{"city": "{city}"}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )


async def hold_loops(talk: FamilyTalk, kinds: str) -> list[int]:
    """Turns of kind `c` (a call and its result) or `a` (an answer); the last prompt's suffix."""
    messages, before = [ASK], None
    suffix: list[int] = []
    for number, kind in enumerate([*kinds, "a"]):
        text = deepseek_call(f"City{number}") if kind == "c" else f"Answer {number}."
        turn = await talk.hear(messages, text, "<｜end▁of▁sentence｜>")
        if before is not None:
            suffix = talk.suffix(before, turn)
            whole = talk.rendered(messages, talk.ask(messages))
            assert whole.endswith(talk.text(suffix))
        before = turn
        asked = results(turn.reply, f"Result {number}") if kind == "c" else [user(f"Ask {number}")]
        messages = [*messages, turn.reply, *asked]
    return suffix


@pytest.mark.parametrize("earlier", [[], ["aaaaaac"]], ids=["alone", "after another"])
async def test_case_15_what_a_template_counts_is_counted_in_each_conversation(earlier):
    """DeepSeek's template opens the results once, at the first of the conversation."""
    talk = FamilyTalk(family("built-in deepseek_v3"))
    talk.template = family("built-in deepseek_v3").chat_template()
    talk.maker._template = talk.template
    for kinds in earlier:
        suffix = await hold_loops(talk, kinds)
        assert talk.text(suffix).startswith("<｜tool▁outputs▁begin｜>")
    suffix = await hold_loops(talk, "caaaaac")
    assert talk.text(suffix).startswith("\n<｜tool▁output▁begin｜>")


async def test_case_16_white_space_that_a_control_token_eats_is_not_sent():
    talk = FamilyTalk(family("phi3_rstrip"))
    before = await talk.hear([user("Hi")], "Hello", "<|end|>", tools=())
    messages = [user("Hi"), before.reply, user("More")]
    after = await talk.hear(messages, "Yes", "<|end|>", tools=())
    suffix = talk.suffix(before, after)
    assert suffix[0] == talk.id_of("<|user|>")
    whole = talk.tokenizer.encode(talk.rendered(messages, talk.ask(messages))).tolist()
    assert suffix == whole[-len(suffix) :]


async def test_case_17_arguments_reach_a_template_as_text_where_it_wants_that():
    talk = FamilyTalk(family("deepseekv3"))
    text = "Need it.\n</think>\n\n" + deepseek_call("Paris")
    before = await talk.hear([ASK], text, "<｜end▁of▁sentence｜>")
    assert before.calls == [("get_weather", '{"city": "Paris"}')]
    messages = [ASK, before.reply, *results(before.reply, "SECRET-77")]
    after = await talk.hear(messages, "Fine.", "<｜end▁of▁sentence｜>")
    assert "SECRET-77" in talk.text(talk.suffix(before, after))


async def test_case_18_ids_of_calls_have_the_form_that_the_template_takes():
    talk = FamilyTalk(family("built-in mistral_nemo"))
    text = '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]'
    before = await talk.hear([ASK], text, "</s>")
    [call] = before.reply["tool_calls"]
    assert len(call["id"]) == 9
    assert call["id"].isalnum()
    messages = [ASK, before.reply, *results(before.reply, "SECRET-77")]
    after = await talk.hear(messages, "Fine.", "</s>")
    assert "SECRET-77" in talk.text(talk.suffix(before, after))


async def test_case_19_calls_that_the_template_refuses_are_no_reason_to_refuse_the_request():
    talk = FamilyTalk(family("built-in llama3_2"))
    one, two = (
        f'{{"name": "get_weather", "parameters": {{"city": "{city}"}}}}'
        for city in ("Paris", "Rome")
    )
    before = await talk.hear([ASK], f"<|python_tag|>{one}; {two}", "<|eom_id|>")
    assert [json.loads(arguments)["city"] for _, arguments in before.calls] == ["Paris", "Rome"]
    messages = [ASK, before.reply, *results(before.reply, "SECRET-77", "SECRET-88")]
    after = await talk.hear(messages, "Fine.", "<|eot_id|>")
    text = talk.text(talk.suffix(before, after))
    assert 0 <= text.find("SECRET-77") < text.find("SECRET-88")


async def test_case_20_a_call_that_was_cut_is_closed_and_answered():
    talk = FamilyTalk(family("glm4moe"))
    text = "<think></think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Par"
    before = await talk.hear([ASK], text)
    if "tool_calls" in before.reply:
        asked = results(before.reply, "Error: SECRET-77")
    else:
        call = {"name": "get_weather", "arguments": '{"city": "Par'}
        broken = {"id": "call_1", "type": "function", "function": call}
        before.reply["tool_calls"] = [broken]
        asked = results(before.reply, "Error: SECRET-77")
    after = await talk.hear([ASK, before.reply, *asked], "Fine.", "<|user|>")
    text = talk.text(talk.suffix(before, after))
    assert text.find("<|observation|>") < text.find("SECRET-77")
    assert text.count("<|observation|>") == 1


async def test_case_21_calls_are_printed_where_the_content_must_be_null():
    talk = FamilyTalk(family("built-in deepseek_v3"), history="template")
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    reply: Message = {"role": "assistant", "content": None, "tool_calls": [call]}
    messages = [ASK, reply, *results(reply, "SECRET-77")]
    turn = await talk.hear(messages, "Fine.", "<｜end▁of▁sentence｜>")
    text = talk.text(turn.ids)
    assert 0 <= text.find('{"city": "Paris"}') < text.find("SECRET-77")


QWEN_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SAID = "Line one\r\nline  two\n"


def echoes(content: str) -> dict[str, Message]:
    reply: Message = {"role": "assistant", "content": content}
    return {
        "named": {**reply, "name": "helper"},
        "stripped": {**reply, "content": content.strip()},
        "last line end": {**reply, "content": content.removesuffix("\n")},
        "other line ends": {**reply, "content": content.replace("\r\n", "\n")},
    }


@pytest.mark.parametrize("name", echoes(""))
async def test_case_22_an_echo_that_is_the_same_turn_is_found(name):
    talk = FamilyTalk(family("qwen3"))
    before = await talk.hear([user("Hi")], SAID, "<|im_end|>", tools=())
    assert before.reply["content"] == SAID
    messages = [user("Hi"), echoes(SAID)[name], user("More")]
    talk.suffix(before, await talk.hear(messages, "Yes", "<|im_end|>", tools=()))


async def test_case_22_text_and_calls_as_two_messages_are_one_turn():
    talk = FamilyTalk(family("qwen3"))
    before = await talk.hear([ASK], f"Let me see.\n{QWEN_CALL}", "<|im_end|>")
    text = {"role": "assistant", "content": before.reply["content"]}
    calls = {**before.reply, "content": None}
    messages = [ASK, text, calls, *results(before.reply, "SECRET-77")]
    after = await talk.hear(messages, "Fine.", "<|im_end|>")
    assert "SECRET-77" in talk.text(talk.suffix(before, after))


OTHERS = {
    "other words": "Line one\r\nline  three\n",
    "other case": "line one\r\nline  two\n",
    "other inner white space": "Line one\r\nline two\n",
    "more at the end": SAID + "More.",
}


@pytest.mark.parametrize("name", OTHERS)
async def test_case_22_what_reads_otherwise_stays_apart(name):
    talk = FamilyTalk(family("qwen3"))
    before = await talk.hear([user("Hi")], SAID, "<|im_end|>", tools=())
    other: Message = {"role": "assistant", "content": OTHERS[name]}
    after = await talk.hear([user("Hi"), other, user("More")], "Yes", "<|im_end|>", tools=())
    assert after.status != "extended"
    assert after.ids[: len(before.held)] != before.held
