"""The chat template: what it renders, and what it puts between two turns.

The suffix of a held turn comes from the template itself. The reply is replaced by a sentinel, the
conversation is rendered, and what stands behind the sentinel is what the template appends:

    render([*before, SENTINEL, *after]) == ... + SENTINEL + behind

That is used only where the template was shown to append there, for the first conversation of every
shape: `behind` must end the true rendering, and what stands before the sentinel must begin with the
rendering of `before`. (Mistral Nemo moves the system prompt to the last user turn and fails this.)
Where it is not shown, the answer is None and the caller renders everything: never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from slime_router.chat.findings import SENTINEL, TurnEnds, self_test
from slime_router.chat.messages import (
    content_text,
    renderable,
    without_late_systems,
    without_reasoning,
)
from slime_router.errors import BadRequest
from slime_router.types import Message, TemplateOptions

MAX_SHAPES = 4096  # remembered shapes; a shape costs up to five renderings when it is seen first
WINDOW_LEN = 8  # messages before the reply that are rendered for a suffix, where that is enough


class TemplateTokenizer(Protocol):
    """What the template needs of the tokenizer."""

    chat_template: str | None
    has_developer_role: bool
    eos_ids: frozenset[int]

    def render(
        self,
        messages: Sequence[Message],
        options: TemplateOptions,
        *,
        date: datetime | None = None,
    ) -> str:
        """The text of the conversation; BadRequest where the template refuses it."""

    def control_id_at(self, text: str, start: int) -> tuple[int, str] | None:
        """The control token that begins at `text[start]`."""


@dataclass(frozen=True, slots=True)
class Suffix:
    """What follows a held turn: drop `drop` of its last tokens, then encode `text`.

    `drop` is 1 where the sampled stop token gives way to the one that the template puts there.
    """

    text: str
    drop: int = 0


@dataclass(frozen=True, slots=True)
class _Proof:
    """What the first conversation of a shape has shown."""

    appends: bool
    is_local: bool  # the messages shortly before the reply make the suffix what it is


class ChatTemplate:
    """Renders conversations, and finds the suffix that continues a held turn."""

    def __init__(self, tokenizer: TemplateTokenizer) -> None:
        self._tokenizer = tokenizer
        self._shapes: dict[tuple[Any, ...], _Proof] = {}
        self.has_developer_role = tokenizer.has_developer_role
        self._ends = TurnEnds()
        self.findings, self._ends = self_test(self, tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        options: TemplateOptions,
        *,
        date: datetime | None = None,
    ) -> str:
        """The text of the conversation, exactly as the template makes it.

        Raises:
            BadRequest: the template refuses these messages.
        """
        if self._tokenizer.chat_template is None:
            raise BadRequest(
                "this model has no chat template: use /generate, or start with --chat-template",
                param="messages",
            )
        ready = renderable(messages, has_developer_role=self.has_developer_role)
        try:
            return self._tokenizer.render(ready, options, date=date)
        except BadRequest as refusal:
            return self._render_folded(ready, options, date, refusal)

    def _render_folded(
        self,
        ready: list[Message],
        options: TemplateOptions,
        date: datetime | None,
        refusal: BadRequest,
    ) -> str:
        """What was refused, with its system messages where every template takes them."""
        if any(message["role"] == "system" for message in ready[1:]):
            for joins in (False, True):
                folded = without_late_systems(ready, joins=joins)
                with suppress(BadRequest):
                    return self._tokenizer.render(folded, options, date=date)
        raise refusal

    def suffix(
        self,
        messages: Sequence[Message],
        reply_index: int,
        options: TemplateOptions,
        *,
        stop_id: int | None,
        date: datetime | None = None,
    ) -> Suffix | None:
        """What the template puts behind the reply `messages[reply_index]`, to the prompt's end.

        Args:
            messages: the whole request, the echoed reply in it.
            reply_index: which of them is the reply of the held turn.
            options: tools and arguments of the rendering.
            stop_id: the stop token with which the held tokens end; None where they end otherwise.
            date: the date pinned for this conversation.

        Returns:
            None where the template is not shown to append there.
        """
        start = _window_start(messages, reply_index)
        shape = (bool(start), *_shape(messages, reply_index, options))
        proof = self._shapes.get(shape)
        if proof is None:
            proof = self._prove(messages, reply_index, start, options, date)
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = proof
        if not proof.appends:
            return None
        if not proof.is_local:
            start = 0
        seen = [*messages[:1], *messages[start:]] if start else messages
        behind = self.behind(seen, reply_index - len(messages) + len(seen), options, date)
        return None if behind is None else self._after_stop(behind, stop_id)

    def _prove(
        self,
        messages: Sequence[Message],
        index: int,
        start: int,
        options: TemplateOptions,
        date: datetime | None,
    ) -> _Proof:
        """Render the conversation whole, and see what holds for it."""
        behind = self.behind(messages, index, options, date)
        if behind is None or not self.appends(messages, index, options, behind, date):
            return _Proof(appends=False, is_local=False)
        if not start:
            return _Proof(appends=True, is_local=False)
        seen = [*messages[:1], *messages[start:]]
        local = self.behind(seen, index - len(messages) + len(seen), options, date)
        return _Proof(appends=True, is_local=local == behind)

    def behind(
        self,
        messages: Sequence[Message],
        index: int,
        options: TemplateOptions,
        date: datetime | None,
    ) -> str | None:
        """What the template puts behind message `index`, whatever that message says."""
        probe = [*messages[:index], _sentinel(), *messages[index + 1 :]]
        rendered = self.try_render(probe, options, date)
        _, found, behind = (rendered or "").partition(SENTINEL)
        return behind if found and SENTINEL not in behind else None

    def appends(
        self,
        messages: Sequence[Message],
        index: int,
        options: TemplateOptions,
        behind: str,
        date: datetime | None,
    ) -> bool:
        """Whether `behind` ends the true rendering, and what stands before was there before."""
        true = self.try_render(messages, options, date)
        if true is None or not true.endswith(behind):
            return False
        # Reasoning that the template strips later is no reason to doubt that it appends: it is
        # what held tokens are for. So the check is made on messages without reasoning.
        plain = [_without_reasoning(message) for message in messages]
        probe = [*plain[:index], _sentinel(), *plain[index + 1 :]]
        rendered = self.try_render(probe, options, date)
        head = TemplateOptions(
            tools=options.tools, kwargs=options.kwargs, add_generation_prompt=False
        )
        start = self.try_render(plain[:index], head, date)
        return rendered is not None and start is not None and rendered.startswith(start)

    def _after_stop(self, behind: str, stop_id: int | None) -> Suffix:
        """Drop from `behind` what the model has sampled of it already."""
        first = self._tokenizer.control_id_at(behind, 0)
        if stop_id is None or first is None or not self.closes(stop_id):
            return Suffix(behind)
        first_id, literal = first
        if first_id == stop_id:
            return Suffix(behind[len(literal) :])
        if first_id == self._ends.closer_id:
            # Another end-of-sequence token was sampled; it has closed the turn in its place.
            return Suffix(behind[len(literal) :])
        if stop_id in self._ends.openers:
            return Suffix(behind, drop=1)
        return Suffix(behind)

    def closes(self, stop_id: int) -> bool:
        """Whether the stop token ends a turn; a stop token of the client's own does not."""
        ends = self._ends
        return stop_id in self._tokenizer.eos_ids or stop_id in (ends.closer_id, *ends.openers)

    def try_render(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None
    ) -> str | None:
        """The rendering, or None where the template refuses these messages."""
        try:
            return self.render(messages, options, date=date)
        except BadRequest:
            return None


