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
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from slime_router.chat.messages import content_text, renderable, without_reasoning
from slime_router.errors import BadRequest
from slime_router.types import Message, TemplateOptions

SENTINEL = "Zq7sentinel7qZ"  # one alphanumeric word: templates strip and trim, none rewrites it
MAX_SHAPES = 4096  # remembered shapes; a shape costs two renderings when it is seen first


class TemplateTokenizer(Protocol):
    """What the template needs of the tokenizer."""

    chat_template: str | None
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
class Findings:
    """What the self-test found out about a template. `GET /template` returns it."""

    has_template: bool
    prints_date: bool
    has_developer_role: bool
    prints_call_ids: bool
    closer: str | None  # the control token that ends a turn, whatever follows
    openers: tuple[str, ...]  # where the next header ends a turn instead (GLM)
    appends_after_user: bool
    appends_after_tool: bool
    appends_with_system: bool
    keeps_old_reasoning: bool

    def summary(self) -> str:
        """One line for the banner and the log."""
        if not self.has_template:
            return "none: chat needs --chat-template"
        close = self.closer or " or ".join(self.openers) or "nothing"
        words = [f"turns close with {close}"]
        for name, appends in (
            ("user", self.appends_after_user),
            ("tool", self.appends_after_tool),
            ("system prompt", self.appends_with_system),
        ):
            words.append(f"{'appends' if appends else 'does not append'} ({name})")
        words.append("keeps" if self.keeps_old_reasoning else "strips")
        words[-1] += " old reasoning"
        if self.prints_date:
            words.append("prints the date (pinned per conversation)")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Suffix:
    """What follows a held turn: drop `drop` of its last tokens, then encode `text`.

    `drop` is 1 where the sampled stop token gives way to the one that the template puts there.
    """

    text: str
    drop: int = 0


