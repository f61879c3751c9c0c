"""Multi-turn exactness with real vocabularies: the known ways in which token histories break."""

from __future__ import annotations

from datetime import datetime

import pytest

from slime_router.errors import BadRequest
from slime_router.types import Finish, Sampling
from tests.talk import LENGTH, Talk, real_tokenizer, stop, user

pytestmark = pytest.mark.tokenizers

IM_END = 151645
QWEN_P = [151644, 872, 198, 3838, 374, 220, 16, 10, 17, 30, 151645, 198, 151644, 77091, 198]
QWEN_G = [151667, 198, 16, 10, 17, 28, 18, 198, 151668, 271, 18, 151645]
QWEN_SUFFIX = [198, 151644, 872, 198, 437, 220, 17, 10, 18, 30, 151645, 198, 151644, 77091, 198]


@pytest.fixture
def qwen() -> Talk:
    return Talk(real_tokenizer("qwen3"))


def test_qwen3_is_probed_right(qwen):
    found = qwen.template.findings
    assert found.closer == "<|im_end|>"
    assert found.appends_after_user
    assert found.appends_after_tool
    assert found.appends_with_system
    assert not found.keeps_old_reasoning
    assert not found.prints_date
    assert not found.prints_call_ids


async def test_reasoning_that_the_template_strips_stays_in_the_held_prompt(qwen):
    first = await qwen.say([user("What is 1+2?")], QWEN_G, stop(IM_END))
    assert first.ids == QWEN_P
    echo = {"role": "assistant", "content": "3"}  # the client dropped the thinking
    second = await qwen.say(
        [user("What is 1+2?"), echo, user("and 2+3?")], [18, IM_END], stop(IM_END)
    )
    assert second.ids == QWEN_P + QWEN_G + QWEN_SUFFIX
    assert second.prompt.receipt.status == "extended"
    assert (second.prompt.receipt.reused, second.prompt.receipt.encoded) == (27, 15)


async def test_an_exact_echo_of_the_reasoning_extends_as_well(qwen):
    first = await qwen.say([user("What is 1+2?")], QWEN_G, stop(IM_END))
    assert first.reply["content"] == "<think>\n1+2=3\n</think>\n\n3"
    second = await qwen.say([user("What is 1+2?"), first.reply, user("and 2+3?")], [18], LENGTH)
    assert second.ids == QWEN_P + QWEN_G + QWEN_SUFFIX


async def test_in_template_mode_the_prompt_is_what_the_template_renders(qwen):
    await qwen.say([user("What is 1+2?")], QWEN_G, stop(IM_END))
    messages = [user("What is 1+2?"), {"role": "assistant", "content": "3"}, user("and 2+3?")]
    second = await qwen.say(messages, [18], LENGTH, history="template")
    rendered = qwen.template.render(messages, second.call.template)
    assert second.ids == qwen.tokenizer.encode(rendered).tolist()
    assert second.prompt.receipt.status == "branched"


async def test_the_newline_behind_the_stop_token_is_prompt_not_sample(qwen):
    first = await qwen.say([user("Hi")], [9707, IM_END], stop(IM_END))
    messages = [user("Hi"), first.reply, user("more")]
    second = await qwen.say(messages, [9707, IM_END], stop(IM_END))
    trace = qwen.store.trace(second.call.turn_id)
    at = len(first.held)
    assert trace.ids[at] == 198
    assert trace.loss_mask[at] == 0
    assert trace.loss_mask[at - 1] == 1


@pytest.mark.parametrize(
    ("name", "sampled", "text"),
    [
        ("qwen3", [39, 83722], "HAVING"),
        ("qwen3", [393, 30002], " Pantom"),
        ("qwen3", [32713, 385], "Hello"),
        ("qwen3", [90, 31486, 1], '{"name"'),
        ("qwen3", [1, 11248], '"}}\n'),
        ("qwen3", [68, 53839], "e\u0301"),
        ("qwen3", [162, 251, 109], "東"),
        ("qwen3", [27, 91, 318, 6213, 91, 29], "<|im_end|>"),
        ("llama3_2", [39, 84822], "HAVING"),
        ("deepseek_v3", [62773, 1778], '"}}\n'),
    ],
)
@pytest.mark.parametrize("history", ["held", "template"])
async def test_sampled_ids_survive_the_round_trip_through_the_client(name, sampled, text, history):
    stack = Talk(real_tokenizer(name), history=history)
    eos = next(i for i in sorted(stack.tokenizer.eos_ids) if stack.tokenizer.is_control(i))
    first = await stack.say([user("Say it")], [*sampled, eos], stop(eos))
    assert first.reply["content"] == text
    second = await stack.say(
        [user("Say it"), first.reply, user("again")], [eos], stop(eos), history=history
    )
    keeps = len(first.ids) + (len(sampled) if history == "template" else len(first.output_ids))
    if history == "held" or _is_rendered_verbatim(stack, first, text):
        assert second.ids[:keeps] == first.held[:keeps]


