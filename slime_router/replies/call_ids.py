"""Ids of tool calls: the model's own where it writes any, else made here.

A random id belongs to one call of one turn. What a model writes does not: Kimi counts the calls of
a conversation, so all samples of a prompt have the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from slime_router.types import Message

NewCallId = Callable[[], str]

KIMI_IDS = {"kimi_k2": "functions.{name}:{number}", "kimi_k3": "{name}:{number}"}
_KIMI_ID = re.compile(r"<\|tool_call_begin\|>\s*([^\s<|]+:\d+)\s*<\|tool_call_argument_begin\|>")


class CallIds(Protocol):
    """Names the calls of one reply, each once, in order."""

    def make(self, name: str, index: int, written: str, /) -> tuple[str, bool]:
        """The id of a call, and whether it is random; `written` is what has been read so far."""


class RandomIds:
    """Ids of formats that have none."""

    def __init__(self, new_id: NewCallId) -> None:
        self._new_id = new_id

    def make(self, _name: str, _index: int, _written: str, /) -> tuple[str, bool]:
        """See `CallIds`."""
        return self._new_id(), True


class KimiIds:
    """The ids that Kimi wrote; the next number where it wrote none, or one of this reply again."""

    def __init__(self, spelled: str, before: int) -> None:
        self._spelled = spelled
        self._before = before  # calls of the conversation
        self._taken: set[str] = set()

    def make(self, name: str, index: int, written: str, /) -> tuple[str, bool]:
        """See `CallIds`."""
        sampled = _KIMI_ID.findall(written)
        call_id, number = sampled[-1] if sampled else "", self._before + index
        while not call_id or call_id in self._taken:
            call_id, number = self._spelled.format(name=name, number=number), number + 1
        self._taken.add(call_id)
        return call_id, False


def call_ids(form: str, new_id: NewCallId, history: Sequence[Message]) -> CallIds:
    """The ids of a reply in this format, after `history`."""
    if form not in KIMI_IDS:
        return RandomIds(new_id)
    before = sum(len(message.get("tool_calls") or ()) for message in history)
    return KimiIds(KIMI_IDS[form], before)
