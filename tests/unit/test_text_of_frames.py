"""Replies in frames: text without its frame, and the ends of messages."""

from __future__ import annotations

import pytest

from tests.unit.test_parse import CUTS, parser_of, read

pytestmark = pytest.mark.parsers

CALL = '[\n{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {}}\n]'
ACTION = f"<|START_ACTION|>{CALL}<|END_ACTION|>"


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("\n\nBonjour à tous.", "Bonjour à tous.", []),
        ("<|START_TEXT|>Bonjour.<|END_TEXT|>", "Bonjour.", []),
        ("<|START_TEXT|>Bonjour.<|END_TEXT|>\nEncore.", "Bonjour.\nEncore.", []),
        ("<|START_TEXT|>Bonjour.<|END_TEXT|>" + ACTION, "Bonjour.", ["get_weather"]),
        ("Je regarde. " + ACTION, "Je regarde.", ["get_weather"]),
        (ACTION, "", ["get_weather"]),
    ],
)
def test_coheres_text_without_a_mark_is_content(text, content, names, cut, streams):
    """SGLang takes no text that no mark begins, and none after the end of one."""
    for begin in ("", "<|START_THINKING|>"):
        parser = parser_of("cohere_command4", "cohere_command4", streams_reasoning=streams)
        reply = read(parser, f"{begin}Hm, a < b?<|END_THINKING|>{text}", cut)
        assert reply.reasoning == "Hm, a < b?"
        assert (reply.content.strip(), reply.names) == (content, names)


@pytest.mark.parametrize("after", ["One", "<|eom|>", "Two"])
def test_the_end_of_a_message_is_never_content(after):
    """It was, if it came with more text."""
    text = " to=self<|message|>Hm.<|eom|>One<|eom|>Two"
    at = text.rindex(after) + len(after)
    parser = parser_of("muse", "muse")
    deltas = parser.push(text[:at], is_last=False), parser.push(text[at:], is_last=True)
    assert "".join(delta.reasoning for delta in deltas) == "Hm."
    assert "".join(delta.content for delta in deltas) == "OneTwo"
