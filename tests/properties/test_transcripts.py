"""Prompts that are rendered from a late message on read as if all of it had been rendered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_router.template.chat_template import ChatTemplate
from slime_router.template.suffix import Question
from slime_router.template.transcript import Transcripts
from slime_router.types import Message, TemplateOptions
from tests.families.catalogue import families
from tests.families.checkpoints import Family
from tests.needs import skip_without
from tests.properties.test_suffixes import ASKS, CITIES, RESULTS, TOOLS, call

skip_without("tokenizers")
pytestmark = [pytest.mark.tokenizers, pytest.mark.slow]

THOUGHTS = st.sampled_from(["", "", "<think>\nWell.\n</think>\n\n", "<think>\n\n</think>\n\n"])
OPTIONS = TemplateOptions(tools=TOOLS)
DATE = datetime(2026, 5, 4)


@st.composite
def rounds(draw: st.DrawFn) -> list[list[Message]]:
    """What a client adds to its messages, turn after turn: a reply, and what it says to it."""
    said: list[list[Message]] = []
    kind = draw(st.sampled_from(["talk", "tools", "both"]))
    for number in range(draw(st.integers(4, 28))):
        is_call = kind == "tools" or (kind == "both" and draw(st.booleans()))
        if is_call and draw(st.integers(0, 9)):
            made = call(number, draw(CITIES))
            reply: Message = {"role": "assistant", "content": "", "tool_calls": [made]}
            if not draw(st.integers(0, 3)):
                reply["reasoning_content"] = "I look it up."
            result = {"role": "tool", "content": draw(RESULTS), "tool_call_id": made["id"]}
            said.append([reply, result])
            continue
        text = draw(THOUGHTS) + draw(st.sampled_from(["It is fine.", "Yes.", "5"]))
        said.append(
            [
                {"role": "assistant", "content": text},
                {"role": "user", "content": draw(ASKS | st.just(""))},
            ]
        )
    return said


def requests(
    said: Sequence[list[Message]], branches: Sequence[int]
) -> Iterator[tuple[list[Message], int]]:
    """The messages of each request, and how many of them the turn before it had answered."""
    messages: list[Message] = [{"role": "system", "content": "Be short."}] if len(said) % 2 else []
    messages.append({"role": "user", "content": "Hi there"})
    yield messages, 0
    for number, new in enumerate(said):
        answered = len(messages)
        if number in branches:  # another client goes on from the same reply in another way
            yield [*messages, new[0], {"role": "user", "content": "Stop."}], answered
        messages = [*messages, *new]
        yield messages, answered


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_transcript_reads_as_the_whole(family: Family) -> None:
    template = family.chat_template()

    @settings(max_examples=4, suppress_health_check=list(HealthCheck))
    @given(rounds(), st.lists(st.integers(0, 25), max_size=3), st.sampled_from([2**26, 30_000]))
    def check(said: list[list[Message]], branches: list[int], max_kept_len: int) -> None:
        transcripts, sent = _of(template, max_kept_len), dict[str, str]()
        for messages, answered in requests(said, branches):
            asked = Question(messages, len(messages), OPTIONS, DATE)
            text = template.try_render(messages, OPTIONS, DATE)
            made = transcripts.continued(asked, f"turn {answered}")
            if made is not None:
                assert made.text == text
            elif text is not None:
                made = transcripts.of_whole(asked, text, f"turn {answered}", answered)
            if made is not None and made.same_len:
                assert made.text[: made.same_len] == sent[f"turn {answered}"][: made.same_len]
            if made is not None and messages[-1]["content"] != "Stop.":
                transcripts.note(f"turn {len(messages)}", made)
                sent[f"turn {len(messages)}"] = made.text

    check()


def _of(template: ChatTemplate, max_kept_len: int) -> Transcripts:
    made = template.transcripts()
    made._max_kept_len = max_kept_len
    return made
