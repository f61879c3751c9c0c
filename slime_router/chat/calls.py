"""Tool calls read out of a reply's text by one of SGLang's parsers, and what those leave out.

What they drop is given as the model wrote it: text that only looked like a call, arguments that
are no JSON, calls behind such arguments. Some read all of a call again with each piece of it, for
seconds where the arguments are long: inside JSON they are given fewer and longer pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson

from slime_router.types import ToolDelta

_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
_CALL = re.compile(r'\{[^{}]*"name"\s*:\s*"')
_FRAME = re.compile(r"<[|｜][^<>]*[|｜]>")  # control tokens, which are no content
_SHORT_LEN = 256  # up to so much is read at once


class _Braces:
    """Finds where a JSON object ends in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def end(self, text: str) -> int:
        """The index behind the last brace; -1 where the object goes on."""
        for index, letter in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif letter == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                self._is_escaped = letter == "\\"
            elif letter in "{}":
                self._depth += 1 if letter == "{" else -1
                if not self._depth:
                    return index + 1
        return -1


class CallReader:
    """Reads the calls of one reply.

    `make` gives a fresh parser of SGLang's and `new_id` the id of a call by its name and index.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        tools: list[Any],
        new_id: Callable[[str, int], str],
        *,
        is_parallel: bool,
        first_index: int = 0,
    ) -> None:
        self._make = make
        self._parser = make()
        self._tools = tools
        self._new_id = new_id
        self._is_parallel = is_parallel
        self._first_index = first_index
        self._indexes: dict[int, int] = {}  # of calls: the parser's, and ours
        self._begun: dict[int, str] = {}  # calls whose name was given: their arguments so far
        self._raw = ""  # what is no content yet; in a call the text since its name
        self._held = ""  # what waits to be read together
        self._braces: _Braces | None = None  # of the call that is read
        self._is_rewritten = False  # the parser gives other content than the model wrote
        self._next: CallReader | None = None  # reads what is behind a broken call

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        """Content and calls that one token's text adds; at the end also what was held back."""
        if self._next is not None:
            return self._next.read(text, is_last=is_last)
        content, deltas = "", tuple[ToolDelta, ...]()
        end = self._boundary(text)
        if end >= 0:
            content, deltas = self._read(self._held + text[:end], is_last=False)
            self._held, text = "", text[end:]
        self._held += text
        if not is_last and self._can_wait(text):
            return content, deltas
        text, self._held = self._held, ""
        if self._next is not None:  # since this piece
            rest, more = self._next.read(text, is_last=is_last)
        else:
            rest, more = self._read(text, is_last=is_last)
        return content + rest, deltas + more

    def _boundary(self, text: str) -> int:
        """Where what waits is read whatever its length: behind JSON, before a control token."""
        if self._braces is None:
            return 0 if self._held and _FRAME.search(text) else -1
        end = self._braces.end(text)
        if end >= 0:
            self._braces = None
        return end

    def _can_wait(self, text: str) -> bool:
        """Inside JSON the pieces grow with what was read, so that all of them cost as one."""
        if not _SHORT_LEN < len(self._held) + len(self._raw) < 2 * len(self._raw):
            return False
        return self._braces is not None or not (self._begun or _FRAME.search(text))

    def unread(self) -> str:
        """The text that neither content nor calls were made of yet."""
        if self._next is not None:
            return self._next.unread()
        return self._held if self._begun else self._raw + self._held

    def _read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        if self._is_between() and text.lstrip().startswith(","):
            text = str(self._parser.bot_token) + text.lstrip()[1:]  # some forget the array
        had_begun, was_inside = bool(self._begun), self._is_inside()
        self._raw += text
        content, items = self._parse(text, is_last=is_last)
        deltas = tuple(delta for item in items if (delta := self._delta(item, text)) is not None)
        if not self._begun:
            return self._as_written(content, is_last=is_last), deltas
        if had_begun:
            is_lost = was_inside and not self._is_inside()
            found = self._broken(is_lost=is_lost, is_last=is_last)
            if found is not None:
                return self._past(*found, is_last=is_last, deltas=deltas)
        if is_last:
            deltas += self._rest()
        if had_begun and not content.strip():
            content = ""  # line ends between calls
        return content, deltas

    def _is_inside(self) -> bool:
        """Whether the parser counts calls, and has begun to."""
        return getattr(self._parser, "current_tool_id", -1) >= 0

    def _broken(self, *, is_lost: bool, is_last: bool) -> tuple[str, str] | None:
        """A call behind another of which the parser makes none, and what is behind it.

        Of an unknown tool it forgets all it has read (`is_lost`), and would give what comes to the
        calls before; at other faults it stops, and keeps what it cannot read.
        """
        begin = self._begin()
        if is_lost:
            at = self._raw.rfind(begin if begin in self._raw else "{")
            return "", self._raw[max(at, 0) :]
        unread = str(getattr(self._parser, "_buffer", ""))
        if getattr(self._parser, "current_tool_name_sent", True) or len(unread) > len(self._raw):
            return None  # it reads a call, or keeps what it has read
        if is_last and begin not in unread:
            begin = "{"  # behind a separator
        if begin not in unread:
            return None
        broken = unread[unread.index(begin) :]
        end = str(getattr(self._parser, "eot_token", "") or "").strip()
        if len(end) > 1 and end in broken:
            head, _, behind = broken.partition(end)
            return head + end, behind
        return (broken, "") if is_last and len(broken) > len(begin) else None

    def _past(
        self, broken: str, behind: str, *, is_last: bool, deltas: tuple[ToolDelta, ...]
    ) -> tuple[str, tuple[ToolDelta, ...]]:
        """What is broken is content; a fresh reader takes what is behind it."""
        self._next = self._fresh(max(self._begun) + 1)
        content = without_control_tokens(broken)
        for index in range(len(behind) + is_last):
            at_end = is_last and index == len(behind)
            more = self._next.read(behind[index : index + 1], is_last=at_end)
            content, deltas = content + more[0], deltas + more[1]
        return content, deltas

    def _fresh(self, first_index: int) -> CallReader:
        return CallReader(
            self._make,
            self._tools,
            self._new_id,
            is_parallel=self._is_parallel,
            first_index=first_index,
        )

    def _is_between(self) -> bool:
        """Whether a call of an array has ended and another may begin."""
        is_array = str(getattr(self._parser, "bot_token", "")).endswith("[")
        if not is_array or not self._begun or "{" in str(getattr(self._parser, "_buffer", "")):
            return False
        return _is_json(self._begun[max(self._begun)])

    def _begin(self) -> str:
        """What each call begins with; those of an array have no mark of their own."""
        mark = str(getattr(self._parser, "bot_token", "") or "").strip()
        return "{" if mark.endswith("[") or not mark else mark

    def _as_written(self, content: str, *, is_last: bool) -> str:
        """The content before any call, with what the parser dropped from inside it."""
        end = self._raw.find(content) + len(content)
        if end < len(content):
            self._is_rewritten = True
        if is_last:
            end = len(self._raw)
        elif not content:
            return ""
        if self._is_rewritten:
            return content
        written, self._raw = self._raw[:end], self._raw[end:]
        if _FRAME.search(written):
            written = written.removeprefix(getattr(self._parser, "bot_token", "") or "")
        return content if _FRAME.search(written) else written

    def _parse(self, text: str, *, is_last: bool) -> tuple[str, list[Any]]:
        result = self._parser.parse_streaming_increment(text, self._tools)
        content, items = result.normal_text or "", list(result.calls or ())
        if is_last:
            more = items
            while more:  # some give a name only, and its arguments with the next piece
                more = list(self._parser.parse_streaming_increment("", self._tools).calls or ())
                items += more
            end = self._parser.finish(self._tools)
            content, items = content + (end.normal_text or ""), [*items, *(end.calls or ())]
        return content, items

    def _delta(self, item: Any, text: str) -> ToolDelta | None:
        arguments = item.parameters or ""
        if item.name:  # some count calls that they do not give
            self._indexes.setdefault(item.tool_index, self._first_index + len(self._indexes))
        index = self._indexes.get(item.tool_index, -1)
        if index > 0 and not self._is_parallel:
            return None
        if item.name and index not in self._begun:
            self._begun[index] = arguments
            self._enter(text)
            return ToolDelta(index, self._new_id(item.name, index), item.name, arguments)
        if index not in self._begun or not arguments:
            return None
        self._begun[index] += arguments
        return ToolDelta(index, None, None, arguments)

    def _enter(self, text: str) -> None:
        """A call's name was read, in `text`: are its arguments in the same JSON object?"""
        calls = list(_CALL.finditer(self._raw))
        braces = _Braces()
        is_open = bool(calls) and braces.end(self._raw[calls[-1].start() :]) < 0
        self._braces = braces if is_open else None
        self._raw = text

    def _rest(self) -> tuple[ToolDelta, ...]:
        """What the parser left of the last call where it is no JSON, and the calls behind it."""
        index = max(self._begun)
        given = self._begun[index]
        if _is_json(given):
            return ()
        key = _ARGUMENTS.search(self._raw)
        mark = str(getattr(self._parser, "eot_token", "") or "").strip()
        body, has_ended, behind = self._raw, "", ""
        if len(mark) > 1:
            body, has_ended, behind = body.partition(mark)
        if key is None:  # a call without any
            rest = "{}" if not given and body.rstrip().endswith("}") else ""
        else:
            rest = _behind(given, _opened(body[key.end() :], has_ended=bool(has_ended)))
        deltas = (ToolDelta(index, None, None, rest),) if rest else ()
        return deltas + self._later(behind, index + 1)

    def _later(self, text: str, first_index: int) -> tuple[ToolDelta, ...]:
        """The calls behind one at which the parser stopped."""
        if not self._parser.has_tool_call(text) or not self._is_parallel:
            return ()
        reader = self._fresh(first_index)
        deltas = [delta for letter in text for delta in reader.read(letter, is_last=False)[1]]
        return (*deltas, *reader.read("", is_last=True)[1])


def without_control_tokens(text: str) -> str:
    """The text without marks such as `<|end|>`."""
    return _FRAME.sub("", text)


def _opened(written: str, *, has_ended: bool) -> str:
    """Arguments without the brace that closes the call around them."""
    written = written.strip()
    if has_ended or written.count("}") > written.count("{"):
        written = written.removesuffix("]").rstrip().removesuffix("}").rstrip()
    return written


def _behind(given: str, written: str) -> str:
    """What is written behind `given`, which may be spaced otherwise."""
    at = 0
    for letter in "".join(given.split()):
        at += len(written[at:]) - len(written[at:].lstrip())
        if not written.startswith(letter, at):
            return ""
        at += 1
    return written[at:]


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True
