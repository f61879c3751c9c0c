"""Arguments between tags, in which a model may write what ends a call in its format.

SGLang's parsers end the call at the first `</tool_call>`, in the middle of a value, too. Here a
mark in an open value waits for what comes next. Where the value is closed, the mark was a part of
it, and is given to the parser with a character in it that no text has; that one is taken out
again. Where another value begins, or the reply ends, the model forgot to close the value: then it
is closed before the mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from slime_router.replies.tool_calls import CallReader
from slime_router.types import ToolDelta
from slime_router.values import replace

_ODD = "\ufdd0"  # Unicode has it for use inside of programs only


class Tags(NamedTuple):
    """What values stand between, and the marks that end a call."""

    begin: str
    end: str
    marks: tuple[str, ...]


_GLM = Tags("<arg_value>", "</arg_value>", ("</tool_call>",))
_CODER = Tags("<parameter=", "</parameter>", ("</function>", "</tool_call>"))
TAGS: Mapping[str, Tags] = MappingProxyType(
    {
        "dots": Tags("<parameter ", "</parameter>", ("</invoke>", "</dots_function_call>")),
        "glm": _GLM,
        "glm45": _GLM,
        "glm47": _GLM,
        "hunyuan": _GLM._replace(marks=("</tool_call>", "</tool_calls>")),
        "iquest_q1": _GLM._replace(marks=("</iquest_tool_call>",)),
        "k2_horizon": Tags(
            "<ifm|arg_value>", "</ifm|arg_value>", ("</ifm|tool_call>", "</ifm|tool_calls>")
        ),
        "ling3": _GLM,
        "mimo": _CODER,
        "minicpm5": Tags("<param ", "</param>", ("</function>",)),
        "minimax-m2": Tags("<parameter ", "</parameter>", ("</invoke>", "</minimax:tool_call>")),
        "nanbeige": _CODER,
        "qwen3_coder": _CODER,
        "spark25": _GLM,
        "step3p5": _CODER,
    }
)


class TaggedCalls:
    """A reader of calls that hides the marks inside values from its parser."""

    def __init__(self, reader: CallReader, tags: Tags) -> None:
        self._reader = reader
        self._tags = tags
        self.marks = (*reader.marks, tags.begin, tags.end, *tags.marks)
        self._heads = tuple(tags.end[:length] for length in range(1, len(tags.end)))
        self._value: str | None = None  # the end of the one that is open
        self._held: list[str] = []  # from a mark in it on

    @property
    def holds_nothing(self) -> bool:
        """Whether no value is open, and the same of the reader: see `CallReader`."""
        return self._value is None and not self._held and self._reader.holds_nothing

    @property
    def hidden(self) -> int:
        """Calls that were read and are not given: one was asked for."""
        return self._reader.hidden

    def unread(self) -> str:
        """The text that neither content nor calls were made of yet."""
        return _plain(self._reader.unread()) + "".join(self._held)

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        """See `CallReader`."""
        pieces = self._told(text, is_last=is_last)
        content, deltas = "", tuple[ToolDelta, ...]()
        for number, piece in enumerate(pieces, 1):
            said, more = self._reader.read(piece, is_last=is_last and number == len(pieces))
            content, deltas = content + said, deltas + more
        return _plain(content), tuple(map(_plain_delta, deltas))

    def _told(self, text: str, *, is_last: bool) -> list[str]:
        """The pieces that the parser is given now."""
        begin, end, marks = self._tags
        held, value = self._held, self._value
        if text == begin:
            self._held, self._value = [], ""
            return [end, *held, text] if held else [text]
        if value is None:
            return [text]
        if text == end:
            self._held, self._value = [], None
            odd = [_ODD] if value.endswith(self._heads) else []  # some lose the end then
            return [*map(_hidden, held), *odd, text]
        self._value = (value + text)[-len(end) :]
        if not (held or text in marks):
            return [text]
        held.append(text)
        return [end, *held] if is_last else []


def _hidden(piece: str) -> str:
    """A piece of a value that is not a mark."""
    return piece[:1] + _ODD + piece[1:] if piece.startswith("<") else piece


def _plain(text: str) -> str:
    return text.replace(_ODD, "") if _ODD in text else text


def _plain_delta(delta: ToolDelta) -> ToolDelta:
    if _ODD not in delta.arguments:
        return delta
    return replace(delta, arguments=_plain(delta.arguments))