class ChatTemplate:
    """Renders conversations, and finds the suffix that continues a held turn."""

    def __init__(self, tokenizer: TemplateTokenizer) -> None:
        self._tokenizer = tokenizer
        self._shapes: dict[tuple[Any, ...], bool] = {}
        self._developer = "developer" in (tokenizer.chat_template or "")
        self._closer: tuple[int, str] | None = None
        self._openers: dict[int, str] = {}
        self.findings = self._self_test()

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
        ready = renderable(messages, has_developer_role=self._developer)
        return self._tokenizer.render(ready, options, date=date)

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
        behind = self._behind(messages, reply_index, options, date)
        if behind is None:
            return None
        shape = _shape(messages, reply_index, options)
        if shape not in self._shapes:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = self._appends(messages, reply_index, options, behind, date)
        return self._after_stop(behind, stop_id) if self._shapes[shape] else None

    def _behind(
        self,
        messages: Sequence[Message],
        index: int,
        options: TemplateOptions,
        date: datetime | None,
    ) -> str | None:
        probe = [*messages[:index], _sentinel(), *messages[index + 1 :]]
        rendered = self._try(probe, options, date)
        _, found, behind = (rendered or "").partition(SENTINEL)
        return behind if found and SENTINEL not in behind else None

    def _appends(
        self,
        messages: Sequence[Message],
        index: int,
        options: TemplateOptions,
        behind: str,
        date: datetime | None,
    ) -> bool:
        true = self._try(messages, options, date)
        if true is None or not true.endswith(behind):
            return False
        # Reasoning that the template strips later is no reason to doubt that it appends: it is
        # what held tokens are for. So the check is made on messages without reasoning.
        plain = [_without_reasoning(message) for message in messages]
        probe = [*plain[:index], _sentinel(), *plain[index + 1 :]]
        rendered = self._try(probe, options, date)
        head = TemplateOptions(
            tools=options.tools, kwargs=options.kwargs, add_generation_prompt=False
        )
        start = self._try(plain[:index], head, date)
        return rendered is not None and start is not None and rendered.startswith(start)

    def _after_stop(self, behind: str, stop_id: int | None) -> Suffix:
        """Drop from `behind` what the model has sampled of it already."""
        first = self._tokenizer.control_id_at(behind, 0)
        if stop_id is None or first is None or not self._closes(stop_id):
            return Suffix(behind)
        first_id, literal = first
        if first_id == stop_id:
            return Suffix(behind[len(literal) :])
        if self._closer and first_id == self._closer[0]:
            # Another end-of-sequence token was sampled; it has closed the turn in its place.
            return Suffix(behind[len(literal) :])
        if stop_id in self._openers:
            return Suffix(behind, drop=1)
        return Suffix(behind)

    def _closes(self, stop_id: int) -> bool:
        """Whether the stop token ends a turn; a stop token of the client's own does not."""
        closer = self._closer[0] if self._closer else None
        return stop_id in self._tokenizer.eos_ids or stop_id == closer or stop_id in self._openers

    def _try(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None
    ) -> str | None:
        try:
            return self.render(messages, options, date=date)
        except BadRequest:
            return None

    # The self-test

    def _self_test(self) -> Findings:
        if self._tokenizer.chat_template is None:
            return Findings(False, False, False, False, None, (), False, False, False, False)
        user = {"role": "user", "content": "Hi"}
        system = {"role": "system", "content": "Be short"}
        reply = {"role": "assistant", "content": "Hello"}
        plain, tools = TemplateOptions(), TemplateOptions(tools=(_PROBE_TOOL,))
        call = _call_message("callprobe1")
        chat = [user, reply, user]
        loop = [user, call, {"role": "tool", "content": "5", "tool_call_id": "callprobe1"}]
        after_user = self._behind(chat, 1, plain, None)
        after_tool = self._behind_call(loop, tools)
        self._find_closers(after_user, after_tool)
        return Findings(
            has_template=True,
            prints_date=self._prints_date([user], plain),
            has_developer_role=self._developer,
            prints_call_ids="callprobe1" in (self._try(loop, tools, None) or ""),
            closer=self._closer[1] if self._closer else None,
            openers=tuple(self._openers.values()),
            appends_after_user=self._probe_appends(chat, plain),
            appends_after_tool=self._probe_appends([*chat[:2], *loop[2:]], plain)
            or after_tool is not None,
            appends_with_system=self._probe_appends([system, *chat], plain),
            keeps_old_reasoning=self._keeps_reasoning(user, reply, plain),
        )

    def _probe_appends(self, messages: list[Message], options: TemplateOptions) -> bool:
        index = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        behind = self._behind(messages, index, options, None)
        return behind is not None and self._appends(messages, index, options, behind, None)

    def _behind_call(self, loop: list[Message], options: TemplateOptions) -> str | None:
        """What stands behind the last argument of a call, from its closing control token on."""
        call = _call_message("callprobe1", argument=SENTINEL)
        rendered = self._try([loop[0], call, *loop[2:]], options, None)
        return rendered.rpartition(SENTINEL)[2] if rendered and SENTINEL in rendered else None

    def _find_closers(self, after_user: str | None, after_tool: str | None) -> None:
        """The token that closes a turn, or, where that is the next header, the headers."""
        first = self._tokenizer.control_id_at(after_user or "", 0)
        if first is None:
            return
        if after_tool is None or first[1] in after_tool:
            self._closer = first
            return
        self._openers[first[0]] = first[1]
        for start in range(len(after_tool)):
            other = self._tokenizer.control_id_at(after_tool, start)
            if other is not None and other[0] in self._tokenizer.eos_ids:
                self._openers[other[0]] = other[1]
                return

    def _prints_date(self, messages: list[Message], options: TemplateOptions) -> bool:
        texts = {
            self._try(messages, options, datetime(year, month, day, hour))
            for year, month, day, hour in ((2001, 2, 3, 4), (2012, 11, 10, 9))
        }
        return len(texts) > 1

    def _keeps_reasoning(self, user: Message, reply: Message, options: TemplateOptions) -> bool:
        thinking = {**reply, "content": f"<think>\n{SENTINEL}\n</think>\n\nHello"}
        return SENTINEL in (self._try([user, thinking, user], options, None) or "")


def _sentinel() -> Message:
    return {"role": "assistant", "content": SENTINEL}


def _content(message: Message) -> str:
    return content_text(message.get("content"))


def _without_reasoning(message: Message) -> Message:
    if str(message["role"]).lower() != "assistant":
        return message
    hidden = ("reasoning_content", "reasoning", "content")
    kept = {name: value for name, value in message.items() if name not in hidden}
    return {**kept, "content": without_reasoning(_content(message))}


def _shape(messages: Sequence[Message], index: int, options: TemplateOptions) -> tuple[Any, ...]:
    """What a template's branches can depend on, without the words themselves."""

    def kind(message: Message) -> tuple[Any, ...]:
        content = _content(message)
        return (
            str(message["role"]).lower(),
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


_PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}


def _call_message(call_id: str, argument: str = "1") -> Message:
    function = {"name": "add", "arguments": {"a": argument}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }
