"""The template's self-test: a few renderings at start that show how it behaves.

What is found says how a turn ends, which the suffix of every held turn needs; the rest is for
people (`GET /template`, the banner). Whether a template appends is seen again, in each
conversation, before it is relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from slime_router.template.seam import Control, TurnEnds, leading
from slime_router.template.spelling import PROBE_OPTIONS, Spelling
from slime_router.template.stand_ins import SENTINEL, View, draw
from slime_router.template.suffix import Suffix
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions

_CALL_ID = "abCD12345"
_TWO_IDS = (_CALL_ID, _CALL_ID[::-1])
_USER: Message = {"role": "user", "content": "Hi"}
_SYSTEM: Message = {"role": "system", "content": "Be short"}
_REPLY: Message = {"role": "assistant", "content": "Hello"}
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": _CALL_ID,
            "type": "function",
            "function": {"name": "add", "arguments": {"a": "1"}},
        }
    ],
}
_RESULT: Message = {"role": "tool", "content": "Five", "tool_call_id": _CALL_ID}
_DATES = (datetime(2001, 2, 3, 4), datetime(2012, 11, 10, 9))
_PLAIN = TemplateOptions()
_SILENT = TemplateOptions(add_generation_prompt=False)

TryRender = Callable[[Sequence[Message], TemplateOptions, datetime | None], str | None]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the self-test found out about a template, as `GET /template` returns it."""

    has_template: bool = False
    prints_messages: bool = False  # else it can hardly be the right file
    prints_date: bool = False
    has_developer_role: bool = False
    prints_tools: bool = False
    prints_calls: bool = False
    prints_calls_beside_text: bool = True
    prints_more_calls: bool = True  # of one reply, beside the first
    prints_call_ids: bool = False
    results_by: str = "id"  # what shows whose result one is; or "name", or "order" alone
    prints_reasoning: bool = False  # in `reasoning_content`, of a reply that was the last
    call_arguments: str = "object"  # or "text"
    call_ids: str = "any"  # or "short": nine letters or digits
    content: str = "text"  # or "parts"
    closer: str | None = None  # the control token that ends a turn, whatever follows
    openers: tuple[str, ...] = ()  # where the next header ends a turn instead (GLM)
    appends_after_user: bool = False
    appends_after_tool: bool = False  # the result of a call
    appends_with_system: bool = False
    keeps_old_reasoning: bool = False

    def summary(self) -> str:
        """One line for the banner and the log."""
        if not self.has_template:
            return "none: chat needs --chat-template"
        words = [] if self.prints_messages else ["it prints nothing of a user's message"]
        words += [f"turns close with {self.closer or ' or '.join(self.openers) or 'nothing'}"]
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


class Probed(Protocol):
    """A template as the self-test uses it."""

    has_developer_role: bool
    spelling: Spelling

    def try_render(
        self,
        messages: Sequence[Message],
        options: TemplateOptions,
        date: datetime | None = None,
    ) -> str | None:
        """The rendering, or None where the template refuses these messages."""

    def suffix(
        self,
        messages: Sequence[Message],
        reply_index: int,
        options: TemplateOptions,
        *,
        sampled: Sequence[int],
    ) -> Suffix | None:
        """What the template puts after a reply; None where it does not append."""


def find_ends(try_render: TryRender, controls: Tokenizer) -> TurnEnds:
    """The token that closes a reply whatever comes next, or the headers that may come next."""
    if controls.chat_template is None:
        return TurnEnds()
    after_user = _behind(try_render, [_USER, _REPLY, _USER], _PLAIN)
    first = _first(after_user, controls)
    if first is None:
        return TurnEnds()
    alone = _behind(try_render, [_USER, _REPLY], _SILENT)
    last = _end_in_both(after_user, alone, controls)
    if last is not None:
        start, end, token_id = last
        return TurnEnds(frozenset({token_id}), {}, after_user[start:end], after_user[:end])
    literal = after_user[first[0] : first[1]]
    at_end = _first(alone, controls)
    if not _is_header(after_user, first, at_end, controls):
        closers = {each[2] for each in (first, at_end) if each is not None}
        return TurnEnds(closers=frozenset(closers), closer=literal)
    openers = {first[2]: literal}
    after_call = _behind(try_render, [_USER, _CALL, _RESULT], PROBE_OPTIONS)
    for start, end, other in controls.find_added(after_call):
        if other in controls.eos_ids:
            openers[other] = after_call[start:end]
            break
    return TurnEnds(openers=openers)


def _first(behind: str, controls: Tokenizer) -> Control | None:
    """The end token with which a text begins, or else its first token; white space aside."""
    run = list(leading(behind, controls))
    ends = [control for control in run if control[2] in controls.eos_ids]
    return next(iter(ends or run), None)


