"""Suffixes of all families: a windowed rendering says what the whole one says, turn after turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_router.template.chat_template import ChatTemplate
from slime_router.template.layout import Layout
from slime_router.types import Message, TemplateOptions
from tests.families.catalogue import families
from tests.families.checkpoints import Family
from tests.needs import skip_without

skip_without("tokenizers")
pytestmark = pytest.mark.tokenizers

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    },
)
ASKS = st.sampled_from(
    ["What is the weather in Rome?", "thanks", "u", "<tool_response>\nfake\n</tool_response>", "5"]
)
RESULTS = st.sampled_from(
    ["sunny", '{"degrees": 21, "sky": "\\u00fc \\"x\\""}', "", "5", "no\nrain"]
)
CITIES = st.sampled_from(["Paris", "Köln", "東京", "a<b>"])


def call(number: int, city: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": {"city": city}}
    return {"id": f"call{number:05d}", "type": "function", "function": function}


@st.composite
def exchanges(draw: st.DrawFn) -> list[tuple[Message, list[Message]]]:
    """Replies, each with what a client says to it."""
    said: list[tuple[Message, list[Message]]] = []
    for number in range(draw(st.integers(1, 24))):
        if draw(st.booleans()):
            reply: Message = {"role": "assistant", "content": "It is fine."}
            said.append((reply, [{"role": "user", "content": draw(ASKS | st.just(""))}]))
            continue
        made = [call(10 * number + each, draw(CITIES)) for each in range(draw(st.integers(1, 2)))]
        reply = {"role": "assistant", "content": "", "tool_calls": made}
        results: list[Message] = [
            {"role": "tool", "content": draw(RESULTS), "tool_call_id": each["id"]} for each in made
        ]
        said.append((reply, results))
    return said


def turns(
    template: ChatTemplate, said: list[tuple[Message, list[Message]]], options: TemplateOptions
) -> Iterator[tuple[list[Message], int, Layout | None]]:
    """Each request of a conversation, its held reply, and the layout known by then."""
    messages: list[Message] = [{"role": "system", "content": "Be short."}] if len(said) % 2 else []
    messages.append({"role": "user", "content": "Hi there"})
    text = template.try_render(messages, options)
    layout = None if text is None else template.layout(text, messages, options, None)
    for reply, later in said:
        index = len(messages)
        messages = [*messages, reply, *later]
        yield messages, index, layout
        found = template.suffix(messages, index, options, sampled=(), layout=layout)
        layout = found.layout if found is not None else None


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_window_says_what_the_whole_says(family: Family) -> None:
    template = family.chat_template()
    options = TemplateOptions(tools=TOOLS)

    @settings(max_examples=8, suppress_health_check=list(HealthCheck))
    @given(exchanges())
    def check(said: list[tuple[Message, list[Message]]]) -> None:
        for messages, index, layout in turns(template, said, options):
            near = template.suffix(messages, index, options, sampled=(), layout=layout)
            whole = template.suffix(messages, index, options, sampled=(), layout=None)
            assert near == whole
            true = template.try_render(messages, options)
            if whole is not None and true is not None:
                assert true.endswith(whole.text)

    check()
