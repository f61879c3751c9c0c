"""Suffixes of all families: a windowed rendering says what the whole one says, turn after turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_router.template.chat_template import ChatTemplate
from slime_router.template.layout import Layout
from slime_router.types import Message, TemplateOptions
from tests.families.catalogue import families, family
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


Exchange = tuple[Message, list[Message]]


@st.composite
def exchanges(draw: st.DrawFn) -> list[Exchange]:
    """Replies, each with what a client says to it; some conversations have one kind for long."""
    said: list[Exchange] = []
    longest = draw(st.sampled_from([1, 8]))
    for _ in range(draw(st.integers(1, 24 // longest))):
        has_calls = draw(st.booleans())
        for _ in range(draw(st.integers(1, longest))):
            said.append(draw(exchange(len(said), has_calls=has_calls)))
    return said


@st.composite
def exchange(draw: st.DrawFn, number: int, *, has_calls: bool) -> Exchange:
    if not has_calls:
        return chat(draw(ASKS | st.just("")))
    return tool_use(number, [draw(CITIES) for _ in range(draw(st.integers(1, 2)))], draw(RESULTS))


def chat(ask: str = "thanks") -> Exchange:
    return {"role": "assistant", "content": "It is fine."}, [{"role": "user", "content": ask}]


def tool_use(number: int, cities: list[str], result: str = "sunny") -> Exchange:
    made = [call(10 * number + each, city) for each, city in enumerate(cities)]
    results: list[Message] = [
        {"role": "tool", "content": result, "tool_call_id": each["id"]} for each in made
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}, results


def turns(
    template: ChatTemplate, said: Sequence[Exchange], options: TemplateOptions
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
    def check(said: list[Exchange]) -> None:
        is_same_each_turn(template, said, options)

    check()


def is_same_each_turn(
    template: ChatTemplate, said: Sequence[Exchange], options: TemplateOptions
) -> None:
    for messages, index, layout in turns(template, said, options):
        near = template.suffix(messages, index, options, sampled=(), layout=layout)
        whole = template.suffix(messages, index, options, sampled=(), layout=None)
        assert near == whole
        true = template.try_render(messages, options)
        if whole is not None and true is not None:
            assert true.endswith(whole.text)


STICKY = ("deepseekv3", "deepseek_r1_distill", "built-in deepseek_v3")
KINDS = ("pppcpcp", "pppppcpppccc", "ccccccccccpppppppppppc", "pcpcpcpcpcpcpcpcpcpc")


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("name", STICKY)
def test_what_is_said_once_is_said_once_when_it_is_out_of_view(name: str, kinds: str) -> None:
    """Their templates print the first result of a tool in another way than all that follow."""
    said = [tool_use(n, ["Paris"]) if kind == "c" else chat() for n, kind in enumerate(kinds)]
    is_same_each_turn(family(name).chat_template(), said, TemplateOptions(tools=TOOLS))


@pytest.mark.parametrize("name", STICKY)
def test_an_agents_turns_are_rendered_from_late_messages_on_all_the_same(name: str) -> None:
    template = family(name).chat_template()
    said = [tool_use(number, ["Paris"]) for number in range(60)]
    options = TemplateOptions(tools=TOOLS)
    near = [
        template.suffix(messages, index, options, sampled=(), layout=layout, is_near=True)
        for messages, index, layout in turns(template, said, options)
    ]
    assert len(near) - near.count(None) > 50
