"""Renderings in which a word stands for each reply, so that what surrounds replies can be read.

    parts of render([u, STAND-IN, t, STAND-IN, v]) == (u..., ...t..., ...v + generation prompt)

How a template prints an old reply does not matter: the tokens that were sampled are kept. So
nothing in a reply that will be thrown away may make a request fail. A stand-in has the names and
ids of its calls, because templates print tool results by them, and otherwise only a word in place
of its content, or of the last argument of its last call. Where the template refuses that, or
prints none of it, less is tried: the first call only, then no calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import IntEnum
from secrets import token_hex
from typing import Any

from slime_router.template.messages import whole_arguments
from slime_router.types import Message
from slime_router.values import value


def unsaid_word(name: str) -> str:
    """A word that no text holds: it is another one in each process, and nobody is shown it.

    It is alphanumeric: templates strip and trim, none rewrites that.
    """
    return f"Zq7{name}{token_hex(8)}7qZ"


SENTINEL = unsaid_word("sentinel")
_NUMBER = unsaid_word("number")
_NUMBERED = re.compile(f"{_NUMBER}([0-9]+)x")


def numbered_word(number: int) -> str:
    """One of many unsaid words, none of which is in another."""
    return f"{_NUMBER}{number}x"


def numbers_in(text: str) -> set[int]:
    """The numbers of the numbered words in a text."""
    return {int(number) for number in _NUMBERED.findall(text)}


class Form(IntEnum):
    """How much of its calls a stand-in keeps."""

    ALL_CALLS = 0
    FIRST_CALL = 1  # Llama's templates refuse two, gpt-oss' print one
    NO_CALLS = 2  # some print none


@value(frozen=True, slots=True)
class View:
    """The messages of a conversation that are rendered, and which of them is the held reply."""

    messages: tuple[Message, ...]
    index: int

    @staticmethod
    def of(messages: Sequence[Message], index: int, start: int, lead: Sequence[int] = ()) -> View:
        """The first user's turn and what comes before it, then all from `start` on; 0 is all.

        Between them stand the messages whose places are in `lead`.
        """
        if not start:
            return View(tuple(messages), index)
        head = (*messages[: head_len(messages)], *(messages[place] for place in lead))
        return View((*head, *messages[start:]), index - start + len(head))

    @property
    def later(self) -> tuple[Message, ...]:
        """What comes after the reply."""
        return self.messages[self.index + 1 :]

    def groups(self) -> list[list[Message]]:
        """The messages before, between and after the replies up to the held one."""
        groups: list[list[Message]] = [[]]
        for message in self.messages[: self.index]:
            if is_reply(message):
                groups.append([])
            else:
                groups[-1].append(message)
        return [*groups, list(self.later)]


@value(frozen=True, slots=True)
class Drawing:
    """A view as it was rendered: the text before, between and after its stand-ins."""

    parts: tuple[str, ...]
    form: Form

    @property
    def behind(self) -> str:
        """All text after the last stand-in."""
        return self.parts[-1]


def is_reply(message: Message) -> bool:
    """Whether it is an assistant's."""
    return str(message["role"]).lower() == "assistant"


def head_len(messages: Sequence[Message]) -> int:
    """How many messages there are up to the first of a user, that one included; 0 without one."""
    for index, message in enumerate(messages):
        if str(message["role"]).lower() == "user":
            return index + 1
    return 0


def draw(
    view: View, try_render: Callable[[list[Message]], str | None], forms: Sequence[Form] = ()
) -> Drawing | None:
    """The view with stand-ins up to its reply, in the first form that comes out whole.

    `try_render` returns None where the template refuses the messages.
    """
    replies = [message for message in view.messages[: view.index + 1] if is_reply(message)]
    for form in forms or _forms(replies):
        text = try_render(_with_stand_ins(view, form))
        if text is not None and text.count(SENTINEL) == len(replies):
            return Drawing(tuple(text.split(SENTINEL)), form)
    return None


def _forms(replies: Sequence[Message]) -> list[Form]:
    """The forms in which these replies differ, the fullest first."""
    most_calls = max(len(reply.get("tool_calls") or ()) for reply in replies)
    return list(Form)[max(2 - most_calls, 0) :]


def _with_stand_ins(view: View, form: Form) -> list[Message]:
    return [
        _stand_in(message, form) if index <= view.index and is_reply(message) else message
        for index, message in enumerate(view.messages)
    ]


def _stand_in(reply: Message, form: Form) -> Message:
    calls = reply.get("tool_calls")
    if not calls or form is Form.NO_CALLS:
        return {"role": "assistant", "content": SENTINEL}
    kept = calls[:1] if form is Form.FIRST_CALL else calls
    *before, last = [_without_broken_arguments(call) for call in kept]
    name = next(iter(last["function"]["arguments"]), "value")
    last["function"]["arguments"] = {name: SENTINEL}
    return {"role": "assistant", "content": "", "tool_calls": [*before, last]}


def _without_broken_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    known = dict(whole_arguments(function.get("arguments")))
    return {"type": "function", **call, "function": {**function, "arguments": known}}
