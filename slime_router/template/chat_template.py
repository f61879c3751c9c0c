"""The chat template: what it renders, and what it puts between two turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

from slime_router.errors import BadRequest
from slime_router.template.forms.forms import Filled
from slime_router.template.layout import (
    Layout,
    compares_messages,
    end_of,
    holds,
    parsed,
    stands_elsewhere,
)
from slime_router.template.messages import (
    REFERENCE,
    Plain,
    content_text,
    foldings,
    renderable,
    with_whole_arguments,
)
from slime_router.template.parts import Parts, find_parts, prints_names
from slime_router.template.pictures import Pictures, find_pictures
from slime_router.template.seam import Sampled, Seam
from slime_router.template.self_test import Findings, find_ends, self_test
from slime_router.template.spelling import Spelling, find_spelling
from slime_router.template.stand_ins import View, is_reply, numbered_word, numbers_in
from slime_router.template.suffix import Question, Suffix, Suffixes
from slime_router.template.transcript import Transcripts
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions

__all__ = ["ChatTemplate", "Suffix"]

MAPPED = "arguments of a call that was cut are shown to the template as far as they are JSON"


class ChatTemplate:
    """Renders conversations, and finds the suffix that continues a held turn."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.has_developer_role = tokenizer.has_developer_role
        self._takes_references = REFERENCE in (tokenizer.jinja_template or "")
        self._tree = parsed(tokenizer.jinja_template)
        self.spelling = Spelling()
        self.findings = Findings()
        self.parts = Parts()
        self.prints_names = False  # of users and systems
        if tokenizer.chat_template is not None:
            self.spelling = find_spelling(self._try_as_it_is)
            self.parts = find_parts(self._try_as_it_is)
            self.prints_names = prints_names(self.try_render)
        self.pictures = self._find_pictures()
        ends = find_ends(self.try_render, tokenizer)
        self._seam = Seam(tokenizer, ends)
        self._suffixes = Suffixes(self.try_render, self._seam, self._tree)
        if tokenizer.chat_template is not None:
            self.findings = self_test(self, ends)

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
        return self.render_noted(messages, options, date=date)[0]

    def render_noted(
        self,
        messages: Sequence[Message],
        options: TemplateOptions,
        *,
        date: datetime | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        """The same, with notes on what the template could not take as it was.

        A call that was cut has arguments that are not an object; where the template refuses them,
        it is given the object that they begin.

        Raises:
            BadRequest: the template refuses these messages.
        """
        try:
            return self._render(messages, options, date), ()
        except BadRequest:
            mapped = with_whole_arguments(messages)
            if mapped is None:
                raise
            return self._render(mapped, options, date), (MAPPED,)

    def _render(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None
    ) -> str:
        if self._tokenizer.chat_template is None:
            raise BadRequest(
                "this model has no chat template: use /generate, or start with --chat-template",
                param="messages",
            )
        if isinstance(messages, Plain) and not self.spelling.has_parts:
            copies = ready = list(map(dict, messages))
        else:
            copies = renderable(
                self.parts.whole(messages),
                has_developer_role=self.has_developer_role,
                takes_references=self._takes_references,
            )
            ready = list(map(self.spelling.spelled, copies))
        try:
            return self._tokenizer.render(ready, options, date=date)
        except BadRequest:
            for folded in foldings(copies):
                ready = list(map(self.spelling.spelled, folded))
                with suppress(BadRequest):
                    return self._tokenizer.render(ready, options, date=date)
            raise

    def suffix(
        self,
        messages: Sequence[Message],
        reply_index: int,
        options: TemplateOptions,
        *,
        sampled: Sequence[int],
        date: datetime | None = None,
        layout: Layout | None = None,
        is_near: bool | None = None,
    ) -> Suffix | None:
        """What the template puts after the reply `messages[reply_index]`, to the prompt's end.

        Args:
            messages: the whole request, the echoed reply in it.
            reply_index: which of them is the reply of the held turn.
            options: tools and arguments of the rendering.
            sampled: the tokens of that reply.
            date: the date pinned for this conversation.
            layout: what the held turn's own prompt looked like, where that is known.
            is_near: few of the messages are rendered, or (False) all; None: all if few do not do.

        Returns:
            None where the template is not shown to append there.
        """
        question = Question(messages, reply_index, options, date)
        read = partial(self._tokenizer.decode, sampled, skip_special_tokens=False)
        reply = Sampled(int(sampled[-1]) if len(sampled) else None, read)
        found = None
        if is_near is not False:
            found = self._suffixes.find_near(question, sampled=reply, layout=layout)
        if found is None and not is_near:
            found = self._suffixes.find_whole(question, sampled=reply, layout=layout)
        return found

    def layout(
        self,
        text: str,
        messages: Sequence[Message],
        options: TemplateOptions,
        date: datetime | None,
    ) -> Layout | None:
        """What the prompt `text` of these messages looks like; None where it takes more to know."""
        return self._suffixes.layout(Question(messages, len(messages), options, date), text)

    def left_out(
        self,
        text: str,
        messages: Sequence[Message],
        first: int,
        start: int,
        options: TemplateOptions,
        date: datetime | None,
    ) -> tuple[str, ...]:
        """What of `messages[first:]`, and of the tools, is not in their prompt `text`, by its name.

        Args:
            text: the prompt of all messages.
            messages: the whole conversation.
            first: which of them is the first new one.
            start: the message from which it is enough to render (see `Transcript`); 0: all of it.
            options: tools and arguments of the rendering.
            date: the date pinned for this conversation.

        Where their texts are not found there one after the other, as some templates print JSON in
        a form of their own, or where they may be there for another reason, words in their places
        are looked for.
        """
        fields = self.left_out_fields(messages, first, options)
        if isinstance(text, Filled):
            return fields
        new, near = messages[first:], messages[max(0, first - 1) :]
        after = end_of(text, messages[:first])
        if holds(text, new, after, with_replies=True) and not stands_elsewhere(
            near, new, self._suffixes.printed
        ):
            return fields
        words = {
            index: numbered_word(index)
            for index, message in enumerate(new, first)
            if content_text(message.get("content")).strip()
        }
        view = View.of(messages, len(messages), start if start <= first else 0).messages
        marked = [
            {**message, "content": words.get(index, message.get("content"))}
            for index, message in enumerate(view, len(messages) - len(view))
        ]
        again = self.try_render(marked, options, date)
        printed = words.keys() if again is None else numbers_in(again)
        lost = [index for index in words if index not in printed]
        return (*(f"messages[{index}]" for index in lost), *fields)

    def left_out_fields(
        self, messages: Sequence[Message], first: int, options: TemplateOptions
    ) -> tuple[str, ...]:
        """The names of fields in `messages[first:]`, and of `options`, that it never prints."""
        lost = ["tools"] if options.tools and not self.findings.prints_tools else []
        if isinstance(messages, Plain):
            return tuple(lost)
        for index, message in enumerate(messages[first:], first):
            if len(message) > 2 or "content" not in message:  # more than a role and a text
                unprinted = self._unprinted(message)
                lost += [
                    f"messages[{index}].{name}"
                    for name in unprinted
                    if message.get(name.removesuffix("[1:]"))
                ]
        return tuple(lost)

    def _unprinted(self, message: Message) -> Iterator[str]:
        """The fields that it does not print of such a message."""
        if is_reply(message):
            has_text = bool(message.get("content"))
            if not self.findings.prints_calls or (
                has_text and not self.findings.prints_calls_beside_text
            ):
                yield "tool_calls"
            elif not self.findings.prints_more_calls and len(message.get("tool_calls") or ()) > 1:
                yield "tool_calls[1:]"
            if not self.findings.prints_reasoning:
                yield "reasoning_content"
        elif not self.prints_names and message["role"] != "tool":
            yield "name"

    def transcripts(self) -> Transcripts:
        """Keeps the texts of prompts, for what is rendered after them."""
        is_fit = not compares_messages(self._tree)
        return Transcripts(self._render_as_given, self._suffixes.literals if is_fit else None)

    def _render_as_given(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None
    ) -> str | None:
        try:
            text, notes = self.render_noted(messages, options, date=date)
        except BadRequest:
            return None
        return None if notes else text

    def ends_turn(self, token_id: int) -> bool:
        """Whether the token ends a turn; a stop token of the client's own does not."""
        return self._seam.ends_turn(token_id)

    def try_render(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None = None
    ) -> str | None:
        """The rendering, or None where the template refuses these messages."""
        try:
            return self.render(messages, options, date=date)
        except BadRequest:
            return None

    def _find_pictures(self) -> Pictures | None:
        """How the template shows pictures; None where it shows none, or not in a way known here."""
        if self._tokenizer.chat_template is None:
            return None
        token, token_id = self._tokenizer.picture_token, self._tokenizer.picture_id
        if not token or token_id is None:
            return None
        return find_pictures(self.try_render, self._try_as_it_is, self.parts, token, token_id)

    def _try_as_it_is(self, messages: list[Message], options: TemplateOptions) -> str | None:
        try:
            return self._tokenizer.render(messages, options)
        except BadRequest:
            return None
