"""Rendering with a chat template, and what a client's messages can do to it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.errors import BadRequest
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions
from tests import chat_templates, vocabularies
from tests.tiny import build_tiny_checkpoint

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}
ROLES = (
    ["user"], ["user"], ["system", "user"], ["user", "assistant", "user"],
    ["system", "user", "assistant", "user"], ["user", "assistant", "tool", "user"],
)  # fmt: skip
WORDS = (
    "Hi", "Hi", " ", "\n", "</think>", "<think>", "<tool_response>", "</tool_response>", '"', "<",
    "é", "/no_think", "[INST]", "{{", "%s", "\\", "None", "detailed thinking on",
)  # fmt: skip
SHOW_ALL = "{{ messages }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ mood }}"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "role", "content", "name", "tool_calls", "tool_call_id",
        "reasoning_content", "reasoning", "thinking", "other",
    ]
)  # fmt: skip
HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
PLAIN = TemplateOptions()


def test_tools_keep_their_own_key_order(tokenizer: Tokenizer) -> None:
    tool = {"type": "function", "function": {"name": "f", "b": {}, "a": None}}
    text = tokenizer.render(HELLO, TemplateOptions(tools=(tool,)))
    assert json.dumps(tool) in text


def test_generation_prompt_is_an_option(tokenizer: Tokenizer) -> None:
    open_text = tokenizer.render(HELLO, PLAIN)
    closed = tokenizer.render(HELLO, TemplateOptions(add_generation_prompt=False))
    assert open_text == closed + "<|im_start|>assistant\n"


def test_final_message_can_be_continued(tokenizer: Tokenizer) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Once upon "}]
    text = tokenizer.render(messages, TemplateOptions(continue_final_message=True))
    assert text.endswith("<|im_start|>assistant\nOnce upon ")


def test_further_arguments_reach_the_template(directory: Path) -> None:
    source = "{{ mood }}"
    tokenizer = load_tokenizer(str(directory), chat_template=source)
    assert tokenizer.render(HELLO, TemplateOptions(kwargs={"mood": "gay"})) == "gay"


def test_content_that_is_null_reaches_the_template(directory: Path) -> None:
    source = (
        "{% for m in messages %}{{ 'null' if m['content'] == none else m.content }}"
        "{{ m.thinking }}|{% endfor %}"
    )
    tokenizer = load_tokenizer(str(directory), chat_template=source)
    reply = {"role": "assistant", "content": None, "thinking": "Hm", "name": None}
    assert tokenizer.render([*HELLO, reply], PLAIN) == "Hello|nullHm|"


def test_date_is_pinned(directory: Path) -> None:
    source = (
        "  {%- if strftime_now is defined %}\n"
        "{{ strftime_now('%d %b %Y') }}|{{ strftime_now( \"%H:%M\" ) }}\n"
        "{%- endif %}\n"
    )
    tokenizer = load_tokenizer(str(directory), chat_template=source)
    now = datetime(2024, 7, 26, 13, 5)
    assert tokenizer.render(HELLO, PLAIN, date=now) == "26 Jul 2024|13:05"
    assert tokenizer.render(HELLO, PLAIN) != "26 Jul 2024|13:05"


@pytest.mark.parametrize("source", ["  {% if true %}\nx\n{% endif %}", "\n\nx", " x", "x\n"])
def test_pinning_changes_nothing_else(directory: Path, source: str) -> None:
    source += "{# {{ strftime_now('%Y') }} #}"
    tokenizer = load_tokenizer(str(directory), chat_template=source)
    pinned = tokenizer.render(HELLO, PLAIN, date=datetime(2024, 7, 26))
    assert pinned == tokenizer.render(HELLO, PLAIN)


@pytest.mark.tokenizers
def test_date_is_pinned_in_llama_3() -> None:
    tokenizer = load_tokenizer(str(vocabularies.vocabulary("llama3_2")))
    text = tokenizer.render(HELLO, PLAIN, date=datetime(2001, 2, 3))
    assert "Today Date: 03 Feb 2001\n" in text


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        [{"role": "assistant", "content": "", "tool_calls": [3]}],
    ],
)
def test_messages_that_the_template_cannot_take_are_the_clients_mistake(
    tokenizer: Tokenizer, messages: list[Message]
) -> None:
    with pytest.raises(BadRequest) as caught:
        tokenizer.render(messages, PLAIN)
    assert caught.value.param == "messages"


def test_the_templates_own_words_are_told(directory: Path) -> None:
    source = "{{ raise_exception('Roles must\nalternate') }}"
    tokenizer = load_tokenizer(str(directory), chat_template=source)
    with pytest.raises(BadRequest, match="Roles must alternate"):
        tokenizer.render(HELLO, PLAIN)


def test_model_without_template_says_so(tmp_path: Path) -> None:
    path = build_tiny_checkpoint(tmp_path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(BadRequest, match="no chat template"):
        load_tokenizer(str(path)).render(HELLO, PLAIN)


@pytest.mark.parametrize(
    "words",
    [
        "m.content",
        "m.name",
        "not m.name",
        "m.items",
        "m.items()",
        "m.get('role')",
        "m.values",
        "m.missing",
        "m.missing is defined",
        "m.update({})",
        "m.__class__",
        "m.pop('content')",
        "ns.number",
        "not ns.nothing",
        "ns.missing is defined",
        "ns.made()",
        "ns.spelled('x')",
        "ns.__class__",
        "ns._hidden",
        "ns.message.content",
        "'{}'.format(m.content)",
        "'{0.__class__}'.format(m)",
        "m.content.format(3)",
        "m.content.__class__",
        "[3].append(4)",
        "m.content.split('{')",
        "m.content.format",
        "m.content.missing",
        "m.content[1]",
        "loop.index",
        "loop.previtem",
        "loop.previtem is defined",
        "loop.cycle('a', 'b')",
        "loop._length",
        "loop.__class__",
        "loop.missing",
    ],
)
def test_attributes_are_guarded_as_the_sandbox_guards_them(directory: Path, words: str) -> None:
    source = (
        "{% set ns = namespace(number=3, nothing=none, made=dict, spelled='{}'.format) %}"
        "{% for m in messages %}{% set ns.message = m %}{{ " + words + " }}{% endfor %}"
    )
    message = {"role": "user", "content": "a{}b", "items": "x", "name": None}
    sandbox = ImmutableSandboxedEnvironment()
    sandbox.globals["dict"] = dict
    wanted: str | None
    try:
        wanted = sandbox.from_string(source).render(messages=[message])
    except (SecurityError, UndefinedError):
        wanted = None
    tokenizer = load_tokenizer(str(directory), chat_template=source)
    try:
        found = tokenizer.render([message], PLAIN)
    except BadRequest:
        found = None
    assert (found and found.split(" at 0x")[0]) == (wanted and wanted.split(" at 0x")[0])


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "tools", "conversation"])
def test_client_cannot_steer_the_call_itself(tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        tokenizer.render(HELLO, TemplateOptions(kwargs={name: "x"}))
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_messages_are_not_changed(tokenizer: Tokenizer) -> None:
    messages: list[Message] = [
        *HELLO,
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": []},
    ]
    before = copy.deepcopy(messages)
    tokenizer.render(messages, PLAIN)
    assert messages == before


# Plain values given to the template itself, as `transformers` gives it copies of them


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Renders all that a template is given."""
    path = build_tiny_checkpoint(tmp_path_factory.mktemp("shown"))
    return load_tokenizer(str(path), chat_template=SHOW_ALL)


