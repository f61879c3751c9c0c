"""Templates of every temper: where they append, how turns end, and when the answer is None."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.errors import BadRequest
from slime_router.template.chat_template import ChatTemplate, Suffix
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions
from tests.talk import LENGTH, Talk, stop, user
from tests.tiny import build_tiny_checkpoint

OPTIONS = TemplateOptions()
ASK = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be short"}
END, START = "<|im_end|>", "<|im_start|>"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The stop token is the header of what comes next, as in GLM: <think> stands for <|user|>,
# </think> for <|observation|>, <|im_start|> for <|assistant|>.
HEADERS = (
    "{% for m in messages %}{% if m.role == 'user' %}<think>{{ m.content }}"
    "{% elif m.role == 'tool' %}</think>{{ m.content }}"
    "{% else %}<|im_start|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
SYSTEM_LAST = (  # as Mistral Nemo: the system prompt moves to the last user turn
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content + ' ' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'user' and loop.index0 == messages | length - 1 %}{{ s }}{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTING = CHATML.replace("{{ m.role }}", "{{ m.role }} {{ loop.index }} of {{ messages|length }}")
NUMBERED = CHATML.replace("{{ m.role }}", "{{ m.role }} {{ loop.index }}")
TRIMMING = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}")
DROPS_REPLIES = CHATML.replace("{% for m in messages %}", "{% for m in messages[-1:] %}")
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)


IN_PARTS = (  # of a model that sees pictures: it prints no content that is a string
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('the system message comes first') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{% for part in m.content if part.text %}{{ part.text }}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
)


@cache
def tokenizer(template: str) -> Tokenizer:
    with TemporaryDirectory() as directory:
        return load_tokenizer(str(build_tiny_checkpoint(Path(directory))), chat_template=template)


def chat_template(source: str) -> ChatTemplate:
    return ChatTemplate(tokenizer(source))


def suffix(source: str, messages: list[Message], stop_token: str | None = END) -> Suffix | None:
    """The suffix after the last reply among `messages`."""
    ids = tokenizer(source)
    found = next(ids.find_controls(stop_token), None) if stop_token else None
    index = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return chat_template(source).suffix(
        messages, index, OPTIONS, sampled=[found[2]] if found else ()
    )


@pytest.mark.parametrize(
    ("source", "closer", "openers", "after_user", "with_system"),
    [
        (CHATML, END, (), True, True),
        (SYSTEM_LAST, END, (), True, False),
        (COUNTING, END, (), False, False),
        (NUMBERED, END, (), True, True),
        (TRIMMING, END, (), True, True),
    ],
    ids=["chatml", "system-last", "counting", "numbered", "trimming"],
)
def test_the_self_test_tells_templates_apart(source, closer, openers, after_user, with_system):
    found = chat_template(source).findings
    assert (found.closer, found.openers) == (closer, openers)
    assert (found.appends_after_user, found.appends_with_system) == (after_user, with_system)


def test_what_the_model_sampled_of_the_suffix_is_dropped():
    found = suffix(CHATML, [ASK, REPLY, ASK])
    assert found == Suffix(f"\n{START}user\nHi{END}\n{START}assistant\n")


def test_a_turn_without_a_stop_is_closed_by_the_template():
    found = suffix(CHATML, [ASK, REPLY, ASK], stop_token=None)
    assert found == Suffix(f"{END}\n{START}user\nHi{END}\n{START}assistant\n")


@pytest.mark.parametrize("source", [COUNTING, DROPS_REPLIES], ids=["counting", "forgetful"])
def test_no_suffix_where_the_template_does_not_append(source):
    assert suffix(source, [ASK, REPLY, ASK]) is None


def test_a_system_prompt_that_moves_is_no_appending():
    assert suffix(SYSTEM_LAST, [SYSTEM, ASK, REPLY, ASK]) is None
    assert suffix(SYSTEM_LAST, [ASK, REPLY, ASK]) is not None


@pytest.mark.parametrize("first", [[SYSTEM], []], ids=["system", "user"])
@pytest.mark.parametrize(
    "source", [CHATML, NUMBERED, TRIMMING, ALTERNATING],
    ids=["chatml", "numbered", "trimming", "alternating"],
)  # fmt: skip
def test_a_long_conversation_has_the_suffix_of_its_whole_rendering(source, first):
    """Only the last messages are rendered for it where that is shown to be enough."""
    if source is ALTERNATING and first:
        with pytest.raises(BadRequest):
            chat_template(source).render([SYSTEM, ASK], OPTIONS)
        return
    template = chat_template(source)
    for replies in (30, 31, 32):  # the first of the shape is the proof, the others rely on it
        messages = [*first, *([ASK, REPLY] * replies), {"role": "user", "content": "now"}]
        index = len(messages) - 2
        found = template.suffix(messages, index, OPTIONS, sampled=())
        assert found is not None
        assert template.render(messages, OPTIONS).endswith(found.text)


async def test_a_stop_token_that_is_the_next_header_is_dropped_or_gives_way(monkeypatch):
    ids = tokenizer(HEADERS)
    as_user, as_tool = (next(ids.find_controls(t))[2] for t in ("<think>", "</think>"))
    monkeypatch.setattr(ids, "eos_ids", frozenset({as_user, as_tool}))
    talk = Talk(ids)
    assert set(talk.template.findings.openers) == {"<think>", "</think>"}
    talk.template = ChatTemplate(ids)
    first = await talk.say([user("a")], [65, 66, as_user], stop(as_user))
    same = await talk.say([user("a"), first.reply, user("b")], [65], LENGTH)
    assert same.ids[: len(first.held)] == first.held  # <|user|> was sampled: nothing to add
    assert same.ids[len(first.held)] != as_user
    other = await talk.say([user("x")], [65, 66, as_tool], stop(as_tool))
    then = await talk.say([user("x"), other.reply, user("b")], [65], LENGTH)
    kept = other.held[:-1]
    assert then.ids[: len(kept) + 1] == [*kept, as_user]  # <|observation|> gave way
    assert then.prompt.receipt.status == "branched"
    assert "gives way" in then.prompt.receipt.reason
    trace = talk.store.trace(then.call.turn_id)
    assert trace.loss_mask[len(kept) - 2 : len(kept) + 1].tolist() == [1, 1, 0]


def test_a_checkpoint_without_a_template_serves_no_chat():
    class Bare:
        chat_template = None
        jinja_template = None
        has_developer_role = False
        eos_ids: frozenset[int] = frozenset()

    template = ChatTemplate(Bare())  # type: ignore[arg-type]  # nothing else of it is touched
    assert not template.findings.has_template
    with pytest.raises(BadRequest, match="no chat template") as caught:
        template.render([ASK], OPTIONS)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source", ["{# x #}", "{{ 'a page' }}", "{{ 1 / 0 }}", "{{ messages | length }}"]
)
def test_a_template_that_prints_no_message_shows(source):
    """It may be any file: whoever asked would get replies to nothing."""
    template = chat_template(source)
    assert not template.findings.prints_messages
    assert template.findings.summary().startswith("it prints nothing of a user's message")
    assert chat_template(CHATML).findings.prints_messages


def test_roles_that_the_template_does_not_know_are_mapped():
    template = chat_template(CHATML)
    rendered = template.render([{"role": "developer", "content": "x"}, ASK], OPTIONS)
    assert rendered.startswith(f"{START}system\nx{END}")
    with_role = chat_template(CHATML + "{# developer #}")
    rendered = with_role.render([{"role": "developer", "content": "x"}, ASK], OPTIONS)
    assert rendered.startswith(f"{START}developer\nx{END}")


def test_arguments_reach_the_template_as_an_object_and_broken_ones_as_they_are():
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    for arguments, printed in (
        ('{"a":1}', '{"a": 1}'), ({"a": 1}, '{"a": 1}'), ("", "{}"), (None, "{}"),
        ("{broken", '"{broken"'), ("[1]", '"[1]"'),
    ):  # fmt: skip
        call = {"function": {"name": "f", "arguments": arguments}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        assert chat_template(source).render([message], OPTIONS) == printed
        assert message["content"] is None  # the client's own message is not touched


def test_messages_that_are_joined_for_a_template_are_texts_even_where_it_takes_parts():
    template = chat_template(IN_PARTS)
    assert template.findings.content == "parts"
    text = template.render([SYSTEM, {**SYSTEM, "content": "Be kind"}, ASK, SYSTEM], OPTIONS)
    system, *turns = text.split("<|im_end|>\n")
    assert system == "<|im_start|>system\nBe short\n\nBe kind"
    assert turns == ["<|im_start|>user\nHi", "<|im_start|>user\nBe short", ""]
