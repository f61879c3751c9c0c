"""The seam between a held turn and what follows it, found by token ids.

A model ends its turn with whichever token it chooses, if it ends it at all. The template closes the
same turn in its own way. Exactly one of the two must be in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Protocol

from slime_router.values import value

Control = tuple[int, int, int]  # start, end, id


class Controls(Protocol):
    """The tokenizer as the seam uses it."""

    eos_ids: frozenset[int]

    def find_added(self, text: str) -> Iterator[Control]:
        """All added tokens in `text`, left to right, as the tokenizer finds them."""


@value(frozen=True, slots=True)
class TurnEnds:
    """The tokens at which turns end: those that close one, or the headers that may come next."""

    closers: frozenset[int] = frozenset()
    openers: Mapping[int, str] = field(default_factory=dict)
    closer: str | None = None  # the token after a reply when a user's turn follows
    closing: str = ""  # from the reply's text to the end of `closer`, where words are between them


@value(frozen=True, slots=True)
class Sampled:
    """What is looked at of a held reply: its last token, and all its text if it was cut.

    Control tokens are written out in the text.
    """

    last_id: int | None
    text: Callable[[], str] = str


@value(frozen=True, slots=True)
class Cut:
    """Drop `drop` of the last held tokens; the suffix is the text from `start` on."""

    start: int
    drop: int = 0


def leading(text: str, controls: Controls) -> Iterator[Control]:
    """The added tokens with which a text begins, white space between them or not."""
    end = 0
    for control in controls.find_added(text):
        if text[end : control[0]].strip():
            return
        yield control
        end = control[1]


class Seam:
    """Where a text that follows a reply continues after the tokens that the model sampled."""

    def __init__(self, controls: Controls, ends: TurnEnds) -> None:
        self._controls = controls
        self._openers = ends.openers
        self._closers = ends.closers
        self._closing = ends.closing

    def ends_turn(self, token_id: int | None) -> bool:
        """Whether the token ends a turn; a stop token of the client's own does not."""
        return (
            token_id in self._closers
            or token_id in self._openers
            or token_id in self._controls.eos_ids
        )

    def begins_with_token(self, text: str) -> bool:
        """Whether an added token stands first in a text, white space aside."""
        return next(leading(text, self._controls), None) is not None

    def after_text(self, behind: str, sampled: Sampled, own_len: int | None = None) -> Cut:
        """Where `behind`, the text that follows a reply's content, is entered.

        What closes a turn is right at its beginning, apart from white space and what the template
        always closes with; and before `own_len`, where the text of the next message begins.
        """
        last_id = sampled.last_id
        has_words = bool(self._closing) and behind.startswith(self._closing)
        if has_words and not self.ends_turn(last_id):
            return Cut(len(self._closing) - len(self._unsaid(sampled.text())))
        run = [
            control
            for control in leading(behind, self._controls)
            if own_len is None or control[0] < own_len
        ]
        if has_words:
            own = self._controls.find_added(self._closing)
            run += (control for control in own if self.ends_turn(control[2]))
        if not run:
            return Cut(0, self._drop(last_id))
        same = next((control for control in run if control[2] == last_id), None)
        ending = next((control for control in run if self.ends_turn(control[2])), run[0])
        return self._at(behind, same or ending, last_id, own_start=0)

    def after_call(self, behind: str, tail_len: int, sampled: Sampled) -> Cut:
        """The same where the reply's last call continues for `tail_len` characters."""
        last_id, closing = sampled.last_id, self.closing(behind)
        if closing is not None and behind[tail_len : closing[0]].strip():
            closing = None
        if not self.ends_turn(last_id):
            own, end = (tail_len, tail_len) if closing is None else closing[:2]
            return Cut(self._inside_call(behind[:own], behind[:end], sampled.text()))
        if closing is None:
            return Cut(tail_len, self._drop(last_id))
        return self._at(behind, closing, last_id, own_start=closing[0])

    def closing(self, behind: str) -> Control | None:
        """The first token that ends the turn."""
        for control in self._controls.find_added(behind):
            if self.ends_turn(control[2]):
                return control
        return None

    def _inside_call(self, own: str, ended: str, written: str) -> int:
        """Where a turn is closed that was left open: `own` closes its call, `ended` the turn, too.

        After what was sampled of `own`, if more than one token of it was; else at its end, where
        a call stays as it was cut.
        """
        for length in range(min(len(own), len(written)), 0, -1):
            part = written[-length:]
            if own.count(part) == 1 and self._has_more_than_token(part):
                return own.index(part) + length
        rest = self._unsaid(written)
        return len(ended) - len(rest) if rest and ended.endswith(rest) else len(own)

    def _has_more_than_token(self, part: str) -> bool:
        found = next(self._controls.find_added(part), None)
        return found is not None and found[1] - found[0] < len(part)

    def _unsaid(self, written: str) -> str:
        """What the closing words have after `written`, in which some may stand already."""
        at, words = 0, [0]  # where each word ends
        for start, end, _ in self._controls.find_added(self._closing):
            if at < start and end < len(self._closing):
                words.append(end)
            at = end
        rest = self._closing[max(end for end in words if self._closing[:end] in written) :]
        begun = (length for length in range(len(rest), 0, -1) if written.endswith(rest[:length]))
        return rest[next(begun, 0) :]

    def boundary(self, behind: str, index: int) -> int:
        """`index`, or the start of the added token that it would cut."""
        for start, end, _ in self._controls.find_added(behind):
            if start >= index:
                break
            if index < end:
                return start
        return index

    def _at(self, behind: str, control: Control, last_id: int | None, *, own_start: int) -> Cut:
        start, end, token_id = control
        if token_id == last_id:
            return Cut(end)
        if not self.ends_turn(last_id):  # the turn is open: the template closes it
            return Cut(own_start)
        if self._closes(behind, control):
            return Cut(end)  # another end token was sampled; it has closed the turn in its place
        return Cut(start, self._drop(last_id))

    def _drop(self, last_id: int | None) -> int:
        """A header that was sampled gives way to the one that follows."""
        return int(last_id in self._openers)

    def _closes(self, behind: str, control: Control) -> bool:
        """Whether it ends a turn and begins nothing: text that follows would belong to it."""
        _, end, token_id = control
        if token_id in self._closers:
            return True
        if token_id in self._openers or not self.ends_turn(token_id):
            return False
        rest = behind[end:]
        following = next(self._controls.find_added(rest), None)
        return not (rest if following is None else rest[: following[0]]).strip()
