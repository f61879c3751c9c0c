"""What formats without a Jinja template put after a held turn: every later message, in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.template.chat_template import ChatTemplate
from slime_router.types import Message, TemplateOptions
from tests.checkpoints import (
    build_deepseek_checkpoint,
    build_glm_checkpoint,
    build_tekken_checkpoint,
)

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
ONE, TWO = "abcdefghi", "jklmnopqr"
ASK: Message = {"role": "user", "content": "Hi"}
ANSWER: Message = {"role": "assistant", "content": "Hello!", "reasoning_content": "hm"}
MORE: Message = {"role": "user", "content": "FIRST-77"}


def call(*ids: str) -> Message:
    function = {"name": "get_weather", "arguments": {"city": "Köln"}}
    calls = [{"id": each, "type": "function", "function": function} for each in ids]
    return {"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": "hm"}


def result(call_id: str, text: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


TALKS: dict[str, tuple[list[Message], int]] = {
    "chat": ([ASK, ANSWER, MORE], 1),
    "a call": ([ASK, call(ONE), result(ONE, "FIRST-77")], 1),
    "a call and a question": ([ASK, call(ONE), result(ONE, "FIRST-77"), MORE], 1),
    "two calls": ([ASK, call(ONE, TWO), result(ONE, "FIRST-77"), result(TWO, "SECOND")], 1),
    "two loops": ([ASK, call(ONE), result(ONE, "a"), call(TWO), result(TWO, "FIRST-77")], 3),
    "after a loop": ([ASK, call(ONE), result(ONE, "a"), ANSWER, MORE], 3),
}


def v4(directory: Path) -> Path:
    return build_deepseek_checkpoint(directory, "DeepseekV4ForCausalLM", "deepseek_v4")


def tekken(version: str) -> Callable[[Path], Path]:
    return lambda directory: build_tekken_checkpoint(directory, "tekken_240911.json", version)


FORMATS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "deepseek v3.2": (build_deepseek_checkpoint, {}),
    "deepseek v3.2, thinking": (build_deepseek_checkpoint, {"thinking": True}),
    "deepseek v4": (v4, {}),
    "deepseek v4, thinking": (v4, {"thinking": True}),
    "glm": (build_glm_checkpoint, {}),
    "tekken v7": (tekken("v7"), {}),
    "tekken v11": (tekken("v11"), {}),
    "tekken v13": (tekken("v13"), {}),
}
# These move the tools to the last question: they do not append after a user message.
MOVES_TOOLS = {"tekken v7", "tekken v11"}


@pytest.mark.parsers
@pytest.mark.parametrize("form", FORMATS)
def test_every_later_message_is_in_the_suffix(form, tmp_path):
    build, kwargs = FORMATS[form]
    named = "glm-5.3" if form == "glm" else None
    tokenizer = load_tokenizer(str(build(tmp_path)), chat_template=named)
    template, end = ChatTemplate(tokenizer), min(tokenizer.eos_ids)
    options = TemplateOptions(tools=(TOOL,), kwargs=kwargs)
    for name, (messages, index) in TALKS.items():
        suffix = template.suffix(messages, index, options, sampled=[end])
        asks_again = messages[-1]["role"] == "user"
        if form in MOVES_TOOLS and asks_again:
            assert suffix is None, name
            continue
        assert suffix is not None, name
        later = [str(message["content"]) for message in messages[index + 1 :]]
        places = [suffix.text.find(text) for text in later]
        assert -1 not in places, (name, suffix.text)
        assert template.render(messages, options).endswith(suffix.text), name
