"""Texts in parts: joined as the template itself joins them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slime_router.template.parts import Parts, find_parts, prints_names
from slime_router.types import Message, TemplateOptions
from tests.families.catalogue import family
from tests.talk import user

Template = Callable[[Message], str]


def rendered(of_message: Template) -> Callable[[list[Message], TemplateOptions], str | None]:
    def render(messages: list[Message], _: TemplateOptions) -> str | None:
        try:
            return "".join(f"<{m['role']}>{of_message(m)}" for m in messages)
        except TypeError:
            return None

    return render


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def walks(separator: str) -> Template:
    def content(message: Message) -> str:
        given = message["content"]
        return given if isinstance(given, str) else separator.join(p["text"] for p in given)

    return content


def only_of_users(message: Message) -> str:
    if message["role"] == "user":
        return walks("")(message)
    content: str = "" + message["content"]
    return content


@pytest.mark.parametrize(
    ("template", "users", "assistants"),
    [
        (walks(""), "ab", "ab"),
        (walks("\n"), "a\nb", "a\nb"),
        (only_of_users, "ab", "a b"),
        (lambda m: m["content"] + "", "a b", "a b"),
        (lambda m: str(m["content"]), "a b", "a b"),  # Python's own spelling of a list
        (walks("; "), "a b", "a b"),  # words between parts are not the client's
    ],
)
def test_what_a_template_puts_between_parts_is_tried(template, users, assistants):
    parts = find_parts(rendered(template))
    [asked, told] = parts.whole([user([part("a"), part("b")]), {**ECHO, "content": ["a", "b"]}])
    assert (asked["content"], told["content"]) == (users, assistants)


@pytest.mark.parametrize("separator", ["", "\n"])
def test_whether_a_template_strips_each_part_is_tried(separator: str):
    def stripped(message: Message) -> str:
        given = message["content"]
        texts = [given] if isinstance(given, str) else [each["text"] for each in given]
        return separator.join(str(text).strip() for text in texts)

    parts = find_parts(rendered(stripped))
    [asked] = parts.whole([user([part(" a "), part("\nb ")])])
    assert asked["content"] == f"a{separator}b"


@pytest.mark.tokenizers
def test_gemma_strips_each_part():
    template = family("gemma3").chat_template()
    given = [user([part(" a "), part(" b\n")])]
    expected = template._try_as_it_is([*given], TemplateOptions())
    assert template.render(given, TemplateOptions()) == expected
    assert "ab" in (expected or "")


ECHO: Message = {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    "content",
    [
        "text",
        None,
        [],
        [part("one")],
        [{"type": "tool_reference", "name": "f"}, {"type": "tool_reference", "name": "g"}],
        [part("a"), {"type": "image_url", "image_url": {"url": "x"}}],
    ],
)
def test_what_is_not_several_texts_stays_as_it_is(content):
    messages = [user(content)]
    assert Parts({"user": ""}).whole(messages) is messages
    assert [*Parts({}).spellings({**ECHO, "content": content})] == [{**ECHO, "content": content}]


def test_a_refusal_is_a_text_and_no_message_is_changed():
    told: dict[str, Any] = {**ECHO, "content": [part("No. "), {"type": "refusal", "refusal": "N"}]}
    assert Parts({"assistant": ""}).joined(told)["content"] == "No. N"
    assert isinstance(told["content"], list)


@pytest.mark.parametrize("role", ["user", "system"])
def test_whether_names_are_printed_is_tried(role):
    def named(message: Message) -> str:
        return str(message.get("name", "")) if message["role"] == role else ""

    assert prints_names(rendered(named))
    assert not prints_names(rendered(walks("")))


@pytest.mark.tokenizers
@pytest.mark.parametrize(
    ("name", "joined"), [("glm4moe", "ab"), ("qwen3_vl", "ab"), ("gemma3", "ab"), ("qwen3", "a b")]
)
def test_templates_of_real_families(name, joined):
    """As SGLang serves them: it gives parts to those that walk through them."""
    template = family(name).chat_template()
    whole = template.render([user(joined)], TemplateOptions())
    assert template.render([user([part("a"), part("b")])], TemplateOptions()) == whole