def _end_in_both(after_user: str, alone: str, controls: Tokenizer) -> Control | None:
    """The end token of a turn that is closed in several words, with a user's turn after it or not.

    None where one of the tokens that a reply's text is followed by is an end token already.
    """
    if any(control[2] in controls.eos_ids for control in leading(after_user, controls)):
        return None
    for control in controls.find_added(after_user):
        if control[2] in controls.eos_ids:
            return control if alone.startswith(after_user[: control[1]]) else None
    return None


def _is_header(
    after_user: str, first: Control, at_end: Control | None, controls: Tokenizer
) -> bool:
    """Whether the token begins the user's turn: it is not there where nothing follows, and
    nothing else stands between it and the user's text.
    """
    if at_end is not None and at_end[2] == first[2]:
        return False
    header = after_user[first[1] :].partition(_USER["content"])[0]
    return next(controls.find_added(header), None) is None


def self_test(template: Probed, ends: TurnEnds) -> Findings:
    """Render a few conversations and look."""
    chat = [_USER, _REPLY, _USER]
    spelling = template.spelling
    return Findings(
        has_template=True,
        prints_messages=_is_printed(template, [{**_USER, "content": SENTINEL}], _PLAIN),
        prints_date=len({template.try_render([_USER], _PLAIN, date) for date in _DATES}) > 1,
        has_developer_role=template.has_developer_role,
        prints_tools=_prints_tools(template),
        prints_calls=spelling.prints_calls,
        prints_calls_beside_text=spelling.prints_calls_beside_text,
        prints_more_calls=_prints_more_calls(template),
        prints_call_ids=spelling.prints_ids,
        results_by=_results_by(template),
        prints_reasoning=_prints_reasoning(template),
        call_arguments=spelling.arguments,
        call_ids="short" if spelling.has_short_ids else "any",
        content="parts" if spelling.has_parts else "text",
        closer=ends.closer,
        openers=tuple(ends.openers.values()),
        appends_after_user=_appends(template, chat, 1, _PLAIN),
        appends_after_tool=_appends(template, [_USER, _CALL, _RESULT], 1, PROBE_OPTIONS),
        appends_with_system=_appends(template, [_SYSTEM, *chat], 2, _PLAIN),
        keeps_old_reasoning=_keeps_reasoning(template),
    )


def _behind(try_render: TryRender, messages: list[Message], options: TemplateOptions) -> str:
    """What follows the reply `messages[1]`; "" where that cannot be seen."""
    drawing = draw(View(tuple(messages), 1), lambda asked: try_render(asked, options, None))
    return drawing.behind if drawing is not None else ""


def _appends(
    template: Probed, messages: list[Message], index: int, options: TemplateOptions
) -> bool:
    return template.suffix(messages, index, options, sampled=()) is not None


def _keeps_reasoning(template: Probed) -> bool:
    thinking = {**_REPLY, "content": f"<think>\n{SENTINEL}\n</think>\n\nHello"}
    return _is_printed(template, [_USER, thinking, _USER], _PLAIN)


def _prints_tools(template: Probed) -> bool:
    [tool] = PROBE_OPTIONS.tools
    named = {**tool, "function": {**tool["function"], "name": SENTINEL}}
    return _is_printed(template, [_USER], TemplateOptions(tools=(named,)))


def _prints_more_calls(template: Probed) -> bool:
    """False only where a reply with two calls is printed with one of them."""
    text = template.try_render(_two_calls("add", "add", _TWO_IDS), PROBE_OPTIONS)
    return text is None or SENTINEL in text


def _results_by(template: Probed) -> str:
    """What shows which of two calls a result answers; "id" where no result is printed."""
    for name, found in (("add", "id"), ("subtract", "name")):
        text, other = (
            template.try_render(_two_calls("add", name, ids), PROBE_OPTIONS)
            for ids in (_TWO_IDS, _TWO_IDS[::-1])
        )
        if text is None:  # it takes one call at a time
            return "id" if template.spelling.prints_ids else "order"
        if text != other or _RESULT["content"] not in text:
            return found
    return "order"


def _two_calls(first: str, second: str, answered: Sequence[str]) -> list[Message]:
    """A reply that calls two tools, and the results of the calls `answered`."""
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": {"a": word}}}
        for call_id, name, word in zip(_TWO_IDS, (first, second), ("first", SENTINEL), strict=True)
    ]
    results = [
        {**_RESULT, "content": f"{_RESULT['content']}{number}", "tool_call_id": call_id}
        for number, call_id in enumerate(answered)
    ]
    return [_USER, {**_CALL, "tool_calls": calls}, *results]


def _prints_reasoning(template: Probed) -> bool:
    said = {"reasoning_content": SENTINEL}
    return _is_printed(template, [_USER, {**_REPLY, **said}], _SILENT) or _is_printed(
        template, [_USER, {**_CALL, **said}, _RESULT], PROBE_OPTIONS
    )


def _is_printed(template: Probed, messages: list[Message], options: TemplateOptions) -> bool:
    return SENTINEL in (template.try_render(messages, options) or "")