def as_transformers_renders(messages: list[Any], options: TemplateOptions) -> str:
    """Without any shorter way."""
    text: str = chat_template_utils.render_jinja_template(
        [messages],
        chat_template=SHOW_ALL,
        tools=list(options.tools) or None,
        add_generation_prompt=options.add_generation_prompt,
        **options.kwargs,
    )[0][0]
    return text


@given(st.lists(st.dictionaries(FIELDS, JSON), max_size=3), st.lists(JSON, max_size=1), JSON)
def test_template_is_given_what_transformers_gives_it(
    shown: Tokenizer, messages: list[Message], tools: list[Any], mood: object
) -> None:
    tool = tuple({"type": "function", "function": each} for each in tools)
    options = TemplateOptions(tools=tool, kwargs={"mood": mood})
    assert shown.render(messages, options) == as_transformers_renders(messages, options)


def test_documents_of_a_client_are_given_to_the_template(shown: Tokenizer) -> None:
    options = TemplateOptions(kwargs={"documents": [{"title": "a", "text": "b"}], "mood": 1})
    assert shown.render(HELLO, options) == as_transformers_renders(HELLO, options)
    assert "{'title': 'a', 'text': 'b'}" in shown.render(HELLO, options)


class Loud(str):
    """A text of a kind of its own."""

    def __repr__(self) -> str:
        return "LOUD"


