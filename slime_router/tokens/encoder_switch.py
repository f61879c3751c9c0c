"""Which library encodes: `tokenizers`, or a faster one for as long as it makes the same tokens.

    tokenizers --proved on probes--> faster --differs or fails on a request--> tokenizers, for good

A request on which the faster one differs or fails gets the tokens of `tokenizers`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from slime_router.errors import BadRequest, one_line
from slime_router.tokens.encoder import Encoder
from slime_router.tokens.libraries import Library
from slime_router.types import Piece

logger = logging.getLogger(__name__)

CHECK_EVERY = 64  # requests, the first of them included
MAX_CHECKED_LEN = 4_000  # characters of a request: about a millisecond
_STEP = (5**0.5 - 1) / 2  # multiples of it, modulo 1, leave no wide gaps

T = TypeVar("T")


@dataclass(slots=True)
class EncoderCounts:
    """What was compared since the start, in requests."""

    checked: int = 0
    differed: int = 0  # or failed


class EncoderSwitch:
    """Encodes by the reference, or by a faster library that was switched on."""

    def __init__(self, reference: Encoder) -> None:
        self.reference = reference
        self.counts = EncoderCounts()
        self._check_every = CHECK_EVERY
        self._fast: Encoder | None = None
        self._is_over = False  # it has differed once
        self._requests = 0

    def __repr__(self) -> str:
        return f"<EncoderSwitch {'fast' if self.is_fast else 'tokenizers'}, {self.counts}>"

    @property
    def is_fast(self) -> bool:
        """Whether the faster library encodes."""
        return self._fast is not None

    def switch_on(self, library: Library) -> None:
        """Encode by `library`, which was proved to make the same tokens."""
        if not self._is_over:
            self._fast = self.reference.over(library)

    def close(self) -> None:
        """Give the faster library up, which takes tens of megabytes."""
        self._fast, self._is_over = None, True

    def encode(self, work: Callable[[Encoder], T]) -> T:
        """What `work` makes with the encoder in use; with the reference where that one fails.

        Raises:
            BadRequest: the text is not valid Unicode.
        """
        fast = self._fast
        if fast is None:
            return work(self.reference)
        try:
            return work(fast)
        except BadRequest:  # the reference decides that
            return work(self.reference)
        except Exception as exc:  # noqa: BLE001 - whatever it raises, the request must not fail
            self._switch_off(f"it failed: {one_line(exc)}")
            return work(self.reference)

    def is_check_due(self) -> bool:
        """Counts a request, and says whether it is one to be checked."""
        if self._fast is None:
            return False
        self._requests += 1
        return self._requests % self._check_every == 1 or self._check_every == 1

    def encode_checked(self, last_id: int | None, text: str) -> tuple[Piece, ...]:
        """`Encoder.encode_pieces_after`, compared with the reference: a part of a long text.

        Raises:
            BadRequest: the text is not valid Unicode.
        """
        pieces = self.encode(lambda encoder: encoder.encode_pieces_after(last_id, text))
        if self._fast is None:
            return pieces
        start, end = self._part(pieces)
        part = "".join(piece.text for piece in pieces[start:end])
        if len(part) > 2 * MAX_CHECKED_LEN:  # a text without spaces
            return pieces
        before = last_id if start == 0 else None  # any other piece has the same tokens anywhere
        expected = self.reference.encode_pieces_after(before, part)
        self.counts.checked += 1
        if np.array_equal(_ids(expected), _ids(pieces[start:end])):
            return pieces
        self._switch_off(f"its tokens differ in a request, in {len(part)} characters of it")
        return self.reference.encode_pieces_after(last_id, text)

    def _part(self, pieces: Sequence[Piece]) -> tuple[int, int]:
        """The pieces to compare: as many as are short enough, from another place each time."""
        if sum(len(piece.text) for piece in pieces) <= MAX_CHECKED_LEN:
            return 0, len(pieces)
        start = end = int(self.counts.checked * _STEP % 1 * len(pieces))
        length = 0
        while end < len(pieces) and (length < MAX_CHECKED_LEN or end == start):
            length += len(pieces[end].text)
            end += 1
        return start, end

    def _switch_off(self, why: str) -> None:
        self.counts.differed += 1
        if self._fast is not None:
            logger.warning("fastokens is switched off, and tokenizers encodes from now on: %s", why)
        self._fast, self._is_over = None, True


def _ids(pieces: Sequence[Piece]) -> list[int]:
    return [token_id for piece in pieces for token_id in piece.ids.tolist()]
