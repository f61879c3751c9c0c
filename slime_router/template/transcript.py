"""The text of a whole conversation, of which only what is new is rendered.

    render(messages) == settled + what render([*head, *messages[start:]]) has after its head

The head is the first user's turn and what comes before it. The right side is used only where all of
this holds; otherwise everything is rendered:

* both sides were seen to be equal for this conversation, and again whenever it has doubled;
* what is settled stood in the prompt before as well: it stays as the conversation goes on;
* whatever came since is of a kind that came after the settled text before, in the same order: all
  that a template may branch on when it looks ahead (a user's next turn takes the thinking from the
  replies before it);
* the messages before `start`, the tools, the arguments and the date are those of that time, letter
  by letter: the keys by which conversations are recognized leave out what a template may print.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise, repeat
from operator import is_
from sys import getsizeof

import orjson

from slime_router.template.layout import has_word, reach
from slime_router.template.stand_ins import View, head_len
from slime_router.template.suffix import Question, Render, later_start
from slime_router.types import Message, TemplateOptions
from slime_router.values import replace

MAX_KEPT_LEN = 2**26  # bytes of texts and of messages
SHIFT_LEN = 14  # messages in view from which a later start is tried
KEPT_LEN = 6  # messages that stay in view, at least: replies are printed as they are
LEAST_LEN = SHIFT_LEN - 4  # messages; shorter conversations are rendered quickly
_SHARE = 3  # of its text's size that a transcript counts: its messages are kept, too


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a prompt was rendered from, and from where on the next one has to be rendered.

    Attributes:
        text: the whole prompt.
        messages: all of them.
        circumstances: what else it was rendered with.
        start: the message from which the rest is rendered; 0: nothing is settled.
        settled_len: how much of the text is from before that.
        head: what a rendering from there begins with, in place of it.
        pairs: which kinds of messages followed which after that.
        proved_len: how many messages there were when all of them were rendered.
    """

    text: str
    messages: Sequence[Message]
    circumstances: bytes
    start: int = 0
    settled_len: int = 0
    head: str = ""
    pairs: frozenset[int] = frozenset()
    proved_len: int = 0


