"""Prompts of messages that are texts alone, put together without running the template again.

    render(messages) == the template's own texts, and those of the messages, in an order

Which texts, and in which order, depends on the roles, on the tools and arguments, and on what the
template asks of the messages' texts ("is `</think>` in it?"). A form is what one rendering printed,
with the questions that it asked and their answers. It is used where all answers are the same, and
only if it was seen to give what the template gives, for these texts and for others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from slime_router.template.forms.watched import Log, Question, parts_of
from slime_router.types import Message
from slime_router.values import value

MAX_KINDS = 256  # of conversations: roles, tools and arguments
MAX_TRIES = 4  # to find a form for one kind
MAX_MESSAGES = 16  # longer conversations are rendered from a late message on
MAX_OWN_LEN = 2**14  # characters of a form: 16 MB of them at most
_FIELDS = ("role", "content")
_OTHER = "qZ7"  # makes another text of one

Render = Callable[[Sequence[Message]], str]


class Filled(str):
    """A rendering that has each message's text as it is, the last of them before `tail_len`."""

    __slots__ = ("tail_len",)
    tail_len: int  # characters of the template's own

    def __new__(cls, text: str, tail_len: int) -> Filled:
        """The text, and where in it the messages end."""
        made = super().__new__(cls, text)
        made.tail_len = tail_len
        return made


@value(frozen=True, slots=True)
class Form:
    """A rendering with the numbers of the messages in place of their texts."""

    parts: tuple[str | int, ...]
    answers: tuple[tuple[Question, object], ...]
    tail_len: int | None = None  # see `Filled`; None where a text is not printed

    def filled(self, texts: Sequence[str]) -> str | None:
        """The rendering of messages with these texts; None where it may be another."""
        for (number, function, args), answer in self.answers:
            if function(texts[number], *args) != answer:
                return None
        text = "".join([part if type(part) is str else texts[part] for part in self.parts])  # type: ignore[index]
        return text if self.tail_len is None else Filled(text, self.tail_len)

    @property
    def own_len(self) -> int:
        """How many characters it keeps: those that are printed, and those that are looked for."""
        asked = [str(args) for (_, _, args), _ in self.answers]
        return sum(len(part) for part in (*self.parts, *asked) if type(part) is str)


@dataclass(slots=True)
class _Kind:
    """What is known of one kind of conversation; it was rendered so often without a form."""

    forms: list[Form] = field(default_factory=list)
    rendered: int = 0


class Forms:
    """The forms of one template, by kinds of conversations."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Forms of {len(self._kinds)} kinds>"

    def rendered(
        self,
        messages: Sequence[Message],
        about: Callable[[], Hashable | None],
        render: Render,
        watch: Render,
    ) -> str:
        """What `render` makes of the messages.

        `about` names everything else that the result depends on, or is None if that is unknown.
        `watch` renders watched texts in the same way. Both may raise anything.
        """
        texts = _texts(messages)
        if texts is None or len(texts) > MAX_MESSAGES or (rest := about()) is None:
            return render(messages)
        key = (rest, *[message["role"] for message in messages])
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind()
            if len(self._kinds) > MAX_KINDS:
                self._kinds.popitem(last=False)
        for form in kind.forms:
            if (filled := form.filled(texts)) is not None:
                return filled
        text = render(messages)
        if 0 < kind.rendered <= MAX_TRIES:  # what comes but once needs no form
            learned = _learned(messages, texts, text, render, watch)
            kind.forms += [] if learned is None else [learned]
        kind.rendered += 1
        return text


def _texts(messages: Sequence[Message]) -> list[str] | None:
    """The texts of messages that have a role and a text, and nothing else; None for others."""
    texts = []
    for message in messages:
        if tuple(message) != _FIELDS or type(text := message["content"]) is not str:
            return None
        texts.append(text)
    return texts


def _learned(
    messages: Sequence[Message], texts: Sequence[str], text: str, render: Render, watch: Render
) -> Form | None:
    """The form of these messages' rendering; None where it sees too much of them to have one."""
    log = Log()
    others = [each[: len(each) // 2] + _OTHER + each[len(each) // 2 :] for each in texts]
    try:
        watched = watch(_with(messages, [log.watch(*each) for each in enumerate(texts)]))
        other = render(_with(messages, others))
    except Exception:  # noqa: BLE001 - a template is a program: if it raises anything, it has no form
        return None
    parts = _parts(watched)
    form = Form(parts, tuple(log.answers.items()), _tail_len(parts, len(texts)))
    is_right = form.filled(texts) == text and form.filled(others) == other
    return form if log.is_whole and is_right and form.own_len <= MAX_OWN_LEN else None


def _parts(watched: str) -> tuple[str | int, ...]:
    """What a rendering is made of; the template's own texts in a row are one."""
    parts: list[str | int] = []
    for part in parts_of(watched):
        if type(part) is str and parts and type(parts[-1]) is str:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)


def _tail_len(parts: Sequence[str | int], count: int) -> int | None:
    if not parts or not set(parts).issuperset(range(count)):
        return None
    return 0 if type(parts[-1]) is int else len(str(parts[-1]))


def _with(messages: Sequence[Message], texts: Sequence[str]) -> list[Message]:
    return [{**message, "content": text} for message, text in zip(messages, texts, strict=True)]
