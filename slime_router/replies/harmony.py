"""gpt-oss's replies, parsed by their marks: messages in channels, some of them tool calls.

    <|channel|>analysis<|message|>...<|end|>
    <|start|>assistant<|channel|>final<|message|>...<|return|>
    <|start|>assistant<|channel|>commentary to=functions.NAME
        <|constrain|>json<|message|>{...}<|call|>

The recipient of a call may be in the role's part of a header or in the channel's, and the channel
may be any. Marks are tokens: each comes as a separate piece, and one that a model spells in other
tokens is text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from slime_router.engine.structural_tag import ANY_TEXT, Json, any_of, json_of, some_of, tagged
from slime_router.replies.call_ids import CallIds
from slime_router.types import ToolDelta

NAME = "gpt-oss"  # of the parsers of both kinds
ENDS = ("<|end|>", "<|return|>", "<|call|>")  # of a message

_NEXT = "<|start|>assistant"
_REASONING = ("<|channel|>analysis<|message|>", "<|channel|>commentary<|message|>")  # or a preamble
_CALLS = (  # how gpt-oss writes the head of a call, most often the first of them
    "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.NAME<|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.NAME json<|message|>",
    " to=functions.NAME<|channel|>commentary <|constrain|>json<|message|>",
    " to=functions.NAME<|channel|>commentary json<|message|>",
)
_MARK = re.compile(r"<\|(?:start|channel|constrain|message|end|return|call)\|>")
_RECIPIENT = re.compile(r"(?<!\S)to=(\S+)")
_HEADER_WORDS = {"assistant", "analysis", "commentary", "final", "json"}
_ENDED = re.compile(r"<\|(?:end|return|call)\|>")
_START = re.compile(r"\s*(?:t|to|to=\S*\s*)?")  # how a header without a channel can begin


def answers(schema: Any, arguments: Mapping[str, Any]) -> Json:
    """What a whole reply may be: reasoning, then JSON that `schema` describes, or a call.

    `arguments` has a schema for each tool. The token that ends a reply is its end here, too.
    """
    final = tagged("<|channel|>final<|message|>", json_of(schema))
    calls = [
        tagged(head.replace("NAME", name), json_of(wanted))
        for name, wanted in arguments.items()
        for head in _CALLS
    ]
    said = some_of([tagged(head, ANY_TEXT, "<|end|>") for head in _REASONING], between=_NEXT)
    last = any_of(final, *calls)
    after = {"type": "sequence", "elements": [said, {"type": "const_string", "value": _NEXT}, last]}
    return any_of(last, after)


@dataclass(slots=True)
class HarmonyDelta:
    """What a piece adds."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolDelta, ...] = ()


class HarmonyReader:
    """Reads one reply, which begins after `<|start|>assistant`.

    `tools` are the names that may be called. Reasoning is content where it is not to be separate.
    """

    def __init__(
        self,
        tools: Collection[str],
        ids: CallIds,
        *,
        is_separate: bool,
        streams_reasoning: bool,
    ) -> None:
        self._tools = tools
        self._ids = ids
        self._is_separate = is_separate
        self._streams_reasoning = streams_reasoning
        self._header: str | None = ""  # as it is read; None inside a message
        self._is_reasoning = False
        self._call: int | None = None  # the index of the call that is read
        self._has_arguments = False  # that call
        self._count = 0
        self._late = ""  # reasoning that waits for its end

    @property
    def is_thinking(self) -> bool:
        """Whether reasoning continues at this point of the reply."""
        return self._is_reasoning and self._is_separate

    def enter(self, written: str) -> None:
        """Advances to where a prompt that ends with `written` leaves the reply."""
        last = written.rpartition("<|start|>assistant")[2]
        if last != written:
            self.push(_ENDED.split(last)[-1], is_last=False)

    def push(self, text: str, *, is_last: bool) -> HarmonyDelta:
        """What the text of a token adds; at the end also what waits."""
        delta = HarmonyDelta()
        start = 0
        for mark in _MARK.finditer(text):
            self._text(text[start : mark.start()], delta)
            self._mark(mark.group(), delta)
            start = mark.end()
        self._text(text[start:], delta)
        if is_last:
            self._finish(delta)
        return delta

    def _text(self, text: str, delta: HarmonyDelta) -> None:
        if not text:
            return
        if self._header is not None:
            self._header += text
            if "<|" in self._header or _START.fullmatch(self._header):
                return
            text, self._header = self._header, None  # a text that no header begins
        if self._call is not None:
            self._add_arguments(text, delta)
        elif not self.is_thinking:
            delta.content += text
        elif self._streams_reasoning:
            delta.reasoning += text
        else:
            self._late += text

    def _mark(self, mark: str, delta: HarmonyDelta) -> None:
        if mark == "<|message|>":
            self._open(delta)
        elif mark in ("<|channel|>", "<|constrain|>"):
            if self._header is None:  # a message that was not closed
                self._close(delta)
            elif mark == "<|channel|>" and mark in self._header and not _recipient(self._header):
                self._say_header(delta)
            self._header = (self._header or "") + mark
        else:
            self._say_header(delta)
            self._close(delta)
            self._header = mark if mark == "<|start|>" else ""

    def _open(self, delta: HarmonyDelta) -> None:
        """A message begins: its header says whom it is for."""
        header, self._header = self._header or "", None
        recipient = _recipient(header)
        self._is_reasoning = recipient is None and "<|channel|>analysis" in header
        if recipient is None:
            return
        name = self._tool(recipient[1])
        if name is None:
            delta.content += " ".join(_MARK.sub(" ", header).split()) + " "
            return
        self._call, self._has_arguments = self._count, False
        self._count += 1
        call_id, is_random = self._ids.make(name, self._call, header)
        delta.tool_calls += (ToolDelta(self._call, call_id, name, "", is_random),)

    def _say_header(self, delta: HarmonyDelta) -> None:
        """A header has ended without a message: words that no header has are content."""
        words = _MARK.sub(" ", self._header or "").split()
        if not _HEADER_WORDS.issuperset(words):
            delta.content += " ".join(words)
        self._header = self._header and ""

    def _tool(self, recipient: str) -> str | None:
        """The tool that is called; None if it may not be called."""
        names = (recipient, recipient.removeprefix("functions."), recipient.rpartition(".")[2])
        return next((name for name in names if name in self._tools), None)

    def _add_arguments(self, text: str, delta: HarmonyDelta) -> None:
        if not self._has_arguments:
            text = text.lstrip()
        if text:
            self._has_arguments = True
            assert self._call is not None
            delta.tool_calls += (ToolDelta(self._call, None, None, text),)

    def _close(self, delta: HarmonyDelta) -> None:
        """The message has ended."""
        if self._call is not None and not self._has_arguments:
            self._add_arguments("{}", delta)
        delta.reasoning += self._late
        self._call, self._is_reasoning, self._late = None, False, ""

    def _finish(self, delta: HarmonyDelta) -> None:
        """The reply has ended, perhaps in the middle of a message or of a header."""
        delta.reasoning += self._late
        self._late = ""
        if self._header and _RECIPIENT.search(self._header):
            self._say_header(delta)
        elif self._header and "<|" not in self._header:
            delta.content += self._header
        self._header = ""


def _recipient(header: str) -> re.Match[str] | None:
    return _RECIPIENT.search(header.replace("<|", " <|"))
