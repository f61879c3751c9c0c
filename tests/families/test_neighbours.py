"""Neighbours of the cases in `test_cases.py`: other inputs of the same kinds."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.checkup.scenarios import TOOLS
from slime_router.types import Message, TemplateOptions
from tests.families.catalogue import family
from tests.families.conversation import FamilyTalk, Heard
from tests.families.test_cases import ASK, deepseek_call, kimi_call, results
from tests.talk import user

pytestmark = pytest.mark.tokenizers

MINIMAX_CALL = (
    "</think>\n\n<minimax:tool_call>\n"
    '<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
    "</minimax:tool_call>"
)
LATE_SYSTEM: Message = {"role": "system", "content": "SECRET-99"}


async def test_what_the_template_drops_is_no_reason_to_leave_held_tokens():
    """Its own rendering has no late system message either; the receipt says so."""
    talk = FamilyTalk(family("minimax_m2"))
    before = await talk.hear([ASK], MINIMAX_CALL, "[e~[")
    asked = [*results(before.reply, "SECRET-77"), LATE_SYSTEM, user("And then?")]
    after = await talk.hear([ASK, before.reply, *asked], "Fine.", "[e~[")
    text = talk.text(talk.suffix(before, after))
    assert 0 <= text.find("SECRET-77") < text.find("And then?")
    assert "the template leaves out messages[3]" in after.prompt.receipt.reason


async def test_what_the_template_moves_is_sent_where_it_moves_it():
    talk = FamilyTalk(family("deepseekv3"))
    before = await talk.hear([user("Hi")], "</think>\n\nHello", "<｜end▁of▁sentence｜>", tools=())
    messages = [user("Hi"), before.reply, LATE_SYSTEM, user("More")]
    after = await talk.hear(messages, "Yes", "<｜end▁of▁sentence｜>", tools=())
    assert after.status == "branched"
    assert talk.text(after.ids) == talk.rendered(messages, talk.ask(messages))
    assert "SECRET-99" in talk.text(after.ids)


SPELLED_END = "a <｜end▁of▁sentence｜> b"


@pytest.mark.parametrize("text", [SPELLED_END, "<｜end▁of▁sentence｜> b"])
@pytest.mark.parametrize("role", ["tool", "user"])
async def test_an_end_token_that_a_client_spells_ends_no_turn(role, text):
    """DeepSeek's template prints none before the results of calls."""
    talk = FamilyTalk(family("built-in deepseek_v3"))
    before = await talk.hear([ASK], deepseek_call("Paris"), "<｜end▁of▁sentence｜>")
    asked = results(before.reply, text) if role == "tool" else [user(text)]
    messages = [ASK, before.reply, *asked]
    after = await talk.hear(messages, "Fine.", "<｜end▁of▁sentence｜>")
    suffix = talk.text(talk.suffix(before, after))
    assert text in suffix
    assert talk.rendered(messages, talk.ask(messages)).endswith(suffix)


GLM_END = "<|endoftext|>"


@pytest.mark.parametrize("text", [GLM_END + "SECRET-9", GLM_END, f" {GLM_END} b", "<|user|>"])
@pytest.mark.parametrize("name", ["glm4moe", "glm_4_5"])
async def test_an_end_token_that_a_users_text_begins_with_is_a_part_of_it(name, text):
    """GLM's turns end as the next one begins, so that token is nowhere else in the suffix."""
    talk = FamilyTalk(family(name))
    before = await talk.hear([user("Hi")], "Hello", GLM_END, tools=())
    messages = [user("Hi"), before.reply, user(text)]
    after = await talk.hear(messages, "Yes", GLM_END, tools=())
    suffix = talk.text(talk.suffix(before, after))
    assert suffix.startswith("<|user|>\n")
    assert talk.rendered(messages, talk.ask(messages)).endswith(suffix)


NEMO_ID, NEMO_IDS = "abCDE1234", ["abCDE1234", "xyZDE1234"]


def nemo_call(call_id: str, name: str = "get_weather") -> str:
    arguments = '{"city": "{x}", "id": "123456789"}'
    return f'{{"name": "{name}", "arguments": {arguments}, "id": "{call_id}"}}'