def _sentinel() -> Message:
    return {"role": "assistant", "content": SENTINEL}


_REPLY_AND_ASK = ("assistant", "user")


def _role(message: Message) -> str:
    return str(message["role"]).lower()


def _content(message: Message) -> str:
    return content_text(message.get("content"))


def _without_reasoning(message: Message) -> Message:
    if _role(message) != "assistant":
        return message
    hidden = ("reasoning_content", "reasoning", "content")
    kept = {name: value for name, value in message.items() if name not in hidden}
    return {**kept, "content": without_reasoning(_content(message))}


def _window_start(messages: Sequence[Message], index: int) -> int:
    """Where to begin a rendering that only the suffix is wanted of; 0 is everything.

    It begins with a user's turn, as conversations do: some templates insist on the order of roles.
    The first message, which may be the system prompt, stays in front of it.
    """
    follows_user = _role(messages[0]) == "user"
    for start in range(index - WINDOW_LEN, 1, -1):
        if follows_user and (_role(messages[start]), _role(messages[start + 1])) == _REPLY_AND_ASK:
            return start
        if not follows_user and _role(messages[start]) == "user":
            return start
    return 0


def _shape(messages: Sequence[Message], index: int, options: TemplateOptions) -> tuple[Any, ...]:
    """What a template's branches can depend on, without the words themselves."""

    def kind(message: Message) -> tuple[Any, ...]:
        content = _content(message)
        return (
            _role(message),
            bool(content),
            bool(message.get("tool_calls")),
            bool(message.get("reasoning_content") or message.get("reasoning")),
            "</think>" in content,
        )

    return (
        kind(messages[0]),
        frozenset(kind(message) for message in messages[:index]),
        tuple(kind(message) for message in messages[max(index - 1, 0) :]),
        bool(options.tools),
        repr(sorted(options.kwargs.items(), key=lambda item: item[0])),
        options.add_generation_prompt,
        options.continue_final_message,
    )
