"""The reader of calls that each format needs, around the one that asks SGLang's detector."""

from __future__ import annotations

from slime_router.replies.calls import mistral_ids
from slime_router.replies.calls.mistral_ids import MistralCalls
from slime_router.replies.calls.nothing_lost import NothingLost
from slime_router.replies.calls.tagged_values import TAGS, TaggedCalls
from slime_router.replies.tool_calls import CallReader


def reader_of(name: str, reader: CallReader) -> NothingLost:
    """The reader of one reply, in the format that SGLang calls `name`."""
    if name == mistral_ids.NAME:
        return NothingLost(MistralCalls(reader))
    return NothingLost(TaggedCalls(reader, TAGS[name]) if name in TAGS else reader)