def _is_rendered_verbatim(stack: Talk, first, text: str) -> bool:
    """Whether the template prints the reply where the model put it (some trim, some add tags)."""
    prompt = stack.template.render([user("Say it")], first.call.template)
    messages = [user("Say it"), first.reply, user("again")]
    return stack.template.render(messages, first.call.template).startswith(prompt + text)


async def test_a_split_emoji_keeps_its_half(qwen):
    first = await qwen.say([user("Draw")], [123918], LENGTH)
    assert first.reply["content"] == "\ufffd"
    trace, _ = await qwen.retriever.by_messages(
        qwen.ask([user("Draw"), first.reply], add_generation_prompt=False)
    )
    assert trace.ids.tolist() == first.held
    second = await qwen.say([user("Draw"), first.reply, user("go on")], [102], LENGTH)
    assert second.ids[: len(first.held)] == first.held
    assert second.ids[len(first.held)] == IM_END  # the closing token, which nobody sampled


async def test_a_turn_cut_by_length_is_closed_with_the_templates_tokens_unmasked(qwen):
    first = await qwen.say([user("Hi")], [9707, 1879], LENGTH)
    second = await qwen.say([user("Hi"), first.reply, user("more")], [9707], LENGTH)
    at = len(first.held)
    assert second.ids[:at] == first.held
    assert second.ids[at : at + 3] == [IM_END, 198, 151644]
    trace = qwen.store.trace(second.call.turn_id)
    assert trace.loss_mask[at : at + 3].tolist() == [0, 0, 0]


async def test_a_stop_string_stays_in_the_held_tokens(qwen):
    ids = qwen.tokenizer.encode("Act.\nObservation:").tolist()
    finish = Finish("stop", matched="\nObservation:")
    sampling = Sampling(stop=("\nObservation:",))
    first = await qwen.say([user("Hi")], ids, finish, sampling=sampling)
    assert first.reply["content"] == "Act."
    second = await qwen.say([user("Hi"), first.reply, user("5")], [9707], LENGTH)
    assert second.ids[: len(first.held)] == first.held


async def test_in_template_mode_tokens_before_a_stop_string_are_kept(qwen):
    ids = [39, 83722, 13, *qwen.tokenizer.encode("\nObservation:").tolist()]
    first = await qwen.say(
        [user("Hi")],
        ids,
        Finish("stop", matched="\nObservation:"),
        sampling=Sampling(stop=("\nObservation:",)),
        history="template",
    )
    assert first.reply["content"] == "HAVING."
    messages = [user("Hi"), first.reply, user("5")]
    second = await qwen.say(messages, [9707], LENGTH, history="template")
    assert second.ids[: len(first.ids) + 3] == [*first.ids, 39, 83722, 13]
    rendered = qwen.template.render(messages, second.call.template)
    assert qwen.tokenizer.decode(second.ids, skip_special_tokens=False) == rendered


async def test_another_end_token_closes_the_turn_in_place_of_the_templates(qwen, monkeypatch):
    # generation_config.json of the full checkpoint names both
    monkeypatch.setattr(qwen.tokenizer, "eos_ids", frozenset({IM_END, 151643}))
    first = await qwen.say([user("Hi")], [9707, 151643], stop(151643))
    second = await qwen.say([user("Hi"), first.reply, user("more")], [9707], LENGTH)
    assert second.ids[: len(first.held)] == first.held
    assert second.ids[len(first.held) : len(first.held) + 2] == [198, 151644]


