"""The suffix of a held turn: what the template puts after a reply, up to the next generation.

    `render([*before, STAND-IN, *later]) == ... + STAND-IN + behind`

`behind` starts with what is left of the reply's own closing, which the model may have sampled
already; `seam.py` finds where. It is used only if

* the text before each reply is what the turn's own prompt had there (`layout.py`), and
* the text of every later message is in it, except for those that the template prints nowhere.

Otherwise the answer is None and the caller renders everything: never a guess.

Long conversations are not rendered from their beginning each time. What is rendered starts at a
later reply once the same was seen to come out of both; the start moves on as the conversation
grows, so that a turn costs what is new. It is seen for this conversation, for the kinds of messages
that were there, while the same kinds are out of view, and again whenever the conversation has
doubled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from datetime import datetime

from slime_router.cache.text_index import common_prefix_len
from slime_router.template.layout import (
    MAX_MARKS,
    Layout,
    Mark,
    Tree,
    begin_of,
    compared_literals,
    first_of_each,
    holds,
    marks_of,
    pairs_of,
    printed_words,
    reach,
    stands_elsewhere,
)
from slime_router.template.messages import content_text
from slime_router.template.seam import Cut, Sampled, Seam
from slime_router.template.stand_ins import (
    SENTINEL,
    Drawing,
    Form,
    View,
    draw,
    head_len,
    is_reply,
    numbered_word,
    numbers_in,
    unsaid_word,
)
from slime_router.types import Message, TemplateOptions
from slime_router.values import replace, value

SHIFT_LEN = 10  # messages in view from which a later start is tried

_LATER = unsaid_word("later")

Render = Callable[[Sequence[Message], TemplateOptions, datetime | None], str | None]


@value(frozen=True, slots=True)
class Suffix:
    """What follows a held turn: drop `drop` of its last tokens, then encode `text`.

    `drop` is 1 where the sampled stop token gives way to the one that the template puts there.
    `left_out` are the messages, by their places, that the template does not print.
    `layout` is what the prompt looks like, for the turn that answers it.
    """

    text: str
    drop: int = 0
    left_out: tuple[int, ...] = ()
    layout: Layout | None = field(default=None, compare=False)


@value(frozen=True, slots=True)
class Question:
    """A conversation that continues a held reply, and all that it is rendered with."""

    messages: Sequence[Message]
    index: int  # of the held reply
    options: TemplateOptions
    date: datetime | None = None

    @property
    def size(self) -> int:
        """How many messages there are."""
        return len(self.messages)


class Suffixes:
    """Finds suffixes with one template. `render` returns None where it refuses the messages."""

    def __init__(self, render: Render, seam: Seam, tree: Tree | None) -> None:
        self._render = render
        self._seam = seam
        self.literals = compared_literals(tree)  # that the template looks for, where it is known
        self._literals = self.literals or ()
        self.printed = printed_words(tree)

    def find_near(
        self, question: Question, *, sampled: Sampled, layout: Layout | None
    ) -> Suffix | None:
        """The suffix from few messages; None where it is not known to come out alike.

        `sampled` is the held reply, `layout` that of the held turn's prompt, where known.
        """
        is_near = layout is not None and layout.start and self.covers(layout, question)
        return self._find(question, sampled, layout) if is_near else None

    def find_whole(
        self, question: Question, *, sampled: Sampled, layout: Layout | None
    ) -> Suffix | None:
        """The suffix from all messages; None where the template is not shown to append."""
        return self._find(question, sampled, layout, is_whole=True)

    def _find(
        self, question: Question, sampled: Sampled, layout: Layout | None, *, is_whole: bool = False
    ) -> Suffix | None:
        start, lead = (0, ()) if is_whole or layout is None else (layout.start, layout.lead)
        view = View.of(question.messages, question.index, start, lead)
        drawing = self._draw(view, question)
        if drawing is None:
            return None
        known = layout if layout is not None and layout.start == start else None
        if known is None or not known.agrees(drawing):
            known = self._layout_before(view, drawing, question)
            if known is None or not known.agrees(drawing):
                return None
        left_out = self._left_out(view, drawing, question)
        if left_out is None:
            return None
        cut = self._cut(view, drawing, question, sampled)
        after = self._after(known, layout or known, view, drawing, question)
        return Suffix(drawing.behind[cut.start :], cut.drop, left_out, after)

    def layout(self, question: Question, text: str) -> Layout | None:
        """The layout of a prompt rendered whole, as `text`; None if that does not settle it.

        `question.index` is where the reply to come will be, after all messages.
        """
        messages = question.messages
        if SENTINEL in text:
            return None
        if not any(map(is_reply, messages)):
            return Layout((Mark.of_prompt(text, messages),))
        start = later_start(question, question.size - 1)
        if not start:
            return None
        near = View.of(messages, question.index, start)
        plain = self._render(near.messages, question.options, question.date)
        head = near.groups()[0]
        if plain is None or not text.endswith(plain[reach(plain, head) :]):
            return None
        drawn = self._draw(near, question)
        if drawn is None:
            return None
        marks = marks_of(drawn.parts, near.groups()[:-1])
        hidden = pairs_of(messages[: start + 1], self._literals)
        pairs = pairs_of(messages[start - 1 :], self._literals)
        return Layout(marks, start, (), hidden, pairs, question.size)

    # Rendering

    def _draw(self, view: View, question: Question, forms: Sequence[Form] = ()) -> Drawing | None:
        def try_render(messages: list[Message]) -> str | None:
            return self._render(messages, question.options, question.date)

        return draw(view, try_render, forms)

    def _layout_before(self, view: View, drawing: Drawing, question: Question) -> Layout | None:
        """What the template prints of all messages before the reply, as it was asked for it."""
        if len(view.messages) < question.size:
            return None
        options = replace(
            question.options, add_generation_prompt=True, continue_final_message=False
        )
        messages = view.messages[: view.index]
        if any(map(is_reply, messages)):
            before = Question(messages, view.index - 1, options, question.date)
            drawn = self._draw(View(messages, view.index - 1), before, [drawing.form])
            parts = drawn.parts if drawn is not None else None
        else:
            text = self._render(messages, options, question.date)
            parts = None if text is None else (text,)
        return None if parts is None else Layout(marks_of(parts, view.groups()[:-1]))

    def _left_out(self, view: View, drawing: Drawing, question: Question) -> tuple[int, ...] | None:
        """Which later messages the template prints nowhere; None where one is elsewhere.

        Where their texts are not found, or may be there for another reason, words in their places
        are looked for.
        """
        near = view.messages[view.index :]
        if holds(drawing.behind, view.later) and not stands_elsewhere(
            near, view.later, self.printed
        ):
            return ()
        words = {
            index: numbered_word(index)
            for index, message in enumerate(view.later, view.index + 1)
            if not is_reply(message) and content_text(message.get("content")).strip()
        }
        marked = [
            {**message, "content": words.get(index, message.get("content"))}
            for index, message in enumerate(view.messages)
        ]
        again = self._draw(View(tuple(marked), view.index), question, [drawing.form])
        if again is None:
            return None
        if holds(again.behind, marked[view.index + 1 :]):
            return ()
        text = self._render(marked, question.options, question.date)  # with the replies themselves
        printed = words.keys() if text is None else numbers_in(text)
        lost = tuple(index for index in words if index not in printed)
        kept = [
            each for index, each in enumerate(marked) if index > view.index and index not in lost
        ]
        out_of_view = question.size - len(view.messages)
        return tuple(out_of_view + index for index in lost) if holds(again.behind, kept) else None

    # The seam

    def _cut(self, view: View, drawing: Drawing, question: Question, sampled: Sampled) -> Cut:
        behind = drawing.behind
        has_calls = bool(view.messages[view.index].get("tool_calls"))
        if not has_calls or drawing.form is Form.NO_CALLS:
            own_len = self._own_len(view, drawing, question)
            return self._seam.after_text(behind, sampled, own_len)
        closing = self._seam.closing(behind)
        if closing is not None and _is_before(closing[1], behind, view.later):
            return self._seam.after_call(behind, closing[0], sampled)
        alone = View(view.messages[: view.index + 1], view.index)
        options = replace(
            question.options, add_generation_prompt=False, continue_final_message=False
        )
        drawn = self._draw(
            alone, Question(alone.messages, alone.index, options, question.date), [drawing.form]
        )
        tail_len = common_prefix_len(behind, drawn.behind if drawn is not None else "")
        return self._seam.after_call(behind, self._seam.boundary(behind, tail_len), sampled)

    def _own_len(self, view: View, drawing: Drawing, question: Question) -> int:
        """How much of what follows the reply comes before the first later message's own text.

        It is looked for only where that text begins with a token that may be taken for the end of
        the reply.
        """
        behind = drawing.behind
        text = content_text(view.later[0].get("content")) if view.later else ""
        if not self._seam.begins_with_token(text):
            return len(behind)
        messages = list(view.messages)
        messages[view.index + 1] = {**view.later[0], "content": _LATER}
        again = self._draw(View(tuple(messages), view.index), question, [drawing.form])
        return len(behind) if again is None else common_prefix_len(behind, again.behind)

    # Where the rendering starts

    def covers(self, layout: Layout, question: Question) -> bool:
        """Whether what was seen of the layout holds for the messages that came since."""
        new = question.messages[question.index - 1 :]
        return question.size < 2 * layout.proved_len and (
            pairs_of(new, self._literals) <= layout.pairs
        )

    def _after(
        self, known: Layout, before: Layout, view: View, drawing: Drawing, question: Question
    ) -> Layout | None:
        """The layout of the prompt that is made; `before` is that of the held turn's own."""
        if any(map(is_reply, view.later)):
            return None  # they become stand-ins, and the parts others
        if len(view.messages) - len(known.lead) >= SHIFT_LEN:
            moved = self._moved(before, drawing, question)
            if moved is not None:
                return replace(moved, proved_len=known.proved_len or question.size)
        marks = (*known.marks, Mark.of(drawing.behind, view.later))
        return replace(known, marks=marks) if len(marks) <= MAX_MARKS else None

    def _moved(self, before: Layout, drawing: Drawing, question: Question) -> Layout | None:
        """The same from a later reply on, where all after that reply comes out alike.

        Where it does not, the first messages of each kind are kept before it: DeepSeek's templates
        print the first result of a tool in another way than those that follow.
        """
        start = later_start(question, question.index)
        if not start:
            return None
        messages = question.messages
        new = messages[max(before.start - 1, 0) : start + 1]
        hidden = before.hidden | pairs_of(new, self._literals)
        for places in self._leads(before, start, question):
            lead = first_of_each(messages, places, self._literals)
            near = View.of(messages, question.index, start, lead)
            drawn = self._draw(near, question, [drawing.form])
            own = 1 + sum(is_reply(messages[place]) for place in lead)
            if drawn is None or drawn.parts[own:] != drawing.parts[own - len(drawn.parts) :]:
                continue
            pairs = pairs_of(messages[start - 1 :], self._literals)
            if (lead, hidden) == (before.lead, before.hidden):
                pairs |= before.pairs  # what was seen counts while the same is out of view
            marks = marks_of(drawn.parts, near.groups())
            return Layout(marks, start, lead, hidden, pairs)
        return None

    def _leads(self, before: Layout, start: int, question: Question) -> Iterator[Iterable[int]]:
        """The places of the messages of which some may be kept before a start; none at first."""
        if before.lead:
            yield (*before.lead, *range(before.start, start))
        else:
            yield ()
            yield range(head_len(question.messages), start)


def later_start(question: Question, last: int) -> int:
    """The latest reply up to `last` that can follow the first user's turn; 0 for none."""
    messages, head = question.messages, head_len(question.messages)
    for start in range(last, head, -1):
        if is_reply(messages[start]) and not is_reply(messages[start - 1]):
            return start if head else 0
    return 0


def _is_before(end: int, behind: str, later: Sequence[Message]) -> bool:
    """Whether `end` is certain to stand before the first later message's text."""
    return bool(later) and not is_reply(later[0]) and begin_of(behind, later[0]) >= end
