"""Links of conversations that were worked out lately: most of a request's messages came before.

A link is a digest of all text up to it. Comparing a message with the one that followed last time
costs a tenth of that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from slime_router.template.conversation_key import Key
from slime_router.types import Message

MAX_KEPT_LEN = 2**26  # bytes of text, and of what keeps it
_ENTRY_LEN = 700  # bytes beside the text
_WIDEST = 4  # bytes of a character, at most
_TEXTS = frozenset((str,))


class Link(NamedTuple):
    """Where a conversation is after a message."""

    key: Key
    spelling: Key


Next = Callable[[Link, Message], Link]


class KnownLinks:
    """Remembers, for each link, the message that followed last, and what it led to.

    `work_out` is a function of its arguments alone; the message is text under each of its names.
    """

    def __init__(self, work_out: Next, max_kept_len: int = MAX_KEPT_LEN) -> None:
        self._work_out = work_out
        self._max_kept_len = max_kept_len
        self._kept: OrderedDict[Link, tuple[Message, Link, int]] = OrderedDict()
        self._kept_len = 0

    def __repr__(self) -> str:
        return f"<KnownLinks {len(self._kept)} links, {self._kept_len} bytes>"

    def __call__(self, link: Link, message: Message) -> Link:
        """The link after `message`."""
        known = self._kept.get(link)
        if known is not None and known[0] == message:
            self._kept.move_to_end(link)
            return known[1]
        following = self._work_out(link, message)
        if _TEXTS.issuperset(map(type, message.values())):  # where equal means the same
            self._keep(link, message, following)
        return following

    def _keep(self, link: Link, message: Message, following: Link) -> None:
        size = _ENTRY_LEN + _WIDEST * sum(map(len, message.values()))
        if size > self._max_kept_len:
            return
        if (old := self._kept.pop(link, None)) is not None:
            self._kept_len -= old[2]
        self._kept[link] = (message, following, size)
        self._kept_len += size
        while self._kept_len > self._max_kept_len:
            self._kept_len -= self._kept.popitem(last=False)[1][2]