@pytest.mark.parametrize(
    "value",
    [Loud("a"), {Loud("a"): 1}, UUID(int=1), b"a", {1: 2}, (1, 2), 2**70, {"a": {3}}, {"a": 0.5}],
)
@pytest.mark.parametrize("field", ["content", "tool_calls", "reasoning_content", Loud("name")])
def test_values_that_are_not_jsons_are_replaced_as_transformers_does(
    shown: Tokenizer, field: str, value: object
) -> None:
    messages: list[Message] = [{"role": "user", field: value}]
    options = TemplateOptions(kwargs={"mood": value})
    assert shown.render(messages, options) == as_transformers_renders(messages, options)


@pytest.mark.parametrize("changed", [{"added": "x"}, {"thinking": "x"}])
def test_release_of_transformers_that_adds_to_messages_is_followed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]
) -> None:
    usual = chat_template_utils.render_jinja_template

    def adding(chats: list[list[Message]], **settings: Any) -> Any:
        return usual([[{**each, **changed} for each in chat] for chat in chats], **settings)

    monkeypatch.setattr(chat_template_utils, "render_jinja_template", adding)
    source = "{{ messages[0].added or messages[0].thinking }}"
    tokenizer = load_tokenizer(str(directory), chat_template=source)
    assert tokenizer.render([{**HELLO[0], "reasoning_content": "y"}], PLAIN) == "x"


def test_template_that_would_change_messages_is_refused_as_before(directory: Path) -> None:
    source = "{% set _ = messages[0].update(content='x') %}{{ messages[0].content }}"
    messages = [{**HELLO[0], "name": None}]
    with pytest.raises(BadRequest, match="cannot render"):
        load_tokenizer(str(directory), chat_template=source).render(messages, PLAIN)
    assert messages == [{**HELLO[0], "name": None}]


@pytest.mark.tokenizers
@pytest.mark.slow
@pytest.mark.parametrize("name", chat_templates.NAMES)
def test_calls_and_reasoning_read_as_transformers_renders_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    load = partial(load_tokenizer, str(directory), chat_template=chat_templates.template_text(name))
    tokenizer = load()
    monkeypatch.setattr("slime_router.template.renderer._handed_on", lambda *_: frozenset())
    slow, drawn = load(), Random(name)
    for number in range(60):
        messages = [message_of(drawn, place) for place in range(drawn.choice([1, 3, 6]))]
        tools = drawn.choice([(), (TOOL,), (TOOL, OTHER)])
        kwargs: dict[str, Any] = drawn.choice([{}, {"enable_thinking": False}, {"number": number}])
        options = TemplateOptions(tools=tools, kwargs=kwargs)
        assert outcome(tokenizer, messages, options) == outcome(slow, messages, options)


