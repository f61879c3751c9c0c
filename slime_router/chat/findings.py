"""The template's self-test: a few renderings at start that show how it behaves.

What is found says how a turn ends, which the suffix of every held turn needs; the rest is for
people (`GET /template`, the banner). Whether a template appends is proved again, per conversation
shape, before it is relied on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from slime_router.types import Message, TemplateOptions

SENTINEL = "Zq7sentinel7qZ"  # one alphanumeric word: templates strip and trim, none rewrites it

_CALL_ID = "callprobe1"
_USER: Message = {"role": "user", "content": "Hi"}
_SYSTEM: Message = {"role": "system", "content": "Be short"}
_REPLY: Message = {"role": "assistant", "content": "Hello"}
_RESULT: Message = {"role": "tool", "content": "5", "tool_call_id": _CALL_ID}
_DATES = (datetime(2001, 2, 3, 4), datetime(2012, 11, 10, 9))
_PLAIN = TemplateOptions()
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Findings:
    """What the self-test found out about a template. `GET /template` returns it."""

    has_template: bool = False
    prints_date: bool = False
    has_developer_role: bool = False
    prints_call_ids: bool = False
    closer: str | None = None  # the control token that ends a turn, whatever follows
    openers: tuple[str, ...] = ()  # where the next header ends a turn instead (GLM)
    appends_after_user: bool = False
    appends_after_tool: bool = False
    appends_with_system: bool = False
    keeps_old_reasoning: bool = False

    def summary(self) -> str:
        """One line for the banner and the log."""
        if not self.has_template:
            return "none: chat needs --chat-template"
        words = [f"turns close with {self.closer or ' or '.join(self.openers) or 'nothing'}"]
        for name, appends in (
            ("user", self.appends_after_user),
            ("tool", self.appends_after_tool),
            ("system prompt", self.appends_with_system),
        ):
            words.append(f"{'appends' if appends else 'does not append'} ({name})")
        words.append(f"{'keeps' if self.keeps_old_reasoning else 'strips'} old reasoning")
        if self.prints_date:
            words.append("prints the date (pinned per conversation)")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """The control tokens at which turns end: one closer, or the headers that may come next."""

    closer_id: int | None = None
    openers: Mapping[int, str] = field(default_factory=dict)


class Probed(Protocol):
    """A template as the self-test uses it."""

    has_developer_role: bool

    def try_render(
        self, messages: Sequence[Message], options: TemplateOptions, date: datetime | None
    ) -> str | None:
        """The rendering, or None where the template refuses these messages."""

    def behind(
        self,
        messages: Sequence[Message],
        index: int,
        options: TemplateOptions,
        date: datetime | None,
    ) -> str | None:
        """What the template puts behind message `index`."""

    def appends(
        self,
        messages: Sequence[Message],
        index: int,
        options: TemplateOptions,
        behind: str,
        date: datetime | None,
    ) -> bool:
        """Whether it does nothing but append there."""


class Controls(Protocol):
    """The tokenizer as the self-test uses it."""

    chat_template: str | None
    eos_ids: frozenset[int]

    def control_id_at(self, text: str, start: int) -> tuple[int, str] | None:
        """The control token that begins at `text[start]`."""


def self_test(template: Probed, controls: Controls) -> tuple[Findings, TurnEnds]:
    """Render a few conversations and look."""
    if controls.chat_template is None:
        return Findings(), TurnEnds()
    chat = [_USER, _REPLY, _USER]
    after_call = _behind_call(template)
    ends, closer = _turn_ends(template.behind(chat, 1, _PLAIN, None) or "", after_call, controls)
    findings = Findings(
        has_template=True,
        prints_date=len({template.try_render([_USER], _PLAIN, date) for date in _DATES}) > 1,
        has_developer_role=template.has_developer_role,
        prints_call_ids=_CALL_ID in (_render_loop(template, argument="1") or ""),
        closer=closer,
        openers=tuple(ends.openers.values()),
        appends_after_user=_appends(template, chat),
        appends_after_tool=after_call is not None or _appends(template, [_USER, _REPLY, _RESULT]),
        appends_with_system=_appends(template, [_SYSTEM, *chat]),
        keeps_old_reasoning=_keeps_reasoning(template),
    )
    return findings, ends


def _appends(template: Probed, messages: list[Message]) -> bool:
    index = messages.index(_REPLY)
    behind = template.behind(messages, index, _PLAIN, None)
    return behind is not None and template.appends(messages, index, _PLAIN, behind, None)


def _render_loop(template: Probed, argument: str) -> str | None:
    function = {"name": "add", "arguments": {"a": argument}}
    calls = [{"id": _CALL_ID, "type": "function", "function": function}]
    call: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    options = TemplateOptions(tools=(_TOOL,))
    return template.try_render([_USER, call, _RESULT], options, None)


def _behind_call(template: Probed) -> str | None:
    """What stands behind the last argument of a tool call when its result follows."""
    rendered = _render_loop(template, argument=SENTINEL) or ""
    return rendered.rpartition(SENTINEL)[2] if SENTINEL in rendered else None


def _turn_ends(
    after_user: str, after_call: str | None, controls: Controls
) -> tuple[TurnEnds, str | None]:
    """One token that follows a reply whatever comes next, or the headers that may come next."""
    first = controls.control_id_at(after_user, 0)
    if first is None:
        return TurnEnds(), None
    if after_call is None or first[1] in after_call:
        return TurnEnds(closer_id=first[0]), first[1]
    openers = dict([first])
    for start in range(len(after_call)):
        other = controls.control_id_at(after_call, start)
        if other is not None and other[0] in controls.eos_ids:
            openers[other[0]] = other[1]
            break
    return TurnEnds(openers=openers), None


def _keeps_reasoning(template: Probed) -> bool:
    thinking = {**_REPLY, "content": f"<think>\n{SENTINEL}\n</think>\n\nHello"}
    return SENTINEL in (template.try_render([_USER, thinking, _USER], _PLAIN, None) or "")