class Transcripts:
    """The transcripts of the prompts that were made last, by the turns that answer them.

    `render` returns None where the template does not take the messages as they are; `literals` are
    the words that it looks for. Those are None where nobody knows what it looks for, or where it is
    other messages: then nothing is kept.
    """

    def __init__(
        self, render: Render, literals: Sequence[str] | None, max_kept_len: int = MAX_KEPT_LEN
    ) -> None:
        self._render = render
        self._is_known = literals is not None
        self._literals = literals or ()
        self._max_kept_len = max_kept_len
        self._kept: OrderedDict[str, Transcript] = OrderedDict()
        self._kept_len = 0

    def __repr__(self) -> str:
        return f"<Transcripts of {len(self._kept)} turns, {self._kept_len} bytes>"

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, turn_id: str, transcript: Transcript) -> None:
        """Keep the transcript of the prompt that this turn answers, in place of the oldest ones."""
        if (old := self._kept.pop(turn_id, None)) is not None:
            self._kept_len -= _size(old)
        self._kept[turn_id] = transcript
        self._kept_len += _size(transcript)
        while self._kept_len > self._max_kept_len:
            self._kept_len -= _size(self._kept.popitem(last=False)[1])

    def continued(self, question: Question, turn_id: str | None) -> Transcript | None:
        """The transcript of messages that continue those of this turn; None: render all of them.

        `question.index` is where the reply to come will be, after all messages.
        """
        known = self._kept.get(turn_id or "")
        if known is None or not self._covers(known, question):
            return None
        near = self._near(question, known.start)
        if near is None or not near.startswith(known.head):
            return None
        text = known.text[: known.settled_len] + near[len(known.head) :]
        made = replace(known, text=text, messages=question.messages)
        if question.size - known.start + head_len(question.messages) < SHIFT_LEN:
            return made
        return self._settled(made, question, known) or made

    def of_whole(
        self, question: Question, text: str, turn_id: str | None, answered: int
    ) -> Transcript | None:
        """The transcript of messages that were rendered whole, as `text`.

        They continue those of the turn, which answered the first so many of them. None where it
        would be of no use.
        """
        circumstances = _circumstances(question)
        if not self._is_known or circumstances is None or question.size < LEAST_LEN:
            return None
        made = Transcript(text, question.messages, circumstances, proved_len=question.size)
        if turn_id is None or question.size < SHIFT_LEN:
            return made
        before = self._before(made, question, turn_id, answered)
        settled = None if before is None else self._settled(made, question, before)
        if before is None or settled is None:
            return made
        self.note(turn_id, replace(settled, text=before.text, messages=before.messages))
        return settled

    def _before(
        self, made: Transcript, question: Question, turn_id: str, answered: int
    ) -> Transcript | None:
        """The transcript of the messages that the turn answered, which these continue."""
        known = self._kept.get(turn_id)
        messages = question.messages[:answered]
        if (
            known is not None
            and known.circumstances == made.circumstances
            and len(known.messages) == answered
            and _are_all_same(messages, known.messages)
        ):
            return known
        text = self._render(messages, question.options, question.date)
        if text is None:
            return None
        before = replace(made, text=text, messages=messages)
        self.note(turn_id, before)
        return before

    def _settled(
        self, made: Transcript, question: Question, before: Transcript
    ) -> Transcript | None:
        """The transcript with as much settled as can be; None where that is nothing."""
        start = later_start(question, question.index - KEPT_LEN)
        near = self._near(question, start) if start else None
        if near is None:
            return None
        head = near[: reach(near, question.messages[: head_len(question.messages)])]
        settled_len = len(made.text) - (len(near) - len(head))
        if settled_len <= 0 or not made.text.endswith(near[len(head) :]):
            return None
        if not before.text.startswith(made.text[:settled_len]):
            return None
        return replace(
            made,
            start=start,
            settled_len=settled_len,
            head=head,
            pairs=self._pairs(question.messages[start:]),
        )

    def _covers(self, known: Transcript, question: Question) -> bool:
        messages, start = question.messages, known.start
        return (
            0 < start < len(messages)
            and len(messages) < 2 * known.proved_len
            and self._pairs(messages[start:]) <= known.pairs
            and known.circumstances == _circumstances(question)
            and _are_all_same(messages[:start], known.messages)
        )

    def _near(self, question: Question, start: int) -> str | None:
        near = View.of(question.messages, question.index, start)
        return self._render(near.messages, question.options, question.date)

    def _pairs(self, messages: Sequence[Message]) -> frozenset[int]:
        kinds = [_kind(message, self._literals) for message in messages]
        return frozenset(hash(pair) for pair in pairwise(kinds))


def _kind(message: Message, literals: Sequence[str]) -> tuple[object, ...]:
    """All that a template may branch on, of replies as of other messages."""
    said = [name for name, value in message.items() if value]
    texts = [value for value in message.values() if type(value) is str]
    found = [literal for literal in literals if any(map(has_word, texts, repeat(literal)))]
    calls = len(message.get("tool_calls") or ())
    return str(message["role"]).lower(), min(calls, 2), frozenset(said), *found


def _are_all_same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    return all(map(is_, some, others)) or all(map(_are_same, some, others))


def _are_same(one: Message, other: Message) -> bool:
    """Whether no template can tell them apart: 1 is not true, and keys have an order."""
    if one is other:
        return True
    if one != other:
        return False
    if all(type(value) is str for value in one.values()):
        return tuple(one) == tuple(other)
    written = _written(one)
    return written is not None and written == _written(other)


def _circumstances(question: Question) -> bytes | None:
    """What else than the messages makes a prompt; None if that cannot be written down."""
    options: TemplateOptions = question.options
    date: datetime | None = question.date
    return _written(
        [
            options.tools,
            options.add_generation_prompt,
            options.continue_final_message,
            options.kwargs,
            date and date.isoformat(),
        ]
    )


def _written(value: object) -> bytes | None:
    try:
        return orjson.dumps(value)
    except TypeError:  # half a surrogate pair, say
        return None


def _size(transcript: Transcript) -> int:
    return _SHARE * getsizeof(transcript.text)