def nemo_calls(*ids: str) -> str:
    return f"[TOOL_CALLS] [{', '.join(map(nemo_call, ids))}]"


def small_calls(*ids: str) -> str:
    return "".join(
        f'[TOOL_CALLS]get_weather[CALL_ID]{each}[ARGS]{{"city": "Paris"}}' for each in ids
    )


def two_kimi_calls(*cities: str) -> str:
    first, second = (kimi_call(city, number) for number, city in enumerate(cities))
    begin, end = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
    return first.removesuffix(end) + second.removeprefix(begin)


@pytest.mark.parametrize("ids", [NEMO_IDS[:1], NEMO_IDS])
async def test_the_id_that_mistral_sampled_is_the_id_all_the_way(ids):
    """It follows the arguments, which may have an id of their own."""
    talk = FamilyTalk(family("built-in mistral_nemo"))
    before = await talk.hear([ASK], nemo_calls(*ids), "</s>")
    assert [call["id"] for call in before.reply["tool_calls"]] == ids
    messages = [ASK, before.reply, *results(before.reply, *(f"SECRET-{each}" for each in ids))]
    after = await talk.hear(messages, "Fine.", "</s>")
    text = talk.text(talk.suffix(before, after))
    assert all(f'"content": SECRET-{each}, "call_id": "{each}"' in text for each in ids)


# Two calls, and the token that ends them.
CALLS_WITH_IDS = [
    ("kimi_k2", two_kimi_calls("Paris", "Rome"), "<|im_end|>"),
    ("built-in mistral_nemo", nemo_calls(*NEMO_IDS), "</s>"),
    ("mistral_small", small_calls(*NEMO_IDS), "</s>"),
]


async def test_an_id_in_the_middle_of_a_call_is_read():
    talk = FamilyTalk(family("mistral_small"))
    before = await talk.hear([ASK], small_calls(*NEMO_IDS), "</s>")
    assert before.calls == [("get_weather", '{"city": "Paris"}')] * 2
    assert [call["id"] for call in before.reply["tool_calls"]] == NEMO_IDS


@pytest.mark.parametrize("ids", [("", ""), (NEMO_ID, NEMO_ID)], ids=["none", "twice the same"])
async def test_calls_that_the_model_does_not_tell_apart_have_random_ids(ids):
    talk = FamilyTalk(family("built-in mistral_nemo"))
    before = await talk.hear([ASK], nemo_calls(*ids), "</s>")
    made = [call["id"] for call in before.reply["tool_calls"]]
    assert len(set(made)) == 2
    assert all(len(each) == 9 for each in made)


async def test_a_call_that_is_cut_before_its_id_has_a_random_one():
    talk = FamilyTalk(family("built-in mistral_nemo"))
    before = await talk.hear([ASK], nemo_calls(NEMO_ID)[:-6])
    [call] = before.reply["tool_calls"]
    assert len(call["id"]) == 9
    assert call["id"] != NEMO_ID
    assert before.calls == [("get_weather", '{"city": "{x}", "id": "123456789"}')]


async def test_a_call_that_cannot_be_read_shifts_no_ids():
    talk = FamilyTalk(family("built-in mistral_nemo"))
    unknown = nemo_call("abCDE0000", name="unknown")
    text = f"[TOOL_CALLS] [{unknown}, {nemo_call(NEMO_ID)}]"
    before = await talk.hear([ASK], text, "</s>")
    assert [call["id"] for call in before.reply.get("tool_calls") or ()] in ([NEMO_ID], [])


NO_CALLS = (
    "As [1] and [CALL_ID] say [2]",
    '[TOOL_CALLS]unknown[CALL_ID]abCDE1234[ARGS]{"city": "Paris"}',
    '[TOOL_CALLS]get_weather[CALL_ID]abCDE1234[ARGS]{"city": "Par',
)


@pytest.mark.parametrize("text", NO_CALLS)
async def test_what_is_no_call_of_mistrals_is_content(text):
    talk = FamilyTalk(family("mistral_small"))
    before = await talk.hear([ASK], text)
    assert before.reply == {"role": "assistant", "content": text}


