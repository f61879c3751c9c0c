"""Prompts put together from a form read as if the template had been run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from typing import Any

import jinja2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from slime_router.template.forms.forms import (
    MAX_KINDS,
    MAX_MESSAGES,
    MAX_OWN_LEN,
    Filled,
    Forms,
)
from slime_router.template.forms.watched import watching
from slime_router.types import Message

CHAT = """\
{%- for message in messages -%}
{%- if message.role == 'user' or '</think>' not in message.content -%}
<{{ message.role }}>{{ message.content }}
{%- else -%}
<{{ message.role }}>{{ message.content.split('</think>')[-1] }}
{%- endif -%}
{%- endfor -%}
{%- if ends %}<end>{% endif -%}
"""
# Each looks at a text in another way, and prints something else for some.
PRYING = (
    CHAT,
    "{{ messages[0].content | trim }}.",
    "{{ messages[0].content.strip('<a') }}{{ messages[0].content.lstrip() }}",
    "{{ messages[0].content.rstrip('\\n') + '|' + messages[0].content }}",
    "{{ 'a ' ~ messages[0].content ~ ' b' }}",
    "{% if messages[0].content %}{{ messages[0].content }}{% else %}nothing{% endif %}",
    "{% if messages[0].content | length > 3 %}long{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content == 'a' %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content != '' and none != messages[0].content %}A{% endif %}",
    "{% if 'a' == messages[0].content or 'b' in messages[0].content %}A{% endif %}",
    "{% if 'b' > messages[0].content %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content in ['a', '<'] %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content in 'abc' %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content is in 'abc' %}A{% endif %}{{ messages[0].content }}",
    "{% if 'abc'.startswith(messages[0].content) %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content.startswith(('a', '<')) %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content.endswith('<') is true %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content < 'b' %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content[0] == 'a' %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content[-1:] == 'a' %}A{% endif %}{{ messages[0].content }}",
    "{% for letter in messages[0].content %}{{ letter }},{% endfor %}",
    "{{ {'a': 1, '<': 2}[messages[0].content] }}{{ messages[0].content }}",
    "{{ {'a': 1}.get(messages[0].content, 0) }}{{ messages[0].content }}",
    "{{ messages[0].content * 2 }}{{ 2 * messages[0].content }}",
    "{{ '%s!' % messages[0].content }}{{ '{}?'.format(messages[0].content) }}",
    "{{ messages[0].content.upper() }}{{ messages[0].content | title }}",
    "{{ messages[0].content.replace('a', 'b') }}{{ 'xax'.replace('x', messages[0].content) }}",
    "{{ messages[0].content.split('a') | join('|') }}",
    "{{ ['x', messages[0].content] | join(', ') }}{{ ', '.join(['x', messages[0].content]) }}",
    "{{ messages[0].content | tojson }}",
    "{{ messages[0] | tojson }}",
    "{{ messages | map(attribute='content') | join(',') }}",
    "{{ (messages | selectattr('role', 'equalto', 'user') | list)[0].content }}",
    "{{ messages | selectattr('content', 'equalto', 'a') | list | length }}",
    "{{ messages | map(attribute='content') | list | unique | list | length }}",
    "{{ messages[0].content | string | default('x') }}{{ messages[0].content | first }}",
    "{{ messages[0].content | safe }}{{ messages[0].content | e }}",
    "{% if (messages[0].content ~ 'b').strip() == 'ab' %}A{% endif %}",
    "{% if ('b' + messages[0].content) == 'ba' %}A{% endif %}",
    "{% if (messages[0].content | tojson | length) > 4 %}A{% endif %}",
    "{% macro say(text) %}{{ text }}{% endmacro %}{{ say(messages[0].content) | trim }}",
    "{% macro say(text) %} {{ text }}{% endmacro %}{{ say(messages[0].content) | trim }}",
    "{% set ns = namespace(text='') %}{% set ns.text = messages[0].content %}{{ ns.text }}",
    "{% set text %}{{ messages[0].content }}{% endset %}{{ text.strip() }}{{ text }}",
    "{% if messages[0].content is string and messages[0].content is iterable %}A{% endif %}",
    "{% if messages[0].content is lower %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0].content == messages[-1].content %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[0] == messages[-1] %}A{% endif %}{{ messages[0].content }}",
    "{% if messages[-1].content in messages[0].content %}A{% endif %}",
    "{{ messages[0].content and messages[-1].content or 'none' }}",
    "{{ 1 // (messages[0].content == 'a') }}",
    "{% if '%s!' % (messages[0].content,) == 'a!' %}A{% endif %}",
    "{% if '%(content)s!' % messages[0] == 'a!' %}A{% endif %}",
    "{% if 'a' in messages[0].values() | join %}A{% endif %}",
    "{% if 'a' in ''.join(messages[0].values()) %}A{% endif %}",
    "{% if 'user' in [messages[0].content] | selectattr('upper') | join %}A{% endif %}",
    "{% if ''.join([messages[0].content] | selectattr('upper')) == 'a' %}A{% endif %}",
    "{{ 'abc' | trim(messages[0].content) }}",
    "{% if not messages[0].content.parts and messages[0].content == 'a' %}A{% endif %}",
    "{% if ('a' | safe) == messages[0].content %}A{% endif %}",
    "{% if messages[0].content in ('a' | e | string,) %}A{% endif %}",
    "{% autoescape true %}{% set text %}{{ messages[0].content }}{% endset %}"
    "{% if text == 'a' %}A{% endif %}{% endautoescape %}",
    "{% if messages[0].content | random == 'a' %}A{% endif %}",
)  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(["a", "b", "<", "</think>", " ", "\n", '"', "Å", "%s", "{}"]), max_size=4
).map("".join)


class Template:
    """A template that counts how often it was run; `text` is what a router would send."""

    def __init__(self, source: str) -> None:
        self._compiled, self._watching = compiled(source)
        self.forms, self.runs = Forms(), 0

    def text(self, *messages: Message, about: Hashable = "", **given: Any) -> str:
        watch = partial(self._watch, given)
        return self.forms.rendered(messages, lambda: about, partial(self.run, given), watch)

    def run(self, given: dict[str, Any], messages: Sequence[Message]) -> str:
        self.runs += 1
        return self._compiled.render(messages=messages, **given)

    def _watch(self, given: dict[str, Any], messages: Sequence[Message]) -> str:
        if self._watching is None:
            raise ValueError("it cannot be watched")
        return self._watching.render(messages=messages, **given)

    def runs_for(self, *messages: Message, **given: Any) -> int:
        before = self.runs
        self.text(*messages, **given)
        return self.runs - before


@cache
def compiled(source: str) -> tuple[jinja2.Template, jinja2.Template | None]:
    template = ImmutableSandboxedEnvironment().from_string(source)
    return template, watching(template, source)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def reply(text: str) -> Message:
    return {"role": "assistant", "content": text}


@pytest.fixture
def template() -> Template:
    """One that has seen two conversations of a user who says one thing."""
    template = Template(CHAT)
    assert template.text(user("Hi")) == "<user>Hi"
    assert template.text(user("Hello")) == "<user>Hello"
    return template


def test_the_template_is_not_run_for_what_comes_again_with_other_texts(template: Template) -> None:
    runs = template.runs
    assert template.text(user("How are you?")) == "<user>How are you?"
    assert template.runs == runs


def test_what_a_form_prints_says_where_the_last_text_ends() -> None:
    template = Template(CHAT)
    for said in ("Hi", "Hello"):
        assert not isinstance(template.text(user(said), ends=True), Filled)
    text = template.text(user("Hi<end>"), ends=True)
    assert isinstance(text, Filled)
    assert (text, text.tail_len) == ("<user>Hi<end><end>", len("<end>"))


@pytest.mark.parametrize("source", ["{{ messages[-1].content }}.", "."])
def test_but_not_where_one_is_left_out(source: str) -> None:
    template = Template(source)
    for said in ("Hi", "Hello", "Bye"):
        text = template.text(user("?"), user(said))
    assert template.runs_for(user("?"), user("Hi")) == 0
    assert not isinstance(text, Filled)


def test_what_comes_but_once_costs_one_run() -> None:
    assert Template(CHAT).runs_for(user("Hi")) == 1


@pytest.mark.parametrize(
    "messages",
    [
        [reply("Hi")],
        [user("Hi"), reply("Hi")],
        [{**user("Hi"), "name": "Ann"}],
        [user("Hi")] * (MAX_MESSAGES + 1),
    ],
    ids=["another role", "more", "another field", "long"],
)
def test_other_kinds_are_rendered(template: Template, messages: list[Message]) -> None:
    assert template.runs_for(*messages) == 1


def test_so_is_what_depends_on_something_else(template: Template) -> None:
    assert template.text(user("Hi"), about="ends", ends=True) == "<user>Hi<end>"


def test_and_what_depends_on_something_that_nobody_knows(template: Template) -> None:
    assert [template.runs_for(user("Hi"), about=None) for _ in range(4)] == [1, 1, 1, 1]


def test_a_text_that_answers_otherwise_is_rendered() -> None:
    template = Template(CHAT)
    for said in ("Hi", "Hello", "Bye"):
        template.text(user("?"), reply(said))
    runs = template.runs
    assert template.text(user("?"), reply("Hm.</think>Hi")) == "<user>?<assistant>Hi"
    assert template.runs > runs
    assert template.runs_for(user("?"), reply("Good")) == 0


def test_what_a_template_refuses_it_refuses_again() -> None:
    template = Template("{{ 1 // (messages[0].content == 'a') }}")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            template.text(user("b"))
    assert template.text(user("a")) == "1"


def test_no_form_is_larger_than_is_worth_it() -> None:
    template = Template("x" * (MAX_OWN_LEN + 1) + "{{ messages[0].content }}")
    for _ in range(3):
        template.text(user("Hi"))
    assert template.runs_for(user("Hi"))


def test_nor_are_its_questions() -> None:
    template = Template("{% if word in messages[0].content %}A{% endif %}")
    for _ in range(3):
        template.text(user("Hi"), word="x" * (MAX_OWN_LEN + 1))
    assert template.runs_for(user("Hi"), word="x" * (MAX_OWN_LEN + 1))


def test_kinds_have_a_limit(template: Template) -> None:
    for number in range(MAX_KINDS):
        template.text(user("Hi"), about=number)
    assert template.runs_for(user("Hi")) == 1
    assert str(MAX_KINDS) in repr(template.forms)


@pytest.mark.slow
@pytest.mark.parametrize("source", [each for each in PRYING if "random" not in each])
@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=3, max_size=6))
@example([("a", "a"), ("a", "b"), ("b", "a"), ("", "a"), ("a", ""), (" a", "a"), ('"', "<")])
def test_it_reads_as_the_template_does(source: str, said: list[tuple[str, str]]) -> None:
    template = Template(source)
    for number, texts in enumerate(said):
        messages = [user(text) for text in texts[: 1 + number % 2]]
        expected = outcome(partial(template.run, {}, messages))
        text = outcome(partial(template.text, *messages))
        assert text == expected
        if isinstance(text, Filled):
            told = text.removesuffix(text[len(text) - text.tail_len :])
            assert told.endswith(texts)
            assert all(each in told for each in texts[: len(messages)])


def outcome(render: Callable[[], str]) -> str:
    """What comes of a rendering: its text, or the kind of its error."""
    try:
        return render()
    except Exception as exc:  # noqa: BLE001 - a template may raise any
        return type(exc).__name__
