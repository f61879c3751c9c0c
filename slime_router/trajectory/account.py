"""The account of a turn: when, where and for whom it was sampled, and the words around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from slime_router.json_text import cut_to_size
from slime_router.types import Message
from slime_router.values import replace, value

_FIXED_BYTES = 200  # of an account without its texts: numbers, and names that others share


@value(frozen=True, slots=True, kw_only=True)
class Account:
    """How one turn came about. Times are seconds, `started` is Unix time.

    `words` are the messages that came after those of its base (all of them where it continues no
    turn by its messages) and its reply, as JSON; None where they are not kept.
    """

    started: float
    duration_s: float  # until the whole reply was here
    queued_s: float = 0.0  # until it had a slot
    prompt_s: float = 0.0  # to make the prompt
    first_token_s: float | None = None  # from the start
    workers: tuple[str, ...] = ()  # URLs, in the order in which they sampled
    door: str = ""  # the path that it was asked at
    key: str = ""  # the name of the API key
    request_id: str = ""  # of the HTTP request
    rid: str = ""  # as the client knows it
    adapter: str = ""  # that sampled it; "": the model itself
    words: bytes | None = None
    goes_on: bool = False  # its words come after those of its base

    @property
    def size(self) -> int:
        """The bytes that it takes, about."""
        return _FIXED_BYTES + len(self.request_id) + len(self.rid) + len(self.words or b"")

    def without_words(self) -> Account:
        """The same with nothing that anybody said."""
        return replace(self, words=None)

    def said(self) -> tuple[list[Message], Message | None]:
        """The turn's own messages, and its reply; empty and None if words are not kept."""
        if self.words is None:
            return [], None
        known: dict[str, Any] = json.loads(self.words)
        return known["messages"], known["reply"]


def packed_words(messages: Sequence[Message], reply: Message) -> bytes:
    """Messages and reply as `Account.words`."""
    words = {"messages": messages, "reply": reply}
    try:
        return cut_to_size(orjson.dumps(words))
    except TypeError:  # halves of emojis, or deeper than orjson writes
        return json.dumps(words, separators=(",", ":")).encode()