@pytest.mark.parametrize(("sampled", "echo"), [("\ufeffYes\ufeff\n", "Yes"), ("\u00a0Yes ", "Yes")])
async def test_a_reply_that_javascript_trims_is_the_same_turn(sampled, echo):
    talk = FamilyTalk(family("qwen3"))
    before = await talk.hear([user("Hi")], sampled, "<|im_end|>", tools=())
    reply: Message = {"role": "assistant", "content": echo}
    after = await talk.hear([user("Hi"), reply, user("More")], "Yes", "<|im_end|>", tools=())
    talk.suffix(before, after)


async def test_a_reply_with_a_space_of_no_width_stays_apart():
    talk = FamilyTalk(family("qwen3"))
    before = await talk.hear([user("Hi")], "Yes", "<|im_end|>", tools=())
    reply: Message = {"role": "assistant", "content": "Yes\u200b"}
    after = await talk.hear([user("Hi"), reply, user("More")], "Yes", "<|im_end|>", tools=())
    assert after.ids[: len(before.held)] != before.held


K3_THOUGHT = "Hm.<|close|>think<|sep|><|open|>response<|sep|>"
K3_RESPONSE = "<|close|>response<|sep|>"
K3_CALL = (
    '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>'
    '<|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|>'
    "<|close|>call<|sep|><|close|>tools<|sep|>"
)
K3_END = "<|close|>message<|sep|>"
K3_NEXT = '<|open|>message role="user"<|sep|>More'


@pytest.mark.parametrize(
    ("said", "end", "seam"),
    [
        ("Hello" + K3_RESPONSE + K3_END, "<|end_of_msg|>", ""),
        ("Hello", "<|end_of_msg|>", ""),
        ("Hello", None, K3_RESPONSE + K3_END + "<|end_of_msg|>"),
        ("", None, K3_RESPONSE + K3_END + "<|end_of_msg|>"),
    ],
)
async def test_a_turn_that_is_closed_in_several_words_is_closed_once(said, end, seam):
    """Kimi K3's end token follows words that the model samples, too."""
    talk = FamilyTalk(family("kimi_k3"))
    before = await talk.hear([user("Hi")], K3_THOUGHT + said, end, tools=())
    after = await talk.hear([user("Hi"), before.reply, user("More")], "Yes", end, tools=())
    assert talk.text(talk.suffix(before, after)).startswith(seam + K3_NEXT)


async def test_a_call_of_a_turn_that_is_closed_in_several_words_is_closed_once():
    talk = FamilyTalk(family("kimi_k3"))
    call = K3_THOUGHT + K3_RESPONSE + K3_CALL + K3_END
    before = await talk.hear([ASK], call, "<|end_of_msg|>")
    messages = [ASK, before.reply, *results(before.reply, "Sunny")]
    after = await talk.hear(messages, "Yes", "<|end_of_msg|>")
    assert talk.text(talk.suffix(before, after)).startswith(
        '<|open|>message role="tool" tool="get_weather"<|sep|>Sunny'
    )


K3_CUT_CALL = K3_CALL.removesuffix("<|close|>tools<|sep|>")
K3_CUTS = [
    ("Hello<|close|>", (), "response<|sep|>" + K3_END),
    ("Hello<|close|>res", (), "ponse<|sep|>" + K3_END),
    ("Hello" + K3_RESPONSE, (), K3_END),
    ("Hello" + K3_RESPONSE + "<|close|>", (), "message<|sep|>"),
    ("Hello" + K3_RESPONSE + K3_END, (), ""),
    ("Hello" + K3_RESPONSE + K3_CALL[:60], TOOLS, K3_END),  # no call was read
    ("Hello" + K3_RESPONSE + K3_CUT_CALL, TOOLS, "<|close|>tools<|sep|>" + K3_END),
    ("Hello" + K3_RESPONSE + K3_CALL, TOOLS, K3_END),
    ("Hello" + K3_RESPONSE + K3_CALL + "<|close|>", TOOLS, "message<|sep|>"),
    ("Hello" + K3_RESPONSE + K3_CALL + K3_END, TOOLS, ""),
]


