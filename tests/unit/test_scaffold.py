"""The scaffold: what the template wrote of a prompt is found by its tokens alone."""

from __future__ import annotations

from functools import cache
from typing import Any

from slime_router.template.chat_template import ChatTemplate
from slime_router.template.scaffold import Scaffold
from slime_router.types import TemplateOptions
from tests.stack import tiny_tokenizer


@cache
def parts() -> tuple[ChatTemplate, Scaffold]:
    template = ChatTemplate(tiny_tokenizer())
    return template, Scaffold(template.try_render, tiny_tokenizer())


def said(messages: list[dict[str, Any]]) -> str:
    """What is left of a prompt without the tokens of the template, each gap as one bar."""
    template, scaffold = parts()
    ids = tiny_tokenizer().encode(template.render(messages, TemplateOptions()))
    text = ""
    for token_id, is_template in zip(ids.tolist(), scaffold.marks(ids).tolist(), strict=True):
        if not is_template:
            text += tiny_tokenizer().token_bytes(token_id).decode()
        elif not text.endswith("|"):
            text += "|"
    return text


def test_roles_and_control_tokens_are_the_templates():
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "And now?"},
    ]
    assert said(talk) == "|Be brief.|Hello there|Yes|And now?|"


def test_a_message_that_says_what_the_template_writes_is_still_a_message():
    assert said([{"role": "user", "content": "assistant\nuser\nsystem\n"}]) == (
        "|assistant\nuser\nsystem\n|"
    )


def test_results_of_tools_have_their_frame():
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "tool", "content": "42", "tool_call_id": "call000000"},
    ]
    assert said(talk).startswith("|Hi|Yes|42")


def test_without_a_template_only_control_tokens_are_known():
    scaffold = Scaffold(lambda *_: None, tiny_tokenizer())
    ids = tiny_tokenizer().encode("<|im_start|>user\nHi<|im_end|>")
    marks = scaffold.marks(ids).tolist()
    assert marks == [True, *[False] * (len(ids) - 2), True]
