"""The scaffold: which tokens of a prompt the template wrote, and which are what somebody said.

Learned from the template itself: conversations of stand-ins are rendered, and what stands between a
control token and the next stand-in or control token is what the template writes there. Control
tokens belong to it too. A text that the template puts anywhere else counts as said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions, TokenIds

STAND_IN = "stand-in 7"  # no template writes that
MAX_TEXT_BYTES = 4096  # after one control token
_TALKS: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "tool"),
)


class Scaffold:
    """What a template writes after each control token."""

    def __init__(
        self,
        render: Callable[[Sequence[Message], TemplateOptions], str | None],
        vocabulary: Tokenizer,
    ) -> None:
        self._vocabulary = vocabulary
        texts: dict[int, set[bytes]] = {}
        for roles in _TALKS:
            talk: list[Message] = [_message(role) for role in roles]
            rendered = render(talk, TemplateOptions())
            for token_id, text in _followers(rendered or "", vocabulary):
                texts.setdefault(token_id, set()).add(text)
        self._texts = {  # the longest first
            token_id: sorted(found, key=len, reverse=True) for token_id, found in texts.items()
        }

    def marks(self, ids: TokenIds) -> NDArray[np.bool_]:
        """Whether the template wrote each of these tokens, shape `[tokens]`."""
        kinds, kind_of = np.unique(ids, return_inverse=True)
        is_control = np.array([self._vocabulary.is_control(kind) for kind in kinds.tolist()], bool)
        marks: NDArray[np.bool_] = is_control[kind_of]
        for index in np.flatnonzero(marks).tolist():
            length = self._written_after(ids, index)
            marks[index + 1 : index + 1 + length] = True
        return marks

    def _written_after(self, ids: TokenIds, index: int) -> int:
        """How many of the tokens after a control token the template wrote with it."""
        texts = self._texts.get(int(ids[index]), [])
        if not texts:
            return 0
        ahead, ends = b"", []
        for token_id in ids[index + 1 : index + 1 + len(texts[0])].tolist():
            if self._vocabulary.is_control(token_id):
                break
            ahead += self._vocabulary.token_bytes(token_id)
            ends.append(len(ahead))
        text = next((text for text in texts if ahead.startswith(text)), b"")
        return sum(end <= len(text) for end in ends)


def _message(role: str) -> Message:
    message: Message = {"role": role, "content": STAND_IN}
    return {**message, "tool_call_id": "call000000"} if role == "tool" else message


def _followers(text: str, vocabulary: Tokenizer) -> Iterator[tuple[int, bytes]]:
    """What follows each control token, up to the next one or to what somebody said."""
    controls = [*vocabulary.find_controls(text), (len(text), len(text), -1)]
    for (_, end, token_id), (following, _, _) in pairwise(controls):
        written = text[end:following].partition(STAND_IN)[0].encode()
        if written and len(written) <= MAX_TEXT_BYTES:
            yield token_id, written