@pytest.mark.parametrize(("said", "tools", "rest"), K3_CUTS)
async def test_a_turn_that_is_cut_in_its_closing_words_is_closed_once(said, tools, rest):
    talk = FamilyTalk(family("kimi_k3"))
    before = await talk.hear([ASK], K3_THOUGHT + said, tools=tools)
    asked = results(before.reply, "Sunny") if before.calls else [user("More")]
    after = await talk.hear([ASK, before.reply, *asked], "Yes", "<|end_of_msg|>", tools=tools)
    suffix = talk.text(talk.suffix(before, after))
    assert suffix.startswith(f"{rest}<|end_of_msg|><|open|>message role=")
    assert asked[0]["content"] in suffix


GEMMA_CALL = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}'


@pytest.mark.parametrize(
    ("said", "rest"),
    [
        (GEMMA_CALL.removesuffix('Paris<|"|>}'), ""),  # a quote that opens, not one that closes
        (GEMMA_CALL, "<tool_call|>"),
        (GEMMA_CALL + "<tool_call|>", ""),
    ],
)
async def test_a_call_of_gemma_that_is_cut_is_closed_where_it_had_ended(said, rest):
    talk = FamilyTalk(family("gemma4_v5"))
    before = await talk.hear([ASK], said)
    messages = [ASK, before.reply, *results(before.reply, "Sunny")]
    after = await talk.hear(messages, "Fine.", "<turn|>")
    assert talk.text(talk.suffix(before, after)).startswith(f"{rest}<|tool_response>response:")


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "minimax_m2", "kimi_k3"])
async def test_a_thought_that_was_cut_goes_on_as_a_thought(name):
    talk = FamilyTalk(family(name))
    reasoning = talk.tokenizer.render([ASK], TemplateOptions())
    opened = "" if reasoning.rstrip().endswith(("<think>", "think<|sep|>")) else "<think>"
    closed = K3_THOUGHT if name == "kimi_k3" else "Hm.</think>\n\n"
    before = await talk.hear([ASK], opened + "I wonder. " * 20, tools=())
    assert (before.reply["content"], before.reasoning.strip()) == ("", ("I wonder. " * 20).strip())
    going_on: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    after = await talk.hear([ASK, before.reply], closed + "Sunny.", tools=(), **going_on)
    assert talk.suffix(before, after) == []
    assert (after.reply["content"].strip(), after.reasoning.strip()) == ("Sunny.", "Hm.")


async def test_a_call_that_was_cut_is_found_by_what_it_began_and_none_in_its_place():
    """Kimi's ids tell no samples apart; Anthropic's SDKs add a cut input up to an object."""
    talk = FamilyTalk(family("kimi_k2"))
    whole = await talk.hear([ASK], kimi_call("Par"), "<|im_end|>")
    cut = await talk.hear([ASK], kimi_call("Par").partition('"}')[0])
    assert cut.calls == [("get_weather", '{"city": "Par')]
    messages = [ASK, whole.reply, *results(whole.reply, "Sunny")]
    talk.suffix(whole, await talk.hear(messages, "Fine.", "<|im_end|>"))
    other = FamilyTalk(family("kimi_k2"))
    cut = await other.hear([ASK], kimi_call("Par").partition('"}')[0])
    messages = [ASK, whole.reply, *results(whole.reply, "Sunny")]
    other.suffix(cut, await other.hear(messages, "Fine.", "<|im_end|>"))


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "minimax_m2"])
@pytest.mark.parametrize("is_apart", [True, False], ids=["apart", "in the content"])
async def test_a_thought_that_the_client_began_is_a_part_of_its_turn(name, is_apart):
    talk = FamilyTalk(family(name))
    begun: Message = {"role": "assistant", "content": "<think>\nHm"}
    going_on: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    before = await talk.hear([ASK, begun], " so.</think>\n\nYes", tools=(), **going_on)
    assert (before.reasoning.strip(), before.reply["content"].strip()) == ("so.", "Yes")
    whole = f"<think>\nHm{before.reasoning}</think>{before.reply['content']}"
    echo = before.reply if is_apart else {**before.reply, "content": whole}
    talk.suffix(before, await talk.hear([ASK, echo, user("More")], "Fine.", tools=()))


