"""Rendering with a chat template, and what a client's messages can do to it."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from pathlib import Path
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
from tests import vocabularies
from tests.tiny import build_tiny_checkpoint

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
PLAIN = TemplateOptions()
SHOW_ALL = "{{ messages }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ mood }}"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "thinking", "other"]
)


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


class Loud(str):
    """A text of a kind of its own."""

    def __repr__(self) -> str:
        return "LOUD"


@pytest.mark.parametrize(
    "value", [Loud("a"), UUID(int=1), b"a", {1: 2}, (1, 2), 2**70, float("nan"), {"a": {3}}]
)
def test_values_that_are_not_jsons_are_replaced_as_transformers_does(
    shown: Tokenizer, value: object
) -> None:
    messages: list[Message] = [{"role": "user", "content": value}]
    options = TemplateOptions(kwargs={"mood": value})
    assert shown.render(messages, options) == as_transformers_renders(messages, options)


def test_release_of_transformers_that_adds_to_messages_is_followed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = chat_template_utils.render_jinja_template

    def adding(chats: list[list[Message]], **settings: Any) -> Any:
        return usual([[{**each, "added": "x"} for each in chat] for chat in chats], **settings)

    monkeypatch.setattr(chat_template_utils, "render_jinja_template", adding)
    tokenizer = load_tokenizer(str(directory), chat_template="{{ messages[0].added }}")
    assert tokenizer.render(HELLO, PLAIN) == "x"
