"""Arguments between tags, in which a model may write what ends or begins a call in its format.

SGLang's parsers end the call at the first `</tool_call>`, in the middle of a value, too. Here a
mark in an open value waits for what comes next. Where the value is closed, the mark was a part of
it, and is given to the parser with a character in it that no text has; that one is taken out
again. Where another value begins, or the reply ends, the model forgot to close the value: then it
is closed before the mark. So it is where another call begins, which may have values of its own if
it is only quoted.
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
    """What values stand between, and the marks that end a call and begin one, innermost first.

    The first `closing` of the ends end a call whose end is missing.
    """

    begin: str
    end: str
    marks: tuple[str, ...]
    calls: tuple[str, ...]
    closing: int = 1


def _tagged(value: str, name: str, *frames: str, head: str = "<") -> Tags:
    """Tags whose names begin with `value`, and `frames` around them; their ends begin with `</`."""
    tail = head[1:]
    begins = tuple(f"{head}{frame}" for frame in frames)
    ends = tuple(f"</{tail}{frame.rstrip(' =>')}>" for frame in frames)
    return Tags(f"{head}{value}", f"</{tail}{name}>", ends, begins)


_GLM = _tagged("arg_value>", "arg_value", "tool_call>")
_CODER = _tagged("parameter=", "parameter", "function=", "tool_call>")._replace(closing=2)


def _invokes(block: str, *, head: str = "<", space: str = "") -> Tags:
    names = (f"{space}parameter ", f"{space}parameter", f"{space}invoke ", f"{block}>")
    return _tagged(*names, head=head)


TAGS: Mapping[str, Tags] = MappingProxyType(
    {
        "deepseekv32": _invokes("function_calls", head="<｜DSML｜"),
        "deepseekv4": _invokes("tool_calls", head="<｜DSML｜"),
        "deepseekv41": _invokes(" calls", head="<｜DSML｜", space=" "),
        "dots": _invokes("dots_function_call"),
        "gigachat35": _invokes("tool_calls", head="<｜GCML｜"),
        "glm": _GLM,
        "glm45": _GLM,
        "glm47": _GLM,
        "hunyuan": _tagged("arg_value>", "arg_value", "tool_call>", "tool_calls>"),
        "iquest_q1": _tagged("arg_value>", "arg_value", "iquest_tool_call>"),
        "k2_horizon": _tagged("arg_value>", "arg_value", "tool_call>", "tool_calls>", head="<ifm|"),
        "kimi_k2": Tags(  # all arguments are one value, which the end of the call ends
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
            ("", "<|tool_calls_section_end|>"),
            ("<|tool_call_begin|>", "<|tool_calls_section_begin|>"),
        ),
        "kimi_k3": Tags(
            "<|open|>argument ",
            "<|close|>argument<|sep|>",
            ("<|close|>call<|sep|>", "<|close|>tools<|sep|>"),
            ("<|open|>call ", "<|open|>tools<|sep|>"),
        ),
        "ling3": _GLM,
        "mimo": _CODER,
        "minicpm5": _tagged("param ", "param", "function "),
        "minimax-m2": _invokes("minimax:tool_call"),
        "muse": Tags(
            "<atem:parameter ",
            "</atem:parameter>",
            ("</atem:invoke>", "</atem:function_calls>", "<|eom|>"),
            ("<atem:invoke ", "<atem:function_calls>", "<|start|>"),
        ),
        "nanbeige": _CODER,
        "poolside_v1": _GLM,
        "qwen3_coder": _CODER,
        "spark25": _GLM,
        "step3": Tags(
            "<steptml:parameter ",
            "</steptml:parameter>",
            ("<｜tool_call_end｜>", "<｜tool_calls_end｜>"),
            ("<｜tool_call_begin｜>", "<｜tool_calls_begin｜>"),
        ),
        "step3p5": _CODER,
    }
)


class TaggedCalls:
    """A reader of calls that hides the marks inside values from its parser."""

    def __init__(self, reader: CallReader, tags: Tags) -> None:
        self._reader = reader
        self._tags = tags
        own = (tags.begin, tags.end, *filter(None, tags.marks), *tags.calls)
        self.marks = (*reader.marks, *own)
        self._heads = tuple(tags.end[:length] for length in range(1, len(tags.end)))
        self._value: str | None = None  # the end of the one that is open
        self._held: list[str] = []  # from a mark in it on
        self._quoted = 0  # values that are open in what is held
        self._has_values = False  # the call that is read, which has not ended

    @property
    def holds_nothing(self) -> bool:
        """Whether no value is open, and the same of the reader: see `CallReader`."""
        return self._value is None and not self._held and self._reader.holds_nothing

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        """See `CallReader`."""
        pieces = self._pieces(text)
        while is_last and self._held:
            pieces += self._closed()
        if is_last and not pieces:
            pieces = [""]
        content, deltas = "", tuple[ToolDelta, ...]()
        for number, piece in enumerate(pieces, 1):
            said, more = self._reader.read(piece, is_last=is_last and number == len(pieces))
            content, deltas = content + said, deltas + more
        return _plain(content), tuple(map(_plain_delta, deltas))

    def _pieces(self, text: str) -> list[str]:
        """The pieces that the parser is given now."""
        begin, end, marks, calls, _ = self._tags
        held, value = self._held, self._value
        if value is None or (text == begin and not held):
            self._value = "" if text == begin else None
            ends = self._unended(text)
            self._has_values = text == begin or (self._has_values and text not in marks)
            return [*ends, text]
        if text == end and not self._quoted:
            self._held, self._value = [], None
            odd = [_ODD] if value.endswith(self._heads) else []  # some lose the end then
            return [*map(_hidden, held), *odd, text]
        self._value = (value + text)[-len(end) :]
        if not (held or text in marks or text in calls):
            return [text]
        held.append(text)
        self._quoted += (text == begin) - (text == end)
        return self._closed() if self._quoted > (held[0] in calls) else []

    def _closed(self) -> list[str]:
        """The end of the value, and of the call if another begins, and what was held."""
        begin, end, _, calls, _ = self._tags
        held, self._held, self._value, self._quoted = self._held, [], None, 0
        if held[0] in calls and begin not in held:  # no call has come of it
            return [*map(_hidden, held)]
        told = [piece for piece in held for piece in self._pieces(piece)]
        return [end, *told]

    def _unended(self, text: str) -> tuple[str, ...]:
        """What ends the call that is read, where another begins with `text`."""
        _, _, marks, calls, closing = self._tags
        if not self._has_values or text not in calls:
            return ()
        self._has_values = False
        return tuple(filter(None, marks[: min(closing, calls.index(text) + 1)]))


def _hidden(piece: str) -> str:
    """A piece of a value that is not a mark."""
    return piece[:1] + _ODD + piece[1:] if piece.startswith("<") else piece


def _plain(text: str) -> str:
    return text.replace(_ODD, "") if _ODD in text else text


def _plain_delta(delta: ToolDelta) -> ToolDelta:
    if _ODD not in delta.arguments:
        return delta
    return replace(delta, arguments=_plain(delta.arguments))
