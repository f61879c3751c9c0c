"""The text of a whole conversation, of which only what is new is rendered.

    render(messages) == settled + what render([*first, *messages[start:]]) has after its head

First is a user's first turn and what comes before it. The head is their text, or all up to the
next reply: some templates print what follows a tool's result in another way. The right side is used
only where all of this holds; otherwise everything is rendered:

* both sides were seen to be equal for this conversation, and again whenever it has doubled;
* what is settled stood in the prompt before as well: it stays as the conversation goes on;
* each message since has a kind that came after the settled text before, in the same order: all
  that a template may branch on when it looks ahead (a user's next turn takes the thinking from the
  replies before it). Several beginnings are kept: the longest stays while an agent calls tools,
  a shorter one when the user speaks again;
* the messages before `start`, the tools, the arguments and the date are those of that time, letter
  by letter: the keys by which conversations are recognised leave out what a template may print.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from itertools import repeat, takewhile
from operator import is_
from sys import getsizeof

import orjson

from slime_router.json_text import cut_to_size
from slime_router.template.layout import Mark, has_word, paired
from slime_router.template.stand_ins import View, head_len, is_reply
from slime_router.template.suffix import Question, Render, later_start
from slime_router.types import Message, TemplateOptions
from slime_router.values import replace, value

MAX_KEPT_LEN = 2**26  # bytes of texts and of messages
SHIFT_LEN = 14  # messages in view from which a later start is tried
KEPT_LEN = 6  # messages that stay in view, at least: replies are printed as they are
LEAST_LEN = SHIFT_LEN - 4  # messages; shorter conversations are rendered quickly
STEP = 2  # between the lengths of what stays in view
_SHARE = 3  # of its text's size that a transcript counts: its messages are kept, too


@value(frozen=True, slots=True)
class Settled:
    """A beginning of a prompt that stays, and how what comes after it is rendered.

    Attributes:
        start: the message from which the rest is rendered.
        length: characters that are settled.
        head: what a rendering from there begins with, in place of them.
        pairs: which kinds of messages followed which since, and it stayed.
    """

    start: int
    length: int
    head: Mark
    pairs: frozenset[int] = frozenset()

    def joined(self, text: str, near: str | None) -> str | None:
        """The settled beginning of `text` with the rest of a rendering from `start` on."""
        if near is None or not self.head.fits(near):
            return None
        return text[: self.length] + near[self.head.length :]


@value(frozen=True, slots=True)
class Transcript:
    """What a prompt was rendered from, and from where on the next one has to be rendered.

    Attributes:
        text: the whole prompt.
        messages: all of them.
        circumstances: what else it was rendered with.
        settled: its beginnings that stay; a shorter one stays where more kinds of messages come.
        proved_len: how many messages there were when all of them were rendered.
        is_prompt: the turn was sent this text; of a turn that was not, it was rendered later.
        same_len: so many characters are those that the turn before was sent.
    """

    text: str
    messages: Sequence[Message]
    circumstances: bytes
    settled: tuple[Settled, ...] = ()
    proved_len: int = 0
    is_prompt: bool = True
    same_len: int = 0

    @property
    def start(self) -> int:
        """The message from which the rest is rendered; 0: nothing is settled."""
        return self.settled[-1].start if self.settled else 0

    def after(self, before: Transcript) -> Transcript:
        """The same as the prompt of a turn that continues the one `before`."""
        is_known = before.is_prompt and self.settled
        return replace(self, is_prompt=True, same_len=self.settled[-1].length if is_known else 0)

    def with_settled(self, later: Settled) -> Transcript:
        """The same with a longer beginning settled, in place of those that stay no better."""
        earlier = (each for each in self.settled if not each.pairs <= later.pairs)
        return replace(self, settled=(*earlier, later))


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
        if _size(transcript) > self._max_kept_len:
            return  # all others would have to go, and then it as well
        self._kept[turn_id] = transcript
        self._kept_len += _size(transcript)
        while self._kept_len > self._max_kept_len:
            self._kept_len -= _size(self._kept.popitem(last=False)[1])

    def continued(self, question: Question, turn_id: str | None) -> Transcript | None:
        """The transcript of messages that continue those of this turn; None: render all of them.

        `question.index` is where the reply to come will be, after all messages.
        """
        known = self._kept.get(turn_id or "")
        settled = () if known is None else self._staying(known, question)
        if known is None or not settled:
            return None
        text = settled[-1].joined(known.text, self._near(question, settled[-1].start))
        if text is None:
            return None
        made = replace(known, text=text, messages=question.messages, settled=settled)
        return self._moved(made, question, known).after(known)

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
        if before is None:
            return made
        made = replace(made, settled=self._proved(before, made, question))
        made = self._moved(made, question, before)
        noted = replace(made, text=before.text, messages=before.messages)
        self.note(turn_id, replace(noted, is_prompt=before.is_prompt))
        return made.after(before)

    def _before(
        self, made: Transcript, question: Question, turn_id: str, answered: int
    ) -> Transcript | None:
        """The transcript of the messages that the turn answered, which these continue."""
        known = self._kept.get(turn_id)
        messages = question.messages[:answered]
        if (
            known is not None
            and known.circumstances == made.circumstances
            and len(known.messages) == _same_len(messages, known.messages) == answered
        ):
            return known
        text = self._render(messages, question.options, question.date)
        if text is None:
            return None
        before = replace(made, text=text, messages=messages, is_prompt=False)
        self.note(turn_id, before)
        return before

    def _proved(
        self, before: Transcript, made: Transcript, question: Question
    ) -> tuple[Settled, ...]:
        """The shortest beginning of `before` that stayed, with what came since; () for none."""
        if not before.settled:
            return ()
        first = before.settled[0]
        if not made.text.startswith(before.text[: first.length]):
            return ()
        if first.joined(made.text, self._near(question, first.start)) != made.text:
            return ()
        new = self._pairs(question.messages[len(before.messages) - 1 :])
        return (replace(first, pairs=first.pairs | new),)

    def _moved(self, made: Transcript, question: Question, before: Transcript) -> Transcript:
        """The same with as much settled as can be, where many messages are in view.

        The longest beginning stays before few kinds of messages. Where much more was in view, one
        in between stays before more of them.
        """
        start = made.start
        in_view = question.size - start + (head_len(question.messages) if start else 0)
        kept_len, found = KEPT_LEN, list[Settled]()
        while in_view >= SHIFT_LEN and 2 * kept_len < in_view:
            start = later_start(question, question.index - kept_len)
            pairs = self._pairs(question.messages[start:])
            if start and not (found and pairs <= found[-1].pairs):
                settled = self._settled(made, question, before, start)
                found += [] if settled is None else [replace(settled, pairs=pairs)]
            kept_len *= STEP
        for each in reversed(found):
            made = made.with_settled(each)
        return made

    def _settled(
        self, made: Transcript, question: Question, before: Transcript, start: int
    ) -> Settled | None:
        """The beginning up to a message, or to the next reply; None where neither stays."""
        near = self._near(question, start)
        if near is None:
            return None
        messages = question.messages
        first = messages[: head_len(messages)]
        results = takewhile(lambda each: not is_reply(each), messages[start + 1 :])
        for group in (first, [*first, messages[start], *results]):
            head = Mark.of(near, group)
            length = len(made.text) - len(near) + head.length
            is_same = length > 0 and made.text.endswith(near[head.length :])
            if is_same and before.text.startswith(made.text[:length]):
                return Settled(start, length, head)
        return None

    def _staying(self, known: Transcript, question: Question) -> tuple[Settled, ...]:
        """The beginnings of a transcript that stay before what came since, the longest last."""
        messages = question.messages
        if len(messages) >= 2 * known.proved_len or known.circumstances != _circumstances(question):
            return ()
        same_len = _same_len(messages, known.messages)
        new = self._pairs(messages[max(same_len - 1, 0) :])
        return tuple(each for each in known.settled if each.start < same_len and new <= each.pairs)

    def _near(self, question: Question, start: int) -> str | None:
        near = View.of(question.messages, question.index, start)
        return self._render(near.messages, question.options, question.date)

    def _pairs(self, messages: Sequence[Message]) -> frozenset[int]:
        return paired(_kind(message, self._literals) for message in messages)


def _kind(message: Message, literals: Sequence[str]) -> tuple[object, ...]:
    """All that a template may branch on, of replies as of other messages."""
    said = [name for name, held in message.items() if held]
    texts = [each for each in message.values() if type(each) is str]
    found = [literal for literal in literals if any(map(has_word, texts, repeat(literal)))]
    calls = len(message.get("tool_calls") or ())
    return str(message["role"]).lower(), min(calls, 2), frozenset(said), *found


def _same_len(some: Sequence[Message], others: Sequence[Message]) -> int:
    """How many of the first messages no template can tell apart."""
    if all(map(is_, some, others)):
        return min(len(some), len(others))
    return sum(1 for _ in takewhile(bool, map(_are_same, some, others)))


def _are_same(one: Message, other: Message) -> bool:
    """Whether no template can tell them apart: 1 is not true, and keys have an order."""
    if one is other:
        return True
    if one != other:
        return False
    if all(type(each) is str for each in one.values()):
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
        return cut_to_size(orjson.dumps(value))
    except TypeError:  # half a surrogate pair, say
        return None


def _size(transcript: Transcript) -> int:
    return _SHARE * getsizeof(transcript.text)
