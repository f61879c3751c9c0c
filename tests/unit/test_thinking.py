"""Whether a model thinks before it answers, by its template: grammars wait for that."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_detection import Thinking, thinking_of
from slime_router.replies.sglang_parsers import load_parsers
from tests import chat_templates
from tests.chat_templates import template_text
from tests.tiny import CHATML


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("template", "found"),
    [
        (None, None),
        (CHATML, None),
        ("qwen3", Thinking(default=True, switch="enable_thinking")),
        ("gemma4_v5", Thinking(switch="enable_thinking")),
        ("{{ reasoning_effort }} [THINK]", Thinking(by_effort=True)),
        ("<|channel|>", Thinking(default=True)),
    ],
)
def test_a_template_says_whether_its_model_thinks(template, found):
    text = template_text(template) if template in chat_templates.NAMES else template
    assert thinking_of(text) == found


def test_without_sglang_nothing_is_known_and_nothing_said(monkeypatch, caplog):
    def missing():
        raise ModuleNotFoundError("no module named sglang", name="sglang")

    monkeypatch.setattr("slime_router.replies.sglang_detection._load_rules", missing)
    assert thinking_of(CHATML) is None
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (ModuleNotFoundError("no module named 'regex'", name="regex"), "no module named 'regex'"),
        (ImportError("cannot import\nname"), "cannot import name"),
        (RecursionError("too deep"), "too deep"),
    ],
)
def test_rules_that_fail_are_named_in_one_line(failure, said, monkeypatch, caplog):
    def fails(template):
        raise failure

    rules = SimpleNamespace(detect_reasoning_pattern=fails)
    monkeypatch.setattr("slime_router.replies.sglang_detection._load_rules", lambda: rules)
    assert thinking_of(CHATML) is None
    [line] = caplog.messages
    assert line.endswith(f": {said}")


def test_rules_of_another_shape_are_named_in_one_line(monkeypatch, caplog):
    rules = SimpleNamespace(detect_reasoning_pattern=lambda template: (True, SimpleNamespace()))
    monkeypatch.setattr("slime_router.replies.sglang_detection._load_rules", lambda: rules)
    assert thinking_of(CHATML) is None
    [line] = caplog.messages
    assert "special_case" in line


@pytest.mark.parametrize(
    ("mode", "kwargs", "holds"),
    [
        ("always", {}, True),
        ("", {}, False),
        ("thinking", {}, True),
        ("thinking", {"thinking": False}, False),
        ("enable_thinking", {"enable_thinking": None}, True),
        ("explicit_thinking", {}, False),
        ("explicit_thinking", {"thinking": True}, True),
        ("explicit_enable_thinking", {"enable_thinking": 1}, False),
        ("mistral", {}, False),
        ("mistral", {"reasoning_effort": "high"}, True),
        ("mistral", {"reasoning_effort": "none"}, False),
    ],
)
def test_a_format_says_it_where_the_template_does_not(mode, kwargs, holds):
    assert Thinking.of_mode(mode).holds(kwargs) is holds


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("name", "tail", "written", "thinks"),
    [
        ("qwen3", "", "", True),
        ("qwen3", "<think>\n", "", True),
        ("qwen3", "<think>\n\n</think>\n\n", "", False),
        ("qwen3", "", "It is", False),
        ("qwen3", "", "<think>\nBut", True),
        ("qwen3", "", "<think>\nBut</think>So", False),
        ("minimax-m3", "", "", False),
        ("minimax-m3", "<mm:think>", "", True),
        ("hunyuan", "", "", False),
        ("gpt-oss", "", "", False),
    ],
)
def test_the_prompt_says_it_before_either(name, tail, written, thinks):
    parsers = ReplyParsers(load_parsers, tools=None, reasoning=name)
    assert parsers.thinks_first({}, prompt_tail=tail, written=written) is thinks


@pytest.mark.parsers
def test_a_model_that_is_only_taken_for_r1_is_not_waited_for():
    """A grammar would wait forever."""
    for presumes, tail, thinks in ((True, "", True), (False, "", False), (False, "<think>", True)):
        parsers = ReplyParsers(
            load_parsers, tools=None, reasoning="deepseek-r1", presumes_thinking=presumes
        )
        assert parsers.thinks_first({}, prompt_tail=tail, written="") is thinks


@pytest.mark.slow
@pytest.mark.parsers
def test_it_is_known_before_any_parser_is_loaded():
    code = (
        "from slime_router.replies.sglang_detection import thinking_of\n"
        "print(thinking_of('{{ reasoning_effort }} [THINK]'))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout == f"{Thinking(by_effort=True)}\n"