def k3_call(city: str) -> str:
    return K3_THOUGHT + K3_RESPONSE + K3_CALL.replace("Paris", city) + K3_END


@pytest.mark.parametrize("session_id", [None, "s1"])
@pytest.mark.parametrize(
    "repaired", ['{"city": "Rome", "note": null}', '{"note":"", "city":"Rome"}']
)
async def test_arguments_that_an_agent_fills_in_leave_a_call_what_it_was(session_id, repaired):
    """Kimi K3's ids name no turn, and its template prints none."""
    talk = FamilyTalk(family("kimi_k3"))
    fields: dict[str, Any] = {"city": {"type": "string"}, "note": {"type": ["string", "null"]}}
    if "null" not in repaired:
        fields["note"]["default"] = ""
    parameters = {"type": "object", "properties": fields, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
    given: dict[str, Any] = {"tools": tools, "session_id": session_id}
    before = await talk.hear([ASK], k3_call("Rome"), "<|end_of_msg|>", **given)
    await talk.hear([ASK], k3_call("Paris"), "<|end_of_msg|>", **given)
    reply = with_arguments(before.reply, repaired)
    messages = [ASK, reply, *results(reply, "Sunny")]
    talk.suffix(before, await talk.hear(messages, "Fine.", "<|end_of_msg|>", **given))
    other = with_arguments(before.reply, '{"city": "Rome", "note": "x"}')
    after = await talk.hear([ASK, other, *results(other, "Sunny")], "Fine.", **given)
    assert after.status != "extended"


@pytest.mark.parametrize("session_id", [None, "s1"])
@pytest.mark.parametrize(("name", "said", "end"), CALLS_WITH_IDS, ids=["kimi", "nemo", "small"])
async def test_ids_that_an_agent_chooses_lead_to_those_that_were_sampled(
    name, said, end, session_id
):
    """Its results, in any order, get the ids that the held calls have."""
    talk = FamilyTalk(family(name))
    before = await talk.hear([ASK], said, end, session_id=session_id)
    prompts = []
    for reply in (with_ids(before.reply, "call_x", "call_y"), before.reply):
        messages = [ASK, reply, *results(reply, "Sunny", "Rain")[::-1]]
        after = await talk.hear(messages, "Fine.", end, session_id=session_id)
        talk.suffix(before, after)
        prompts.append(after.ids)
    assert prompts[0] == prompts[1]


DROPPED: dict[str, tuple[tuple[str | None, str | None], tuple[str | None, str | None]]] = {
    "empty": (("", ""), ("", "")),
    "missing": ((None, None), (None, None)),
    "of results": (("", ""), ("?", "?")),
    "of one result": (("?", ""), ("?", "?")),
}  # the ids of results and those of calls; "?" stays as it is


@pytest.mark.parametrize("session_id", [None, "s1"])
@pytest.mark.parametrize("dropped", DROPPED)
@pytest.mark.parametrize(("name", "said", "end"), CALLS_WITH_IDS, ids=["kimi", "nemo", "small"])
async def test_ids_that_an_agent_drops_are_those_of_the_held_calls(
    name, said, end, dropped, session_id
):
    """Results without an id answer the calls in order, as a `function_call` has none either."""
    talk = FamilyTalk(family(name))
    before = await talk.hear([ASK], said, end, session_id=session_id)
    asked = results(before.reply, "SECRET-77", "SECRET-88")
    whole = await talk.hear([ASK, before.reply, *asked], "Fine.", end, session_id=session_id)
    of_results, of_calls = DROPPED[dropped]
    reply = {
        **before.reply,
        "tool_calls": [
            with_id(call, "id", call_id)
            for call, call_id in zip(before.reply["tool_calls"], of_calls, strict=True)
        ],
    }
    asked = [
        with_id(result, "tool_call_id", call_id)
        for result, call_id in zip(asked, of_results, strict=True)
    ]
    after = await talk.hear([ASK, reply, *asked], "Fine.", end, session_id=session_id)
    talk.suffix(before, after)
    assert after.ids == whole.ids
    reasons = [made.prompt.receipt.reason for made in (whole, after)]
    is_said = talk.template.findings.prints_call_ids
    assert ["answer the calls in order" in reason for reason in reasons] == [False, is_said]
    more = [ASK, reply, *asked, after.reply, user("More")]
    last = await talk.hear(more, "Bye.", end, session_id=session_id)
    assert "in order" not in last.prompt.receipt.reason
    if "nemo" not in name:  # whose template moves the tools
        talk.suffix(after, last)


def with_id(named: Message, field: str, call_id: str | None) -> Message:
    """The same with this id, or without one; `?` leaves it what it is."""
    rest = {name: value for name, value in named.items() if name != field}
    return named if call_id == "?" else rest if call_id is None else {**rest, field: call_id}


async def test_an_id_that_an_agent_chose_before_may_mean_another_call():
    talk = FamilyTalk(family("kimi_k2"))
    asked: list[Message] = [ASK]
    for number, cities in enumerate((("Paris", "Rome"), ("Bern", "Oslo"))):
        ids = ("call_x", "call_y") if number else ("call_y", "call_x")
        before = await talk.hear(asked, two_kimi_calls(*cities), "<|im_end|>")
        reply = with_ids(before.reply, *ids)
        asked += [reply, *results(reply, f"SECRET-{cities[0]}", f"SECRET-{cities[1]}")]
        after = await talk.hear(asked, "Fine.", "<|im_end|>")
        text = talk.text(talk.suffix(before, after))
        for index, city in enumerate(cities):
            assert f"Return of functions.get_weather:{index}\nSECRET-{city}" in text
        asked += [after.reply, user("More")]


async def test_ids_that_tell_no_calls_apart_lead_nowhere():
    talk = FamilyTalk(family("kimi_k2"))
    [(name, said, end), *_] = CALLS_WITH_IDS
    assert name == "kimi_k2"
    before = await talk.hear([ASK], said, end)
    reply = with_ids(before.reply, "call_x", "call_x")
    after = await talk.hear([ASK, reply, *results(reply, "Sunny", "Rain")], "Fine.", end)
    assert after.status == "branched"


def with_ids(reply: Message, *ids: str) -> Message:
    calls = zip(reply["tool_calls"], ids, strict=True)
    return {**reply, "tool_calls": [{**call, "id": call_id} for call, call_id in calls]}


def with_arguments(reply: Message, arguments: str) -> Message:
    [call] = reply["tool_calls"]
    function = {"name": "get_weather", "arguments": arguments}
    return {**reply, "tool_calls": [{**call, "function": function}]}


@pytest.mark.parametrize("session_id", [None, "s1"])
async def test_arguments_that_an_agent_repairs_leave_a_call_what_it_was(session_id):
    """Kimi's ids name no turn; an agent fills in defaults, and strips the lines of a text."""
    talk = FamilyTalk(family("kimi_k2"))
    fields = {"city": {"type": "string"}, "is_exact": {"type": "boolean", "default": False}}
    parameters = {"type": "object", "properties": fields}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
    given: dict[str, Any] = {"tools": tools, "session_id": session_id}
    rome = await talk.hear([ASK], kimi_call("Rome"), "<|im_end|>", **given)
    paris = await talk.hear([ASK], kimi_call("Paris  \\nand so"), "<|im_end|>", **given)

    async def answered(before: Heard, arguments: str) -> tuple[list[Message], Heard]:
        reply = with_arguments(before.reply, arguments)
        messages = [ASK, reply, *results(reply, "Sunny")]
        return messages, await talk.hear(messages, "Fine.", "<|im_end|>", **given)

    for before, arguments in (
        (paris, '{"city": "Paris\\nand so"}'),
        (paris, '{"is_exact": false, "city": "Paris  \\nand so"}'),
        (rome, '{"city": "Rome", "is_exact": false}'),
    ):
        messages, after = await answered(before, arguments)
        talk.suffix(before, after)
        asked = [*messages, after.reply, user("More")]
        talk.suffix(after, await talk.hear(asked, "Bye.", "<|im_end|>", **given))
    for other in ('{"city": "Rome", "is_exact": 0}', '{"city": "rome"}', '{"city": "Rome  x"}'):
        _, after = await answered(rome, other)
        assert after.status == "branched", other