async def test_continue_final_message_leaves_the_held_turn_open(qwen):
    first = await qwen.say([user("Count")], [16, 11, 220], LENGTH)
    second = await qwen.say(
        [user("Count"), first.reply],
        [17, IM_END],
        stop(IM_END),
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert second.ids == first.held
    whole = {"role": "assistant", "content": first.reply["content"] + second.reply["content"]}
    third = await qwen.say([user("Count"), whole, user("more")], [18], LENGTH)
    assert third.ids[: len(second.held)] == second.held
    trace = qwen.store.trace(third.call.turn_id)
    start = len(first.ids)
    assert trace.loss_mask[start : len(second.held)].tolist() == [1] * 5


async def test_continuing_a_turn_that_had_ended_takes_its_end_token_back(qwen):
    first = await qwen.say([user("Count")], [16, 11, IM_END], stop(IM_END))
    options = {"continue_final_message": True, "add_generation_prompt": False}
    second = await qwen.say([user("Count"), first.reply], [17], LENGTH, **options)
    assert second.ids == first.held[:-1]
    assert second.prompt.receipt.status == "branched"
    comma = await qwen.say([user("List")], [16, 11], stop(11))  # a stop token of the client's own
    assert comma.reply["content"] == "1"
    third = await qwen.say([user("List"), comma.reply], [17], LENGTH, **options)
    assert third.ids == comma.held


async def test_literal_control_text_of_a_user_is_no_boundary_of_a_turn(qwen):
    messages = [user("print <|im_end|> and <tool_call> please")]
    first = await qwen.say(messages, [9707, IM_END], stop(IM_END))
    assert first.ids.count(IM_END) == 2
    second = await qwen.say([*messages, first.reply, user("more")], [9707], LENGTH)
    assert second.ids[: len(first.held)] == first.held


async def test_a_reply_with_a_literal_think_close_is_kept_whole(qwen):
    ids = qwen.tokenizer.encode("see </think> tag").tolist()
    first = await qwen.say([user("Hi")], [*ids, IM_END], stop(IM_END))
    second = await qwen.say([user("Hi"), first.reply, user("more")], [9707], LENGTH)
    assert second.ids[: len(first.held)] == first.held


@pytest.mark.parametrize(
    "content", [None, [], [{"type": "text", "text": ""}], ""], ids=["null", "none", "part", "empty"]
)
async def test_content_without_text_in_any_spelling_renders_the_same(qwen, content):
    messages = [user("Hi"), {"role": "assistant", "content": content}, user("Hi")]
    plain = [user("Hi"), {"role": "assistant", "content": ""}, user("Hi")]
    assert qwen.template.render(messages, qwen.ask(messages).template) == qwen.template.render(
        plain, qwen.ask(plain).template
    )


async def test_parts_instead_of_a_string_extend_the_held_turn(qwen):
    first = await qwen.say([user("Hi")], [39, 83722, IM_END], stop(IM_END))
    parts = {"role": "assistant", "content": [{"type": "text", "text": "HAVING"}]}
    messages = [user([{"type": "text", "text": "Hi"}]), parts, user("more")]
    second = await qwen.say(messages, [9707], LENGTH)
    assert second.ids[: len(first.held)] == first.held


async def test_tool_results_in_a_row_render_as_the_template_renders_them_together(qwen):
    first = await qwen.say([user("Hi")], [39, 83722, IM_END], stop(IM_END))
    tools = [{"role": "tool", "content": "A"}, {"role": "tool", "content": "B"}]
    messages = [user("Hi"), first.reply, *tools]
    second = await qwen.say(messages, [9707], LENGTH)
    rest = second.ids[len(first.held) :]
    text = qwen.tokenizer.decode(rest, skip_special_tokens=False)
    assert second.ids[: len(first.held)] == first.held
    assert text == (
        "\n<|im_start|>user\n<tool_response>\nA\n</tool_response>\n<tool_response>\nB\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


async def test_changed_tools_are_another_conversation(qwen):
    function = {"name": "f", "parameters": {"type": "object"}}
    tool = {"type": "function", "function": function}
    first = await qwen.say([user("Hi")], [39, 83722, IM_END], stop(IM_END), tools=(tool,))
    messages = [user("Hi"), first.reply, user("more")]
    same = {"function": {"parameters": {"type": "object"}, "name": "f"}, "type": "function"}
    again = await qwen.say(messages, [9707], LENGTH, tools=(same,))
    assert again.prompt.receipt.status == "extended"  # the order of keys makes no difference
    strict = {"type": "function", "function": {**function, "strict": False}}
    other = await qwen.say(messages, [9707], LENGTH, tools=(strict,))
    assert other.prompt.receipt.status == "fresh"
    rendered = qwen.template.render(messages, other.call.template)
    assert other.ids == qwen.tokenizer.encode(rendered).tolist()


async def test_a_changed_template_argument_is_a_new_branch(qwen):
    first = await qwen.say([user("Hi")], [39, 83722, IM_END], stop(IM_END))
    messages = [user("Hi"), first.reply, user("more")]
    other = await qwen.say(messages, [9707], LENGTH, kwargs={"enable_thinking": False})
    assert other.prompt.receipt.status != "extended" or other.prompt.base == first.call.turn_id
    rendered = qwen.template.render(messages, other.call.template)
    assert qwen.tokenizer.decode(other.ids, skip_special_tokens=False) == rendered
    assert rendered.endswith("<think>\n\n</think>\n\n")


async def test_ids_beyond_the_tokenizer_are_kept_and_decode_to_nothing(qwen):
    first = await qwen.say([user("Hi")], [39, 151708, 83722, IM_END], stop(IM_END))
    assert first.reply["content"] == "HAVING"
    second = await qwen.say([user("Hi"), first.reply, user("more")], [9707], LENGTH)
    assert second.ids[: len(first.held)] == first.held


@pytest.mark.parametrize("name", ["llama3_2", "gemma3", "mistral_nemo", "mistral_7b_sp"])
async def test_there_is_one_beginning_of_sequence(name):
    stack = Talk(real_tokenizer(name))
    turn = await stack.say([user("Hi")], [100], LENGTH)
    bos = turn.ids[0]
    assert turn.ids.count(bos) == 1
    assert stack.tokenizer.is_special(bos)


@pytest.mark.parametrize("history", ["held", "template"])
async def test_a_conversation_goes_on_after_midnight(history):
    stack = Talk(real_tokenizer("llama3_2"), history=history)
    assert stack.template.findings.prints_date
    eot = 128009
    first = await stack.say([user("Hi")], [39, 84822, eot], stop(eot))
    stack.now = datetime(2026, 1, 3, 0, 1)
    second = await stack.say([user("Hi"), first.reply, user("more")], [100], LENGTH)
    assert second.ids[: len(first.held)] == first.held
    assert second.prompt.receipt.status == "extended"
    stack.now = datetime(2026, 1, 4, 0, 1)
    third = await stack.say([user("Hi")], [100], LENGTH)
    assert third.ids != first.ids  # a new conversation has the new date


async def test_a_template_that_moves_the_system_prompt_is_not_extended():
    """Mistral Nemo prints the system prompt in the last user turn: held tokens would lie."""
    stack = Talk(real_tokenizer("mistral_nemo"))
    assert not stack.template.findings.appends_with_system
    system = {"role": "system", "content": "Be short"}
    first = await stack.say([system, user("Hi")], [1072, 2], stop(2))
    messages = [system, user("Hi"), first.reply, user("more")]
    second = await stack.say(messages, [1072], LENGTH)
    rendered = stack.template.render(messages, second.call.template)
    assert stack.tokenizer.decode(second.ids, skip_special_tokens=False) == rendered
    assert second.prompt.receipt.status == "branched"
    assert "append" in second.prompt.receipt.reason


async def test_twins_with_equal_text_are_told_apart_by_their_session(qwen):
    messages = [user("Say it")]
    for session, ids in (("a", [39, 83722]), ("b", [72239, 1718])):
        await qwen.say(messages, [*ids, IM_END], stop(IM_END), session_id=session)
    echo = [*messages, {"role": "assistant", "content": "HAVING"}, user("more")]
    for history in ("held", "template"):
        for session, ids in (("a", [39, 83722]), ("b", [72239, 1718])):
            turn = await qwen.say(echo, [9707], LENGTH, session_id=session, history=history)
            at = len(qwen.sent[0])
            assert turn.ids[at : at + 2] == ids
    anonymous = await qwen.say(echo, [9707], LENGTH)
    assert anonymous.ids[len(qwen.sent[0]) :][:2] == [72239, 1718]  # the latest


@pytest.mark.parametrize("history", ["held", "template"])
async def test_what_a_named_session_never_sampled_is_plain_context(qwen, history):
    first = await qwen.say([user("Hi")], [39, 83722, IM_END], stop(IM_END))
    messages = [user("Hi"), first.reply, user("more")]
    other = await qwen.say(messages, [9707], LENGTH, session_id="someone", history=history)
    rendered = qwen.template.render(messages, other.call.template)
    assert other.ids == qwen.tokenizer.encode(rendered).tolist()


async def test_scopes_never_mix(qwen):
    first = await qwen.say([user("Hi")], [39, 83722, IM_END], stop(IM_END), scope="a")
    messages = [user("Hi"), first.reply, user("more")]
    other = await qwen.say(messages, [9707], LENGTH, scope="b")
    assert other.prompt.receipt.reused == 0
    assert other.prompt.receipt.status == "fresh"


async def test_a_template_that_refuses_is_a_bad_request_and_changes_nothing():
    stack = Talk(real_tokenizer("mistral_nemo"))
    hello = {"role": "assistant", "content": "Hello"}
    replies_in_a_row = [user("Hi"), hello, hello, user("Hi")]  # it wants the roles to alternate
    with pytest.raises(BadRequest) as caught:
        await stack.say(replies_in_a_row, [1072])
    assert caught.value.param == "messages"
    assert len(stack.store) == 0
    assert stack.cache.size.tokens == 0


async def test_a_hundred_turns_stay_exact(qwen):
    messages = []
    held: list[int] = []
    for index in range(100):
        messages.append(user(f"question {index}"))
        turn = await qwen.say(messages, [39, 83722, index + 100, IM_END], stop(IM_END))
        assert turn.ids[: len(held)] == held
        held = turn.held
        messages.append(turn.reply)
    assert qwen.store.held_ids(turn.call.turn_id).tolist() == held
    qwen.cache.check_integrity()
    qwen.store.check_integrity()
    assert qwen.store.tokens == len(held)  # each token is stored once


async def test_three_turns_accumulate_to_the_exact_token_list(qwen):
    messages, turns = [], []
    for index, ids in enumerate(([39, 83722, IM_END], [32713, 385, IM_END], [72239, IM_END])):
        messages.append(user(f"question {index}"))
        turns.append(await qwen.say(messages, ids, stop(IM_END)))
        messages.append(turns[-1].reply)
    stored = [qwen.store.get(turn.call.turn_id) for turn in turns]
    assert [turn.output_ids.tolist() for turn in stored if turn] == [t.output_ids for t in turns]
    trace = qwen.store.trace(turns[-1].call.turn_id)
    assert trace.ids.tolist() == turns[-1].held
    assert trace.ids[trace.loss_mask == 1].tolist() == [i for t in turns for i in t.output_ids]


@pytest.mark.parametrize("history", ["held", "template"])
@pytest.mark.parametrize(("sampled", "text"), [([28789], "<"), ([367, 440, 300], " Pantom")])
async def test_sentencepiece_samples_keep_their_space_and_their_ids(history, sampled, text):
    stack = Talk(real_tokenizer("mistral_7b_sp"), history=history)
    first = await stack.say([user("Say it")], [*sampled, 2], stop(2))
    assert first.reply["content"] == text  # alone, the ids would decode without the space
    second = await stack.say([user("Say it"), first.reply, user("again")], [2], stop(2))
    assert second.ids[: len(first.held)] == first.held


async def test_a_token_break_under_equal_messages_is_another_branch(qwen):
    first = await qwen.say([user("Hi")], [39, 83722, IM_END], stop(IM_END), session_id="a")
    messages = [user("Hi"), first.reply, user("more")]
    broken = await qwen.say(messages, [18, IM_END], stop(IM_END), session_id="b")
    whole = await qwen.say(messages, [18, IM_END], stop(IM_END), session_id="a")
    assert broken.ids[: len(first.held)] != first.held
    assert whole.ids[: len(first.held)] == first.held
    assert qwen.store.held_ids(broken.call.turn_id).tolist() == broken.held
    assert qwen.store.held_ids(whole.call.turn_id).tolist() == whole.held
    assert broken.prompt.receipt.status == "fresh"
    assert whole.prompt.receipt.status == "extended"
