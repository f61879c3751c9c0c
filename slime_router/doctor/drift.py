"""Drift: where held tokens and the plain tokenization of a conversation diverge, and why.

Both sides are walked from the left:

    held     | common | region | equal | region | ...
    rendered | common | region | equal | region | ...

Where they diverge, the causes that show in the tokens themselves are tried first, since they know
where both sides meet again. Otherwise the nearest such place is searched for, and the two texts up
to there are judged. The cost is linear in the tokens, whatever differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from slime_router.doctor.alignment import Ends, common_len, meeting
from slime_router.doctor.causes import Cause, explain, json_around, of_json, of_texts
from slime_router.doctor.reasoning import reasoning_ends
from slime_router.doctor.token_text import TokenText
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import TokenIds

MAX_REGIONS = 21  # the first difference and 20 more
MERGE_LEN = 4096  # bytes in which the same text must come to the end of a token on both sides
CONTEXT_LEN = 24  # tokens around a region that help to judge it
EXCERPT_LEN = 60  # characters


@dataclass(frozen=True, slots=True)
class Region:
    """Tokens `[start, end)` of each side, where the two differ."""

    held: tuple[int, int]
    rendered: tuple[int, int]
    cause: Cause
    explanation: str


@dataclass(frozen=True, slots=True)
class Glimpse:
    """The first token of one side that differs, and the text from there on."""

    id: int
    token: str
    text_after: str


@dataclass(frozen=True, slots=True)
class Parting:
    """Where the two sides diverge: None stands for a side that has ended."""

    index: int
    text_before: str
    held: Glimpse | None
    rendered: Glimpse | None


@dataclass(frozen=True, slots=True)
class Drift:
    """`held[:common] == rendered[:common]`, and what comes after that."""

    common: int
    held_len: int
    rendered_len: int
    parting: Parting | None = None
    regions: tuple[Region, ...] = ()  # from the left, at most MAX_REGIONS
    has_more: bool = False

    @property
    def is_same(self) -> bool:
        """Whether both sides have the same tokens."""
        return self.parting is None

    @property
    def cause(self) -> Cause:
        """The cause of the first difference: later ones are often its consequence."""
        return self.regions[0].cause if self.regions else Cause.SAME

    @property
    def explanation(self) -> str:
        """One sentence for a person."""
        return self.regions[0].explanation if self.regions else explain(Cause.SAME, "", "")


def compare(
    held: TokenIds,
    rendered: TokenIds,
    tokenizer: Tokenizer,
    *,
    ends_turn: Callable[[int], bool],
) -> Drift:
    """Where and why two lists of token ids differ.

    Args:
        held: int32 `[tokens]`, what was sent and sampled.
        rendered: int32 `[tokens]`, what the text of the same conversation is encoded to.
        tokenizer: knows what the ids stand for.
        ends_turn: whether a token ends a turn, as stop tokens do.
    """
    common = common_len(held, rendered)
    drift = Drift(common, len(held), len(rendered))
    if common == len(held) == len(rendered):
        return drift
    walk = _Walk(TokenText(held, tokenizer), TokenText(rendered, tokenizer), ends_turn)
    found = tuple(islice(walk.regions(common), MAX_REGIONS + 1))
    return Drift(
        common,
        len(held),
        len(rendered),
        Parting(
            common,
            _tail(walk.held.text(common - EXCERPT_LEN, common)),
            _glimpse(walk.held, common),
            _glimpse(walk.rendered, common),
        ),
        found[:MAX_REGIONS],
        has_more=len(found) > MAX_REGIONS,
    )


def _tail(text: str) -> str:
    return text[-EXCERPT_LEN:]


def _glimpse(side: TokenText, index: int) -> Glimpse | None:
    if index == len(side):
        return None
    after = side.text(index, index + EXCERPT_LEN)[:EXCERPT_LEN]
    return Glimpse(int(side.ids[index]), side.text(index, index + 1), after)


class _Walk:
    """Both sides, walked from one difference to the next."""

    def __init__(
        self, held: TokenText, rendered: TokenText, ends_turn: Callable[[int], bool]
    ) -> None:
        self.held = held
        self.rendered = rendered
        self._ends_turn = ends_turn
        # In this order: the most specific first.
        self._signs = (
            self._ended,
            self._doubled_start,
            self._missing_newline,
            self._merged,
            self._reasoning,
            self._stopped,
        )

    def regions(self, common: int) -> Iterator[Region]:
        """The differences from the left; the first `common` tokens are equal."""
        i = j = lead = common
        while i < len(self.held) or j < len(self.rendered):
            cause, (i_end, j_end) = self._look(i, j, lead)
            texts = self.held.text(i, i_end), self.rendered.text(j, j_end)
            yield Region((i, i_end), (j, j_end), cause, explain(cause, *texts))
            lead = common_len(self.held.ids[i_end:], self.rendered.ids[j_end:])
            i, j = i_end + lead, j_end + lead

    def _look(self, i: int, j: int, lead: int) -> tuple[Cause, Ends]:
        for sign in self._signs:
            found = sign(i, j)
            if found is not None:
                return found
        ends = meeting(self.held, i, self.rendered, j)
        return self._judge(i, j, ends, lead), ends

    # Causes that show in the tokens

    def _ended(self, i: int, j: int) -> tuple[Cause, Ends] | None:
        """One side is at its end."""
        ends = len(self.held), len(self.rendered)
        if i < ends[0] and j < ends[1]:
            return None
        rest = self.held.text(i, ends[0]) + self.rendered.text(j, ends[1])
        if i == ends[0] and self._is_end(self.held, i - 1) and rest.startswith("\n"):
            return Cause.END_OF_TURN_NEWLINE, ends
        return (Cause.WHITESPACE if rest.isspace() else Cause.TRUNCATED), ends

    def _doubled_start(self, i: int, j: int) -> tuple[Cause, Ends] | None:
        """The control token that begins the text is there twice."""
        if (i, j) != (1, 1) or not self.held.has_control(0):
            return None
        first = self.held.ids[0]
        if self.held.ids[1] == first:
            return Cause.DOUBLE_BOS, (2, 1)
        return (Cause.DOUBLE_BOS, (1, 2)) if self.rendered.ids[1] == first else None

    def _missing_newline(self, i: int, j: int) -> tuple[Cause, Ends] | None:
        """The template's newline after a stop token is missing on the held side."""
        is_newline = self.rendered.text(j, j + 1) == "\n"
        if not is_newline or not self._is_end(self.held, i - 1):
            return None
        goes_on = j + 1 < len(self.rendered) and self.rendered.ids[j + 1] == self.held.ids[i]
        return (Cause.END_OF_TURN_NEWLINE, (i, j + 1)) if goes_on else None

    def _merged(self, i: int, j: int) -> tuple[Cause, Ends] | None:
        """The same bytes in other tokens, up to where the tokens agree again."""
        held, rendered = self.held, self.rendered
        start, other = held.byte_at(i), rendered.byte_at(j)
        same = _common_bytes(
            held.data[start : start + MERGE_LEN], rendered.data[other : other + MERGE_LEN]
        )
        ends = _ends_within(held, i, same), _ends_within(rendered, j, same)
        for length in np.intersect1d(*ends).tolist():
            i_end = i + 1 + int(np.searchsorted(ends[0], length))
            j_end = j + 1 + int(np.searchsorted(ends[1], length))
            is_over = i_end == len(held) or j_end == len(rendered)
            if is_over or held.ids[i_end] == rendered.ids[j_end]:
                controls = held.controls_in(i, i_end), rendered.controls_in(j, j_end)
                is_control = len(controls[0]) != len(controls[1])
                cause = Cause.SPECIAL_TOKEN_TEXT if is_control else Cause.BPE_REMERGE
                return cause, (i_end, j_end)
        return None

    def _reasoning(self, i: int, j: int) -> tuple[Cause, Ends] | None:
        """Reasoning that only the held side has."""
        ends = reasoning_ends(self.held, i, self.rendered, j)
        return None if ends is None else (Cause.REASONING_STRIPPED, ends)

    def _stopped(self, i: int, j: int) -> tuple[Cause, Ends] | None:
        """Another token ends the turn."""
        if not (self.held.has_control(i) and self.rendered.has_control(j)):
            return None
        ends = self._is_end(self.held, i), self._is_end(self.rendered, j)
        is_last = i + 1 == len(self.held)
        return (Cause.STOP_TOKEN, (i + 1, j + 1)) if all(ends) or (is_last and any(ends)) else None

    def _is_end(self, side: TokenText, index: int) -> bool:
        return index >= 0 and self._ends_turn(int(side.ids[index]))

    # Causes that show in the texts

    def _judge(self, i: int, j: int, ends: Ends, lead: int) -> Cause:
        held, rendered = self.held.text(i, ends[0]), self.rendered.text(j, ends[1])
        if held == rendered:
            return Cause.BPE_REMERGE
        values = _value_around(self.held, i, ends[0]), _value_around(self.rendered, j, ends[1])
        if values[0] is not None and values[1] is not None:
            cause = of_json(*values[0], *values[1])
            if cause is not None:
                return cause
        equal = common_len(self.held.ids[ends[0] :], self.rendered.ids[ends[1] :])
        before = self.held.text(i - min(lead, CONTEXT_LEN), i)
        after = self.held.text(ends[0], ends[0] + min(equal, CONTEXT_LEN))
        return of_texts(before + held + after, before + rendered + after)


def _common_bytes(one: bytes, other: bytes) -> int:
    length = min(len(one), len(other))
    if not length:
        return 0
    differs = np.frombuffer(one, np.uint8, length) != np.frombuffer(other, np.uint8, length)
    return int(differs.argmax()) if differs.any() else length


def _ends_within(side: TokenText, index: int, length: int) -> NDArray[np.int64]:
    """Where tokens end, as byte offsets from the start of token `index`, up to `length`."""
    first = index + 1
    ends: NDArray[np.int64] = side.starts[first : first + MERGE_LEN] - side.starts[index]
    return ends[: int(np.searchsorted(ends, length, side="right"))]


def _value_around(side: TokenText, start: int, end: int) -> tuple[object] | None:
    """The JSON value around tokens `[start, end)`, in a tuple."""
    first, last = side.stretch(start, end)
    before = side.text(first, start)
    region = side.text(start, end)
    text = before + region + side.text(end, last)
    return json_around(text, len(before), len(before) + len(region))