def message_of(drawn: Random, number: int) -> Message:
    """One of an agent's conversation, or a strange one."""
    role = drawn.choice(["system", "user", "assistant", "assistant", "tool", "tool"])
    message: Message = {"role": role, "content": drawn.choice([text_of(drawn), None, ""])}
    if role == "tool":
        message["tool_call_id"] = f"call_{number}"
    if role == "assistant" and drawn.random() < 0.7:
        arguments = drawn.choice([{"a": text_of(drawn), "b": [1, None]}, "{}", {}, None])
        called = {"name": drawn.choice(["f", "g"]), "arguments": arguments}
        call = {"id": f"call_{number}", "type": "function", "function": called}
        message["tool_calls"] = [call] * drawn.choice([0, 1, 2])
    if role == "assistant" and drawn.random() < 0.5:
        message["reasoning_content"] = drawn.choice([text_of(drawn), None])
    return message


def outcome(tokenizer: Tokenizer, messages: list[Message], options: TemplateOptions) -> str:
    """A rendering, or why the template refuses."""
    try:
        return tokenizer.render(messages, options)
    except BadRequest as exc:
        return exc.message


# Renderings without the template, see `template/forms`


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PLAIN, TemplateOptions(add_generation_prompt=False)),
        (
            TemplateOptions(kwargs={"mood": 1}),
            TemplateOptions(kwargs={"mood": 1}, add_generation_prompt=False),
        ),
        (TemplateOptions(tools=(TOOL, OTHER)), TemplateOptions(tools=(OTHER, TOOL))),
        (TemplateOptions(kwargs={"mood": 1}), TemplateOptions(kwargs={"mood": True})),
        (TemplateOptions(kwargs={"mood": 1}), TemplateOptions(kwargs={"mood": 1.0})),
        (TemplateOptions(kwargs={"mood": None}), PLAIN),
    ],
    ids=["generation prompt", "and arguments", "order of tools", "true", "fraction", "null"],
)
def test_what_a_rendering_depends_on_tells_kinds_apart(
    directory: Path, one: TemplateOptions, other: TemplateOptions
) -> None:
    source = "{{ messages[0].content }} {{ tools }} {{ mood }} {{ add_generation_prompt }}"
    tokenizer = load_tokenizer(str(directory), chat_template=source)
    expected = tokenizer.render(HELLO, other)
    for _ in range(3):
        tokenizer.render(HELLO, one)
    assert tokenizer.render(HELLO, one) != expected
    assert tokenizer.render(HELLO, other) == expected


def test_the_date_is_that_of_each_rendering(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "{% set day = '%d' %}{{ strftime_now(day) }}{{ messages[0].content }}"
    tokenizer = load_tokenizer(str(directory), chat_template=source)
    clock = Clock()
    monkeypatch.setattr(chat_template_utils, "datetime", clock)
    for clock.day in (1, 1, 1, 2):
        assert tokenizer.render(HELLO, PLAIN) == f"0{clock.day}Hello"


class Clock:
    """Stands in for `datetime`, and can be set to a day of a month."""

    day = 1

    def now(self) -> datetime:
        return datetime(2024, 7, self.day)


@pytest.mark.tokenizers
@pytest.mark.slow
@pytest.mark.parametrize("name", chat_templates.NAMES)
def test_conversations_of_a_kind_read_as_if_they_came_once(directory: Path, name: str) -> None:
    tokenizer = load_tokenizer(str(directory), chat_template=chat_templates.template_text(name))
    drawn = Random(name)
    for number in range(120):
        roles = drawn.choice(ROLES)
        messages = [{"role": role, "content": text_of(drawn)} for role in roles]
        tools, date = drawn.choice([(), (TOOL,)]), drawn.choice([None, datetime(2024, 7, 26)])
        kwargs = drawn.choice([{}, {"enable_thinking": False}])
        often = TemplateOptions(tools=tools, kwargs=kwargs)
        once = TemplateOptions(tools=tools, kwargs={**kwargs, "number": number})
        render = partial(tokenizer.render, messages, date=date)
        assert said(partial(render, options=often)) == said(partial(render, options=once))


def said(render: Callable[[], str]) -> str | None:
    """A rendering, or None where the template refuses."""
    try:
        return render()
    except BadRequest:
        return None


def text_of(drawn: Random) -> str:
    return "".join(drawn.choices(WORDS, k=drawn.choice([0, 1, 1, 2, 3, 5])))
