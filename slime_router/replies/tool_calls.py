"""Tool calls read out of a reply's text by one of SGLang's parsers, and what those leave out.

What they drop is returned as the model wrote it: text that only looked like a call, arguments that
are not JSON, calls after such arguments. Some parse all of a call again with each piece of it,
which takes seconds for long arguments: inside JSON they are given fewer and longer pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slime_router.json_text import Braces, escaped_halves, finite, is_json
from slime_router.replies import leftovers
from slime_router.replies.call_ids import CallIds
from slime_router.replies.calls.broken_call import broken_call
from slime_router.replies.calls.spaces import Spaces
from slime_router.replies.detectors import CallDetector
from slime_router.replies.leftovers import ARGUMENTS, CALL, FRAME, without_control_tokens
from slime_router.replies.unknown_calls import UnknownCalls
from slime_router.types import ToolDelta

_SHORT_LEN = 256  # at most this much is read at once


class CallReader:
    """Reads the calls of one reply.

    `make` gives a fresh detector of SGLang's and `ids` name the calls.
    """

    def __init__(
        self,
        make: Callable[[], CallDetector],
        tools: list[Any],
        ids: CallIds,
        *,
        first_index: int = 0,
    ) -> None:
        self._make = make
        self._parser = make()
        self.marks = self._parser.tags  # that it must be given in one piece
        self._unknown = UnknownCalls(self._parser, tools)
        self._tools = tools
        names = [tool.function.name for tool in tools]
        self._frame = (self._parser.begin, self._parser.end, names)
        self._ids = ids
        self.is_unused = True  # no text has come
        self._first_index = first_index
        self._indexes: dict[int, int] = {}  # of calls: the parser's, and ours
        self._count = 0  # of calls that the parser named
        self._begun: dict[int, str] = {}  # calls whose name was given: their arguments so far
        self._raw = ""  # what is not content yet; in a call the text since its name
        self._unsaid = ""  # what was read since the parser said something
        self._is_left = False  # the last call ended, though the parser could not read it
        self._after = ""  # the text after such a call
        self._misread = ""  # what the parser wrongly took for arguments
        self._has_left_frame = False  # the frame of the last call has ended
        self._spaces = Spaces()
        self._held = ""  # what waits to be read together
        self._braces: Braces | None = None  # of the call that is read
        self._object_end = -1  # of that call in `_raw`, once it has come
        self._doubted: tuple[ToolDelta, ...] | None = None  # of a call that may turn out to be text
        self._written = ""  # all of that call
        self._is_rewritten = False  # the parser gives other content than the model wrote
        self._next: CallReader | None = None  # reads what follows a broken call

    @property
    def holds_nothing(self) -> bool:
        """Whether it is as if nothing had come: plain text may go past it then."""
        if self.is_unused:
            return True
        has_read = self._begun or self._count or self._next is not None or self._is_rewritten
        is_waiting = self._raw or self._unsaid or self._held
        return not (has_read or is_waiting) and self._parser.is_untouched

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        """Content and calls that one token's text adds; at the end also what was held back."""
        self.is_unused = False
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
        read = self._read if self._next is None else self._next.read  # since this piece
        rest, more = read(text, is_last=is_last)
        return content + rest, deltas + more

    def _boundary(self, text: str) -> int:
        """Where what waits is read whatever its length: after JSON, before a mark."""
        if self._braces is None:
            return 0 if self._held and self._is_mark(text) else -1
        end = self._braces.end(text)
        if end >= 0:
            self._braces = None
            self._object_end = len(self._raw) + len(self._held) + end
        return end

    def _can_wait(self, text: str) -> bool:
        """The pieces grow with what is parsed again with each of them, so that all cost as one."""
        held, again = len(self._held), len(self._raw)
        if held + again <= _SHORT_LEN or (self._braces is None and self._is_mark(text)):
            return False
        if self._begun and self._braces is None:  # most parsers take in what they read there
            again = self._parser.kept_len
        return _SHORT_LEN < held + again < 2 * again

    def _is_mark(self, text: str) -> bool:
        mark = text.strip()
        return bool((mark and mark in (self._parser.mark, *self.marks)) or FRAME.search(text))

    def _read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        if self._doubted is not None:
            self._written += text
        if self._is_between() and text.lstrip().startswith(","):
            text = self._parser.begin + text.lstrip()[1:]  # some forget the array
        self._unsaid += text
        had_begun = bool(self._begun)
        content, deltas = self._read_on(text, is_last=is_last)
        if self._next is not None:
            return content, deltas
        if any(delta.name for delta in deltas) and not self._unknown.has_said:
            said = self._said_before(deltas)
            content += "" if said.strip() in content else said  # some give it with the call
        may_fill = is_last or self._object_end < 0
        if may_fill and self._has_blank() and leftovers.is_empty_call(self._raw):
            deltas += self._filled()
        content, self._misread = content + self._said_after_frame(), ""
        if deltas or content.strip() or (content == self._unsaid and not (had_begun or is_last)):
            self._unsaid, self._after = self._after, ""
        elif is_last:
            content = self._left() or content
        content = self._spaces.without(content, has_calls=bool(deltas)) if had_begun else content
        if self._doubted is None:
            return content, deltas
        return self._decided(content, deltas, is_last=is_last)

    def _decided(
        self, content: str, deltas: tuple[ToolDelta, ...], *, is_last: bool
    ) -> tuple[str, tuple[ToolDelta, ...]]:
        """A call once its first argument has begun. It is text where that is no value, and where
        the call's own object has not ended with its frame.
        """
        assert self._doubted is not None
        before, deltas = ("" if self._doubted else content), (*self._doubted, *deltas)
        mark = self._parser.end.strip()
        written, rest, has_ended = leftovers.cut_frame(self._written, *self._frame)
        key = ARGUMENTS.search(written)
        body = written.removesuffix(mark)
        is_undecided = key is None or leftovers.has_no_value(body[key.end() :])
        is_held = is_undecided if len(mark) > 1 else key is None
        is_inside = self._braces is not None or self._object_end >= 0
        if is_held and is_inside and not (has_ended or is_last):
            self._doubted = deltas
            return content, ()
        self._doubted = None
        if not has_ended or key is None or not is_undecided or Braces().end(written) >= 0:
            return content, deltas
        text, more = self._as_text(written, rest, is_last=is_last, deltas=deltas)
        return before + text, more

    def _as_text(
        self, written: str, rest: str, *, is_last: bool, deltas: tuple[ToolDelta, ...]
    ) -> tuple[str, tuple[ToolDelta, ...]]:
        """Gives the last call as text, and reads what follows it."""
        index = max(self._begun)
        kept = tuple(delta for delta in deltas if delta.index != index)
        del self._begun[index]
        self._doubted = None
        return self._past(written, rest, is_last=is_last, deltas=kept, index=index)

    def _unreadable(self) -> str | None:
        """What follows a call that has ended and that the parser cannot read; None for others.

        SGLang's base detector waits on, and takes the arguments of the next call for its own.
        """
        given = self._begun[max(self._begun)]
        if self._object_end < 0 or not self._parser.has_named or is_json(given):
            self._object_end = -1
            return None
        after = self._raw[self._object_end :]
        length = leftovers.frame_end(after, self._parser.end.strip())
        return None if length < 0 else after[length:]

    def _past_unreadable(
        self, rest: str, *, is_last: bool, deltas: tuple[ToolDelta, ...]
    ) -> tuple[str, tuple[ToolDelta, ...]]:
        """Such a call as it was written; it is text where it has no arguments but other members."""
        self._object_end = -1
        written = self._written.removesuffix(rest)
        if self._doubted is not None and leftovers.is_no_call(written):
            return self._as_text(written, rest, is_last=is_last, deltas=(*self._doubted, *deltas))
        index, call = max(self._begun), self._raw.removesuffix(rest)
        arguments, later = leftovers.cut_call(call, *self._frame)
        lacking = leftovers.after(self._begun[index], arguments)
        self._begun[index] += lacking
        deltas += (ToolDelta(index, None, None, lacking),) if lacking else self._filled()
        if later:  # a quote too many hid where it ended
            return self._past("", later + rest, is_last=is_last, deltas=deltas, index=index + 1)
        self._parser.leave_call(rest)
        self._raw, self._after, self._is_left = rest, rest, True
        return "", deltas

    def _said_before(self, deltas: tuple[ToolDelta, ...]) -> str:
        """The text between a call that was named now and the one before."""
        read = [(delta.name, delta.arguments) for delta in deltas if delta.name]

        def is_call(text: str) -> bool:
            _, items = self._fresh(0)._parse(text, is_last=False)
            return [(each.name, each.parameters or "") for each in items if each.name] == read

        return leftovers.between_calls(
            self._unsaid, leftovers.call_start(self._unsaid, self._parser.mark, is_call)
        )

    def _said_after_frame(self) -> str:
        """The part of what was given as the last call's arguments that follows its frame."""
        if self._has_left_frame:
            return self._misread
        said = leftovers.after_call(self._misread)
        self._has_left_frame = bool(said)
        return said

    def _has_blank(self) -> bool:
        """Whether the last call was given no arguments yet."""
        return bool(self._begun) and not self._begun[max(self._begun)].strip()

    def _left(self) -> str:
        """What the parser has made nothing of, at the end."""
        if self._begun and is_json(self._begun[max(self._begun)]):
            return leftovers.after_call(self._unsaid)
        return leftovers.content_of(self._unsaid)  # written of a call that has not ended

    def _read_on(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        had_begun, was_inside = bool(self._begun), self._parser.has_calls
        self._raw += text
        content, items = self._parse(text, is_last=is_last)
        if is_last and had_begun and content not in self._unsaid:
            content = ""  # some give at the end what they gave as arguments before
        unknown, items = self._unknown.take(items, is_last=is_last)
        content += unknown
        read = self._raw
        deltas = tuple(delta for item in items for delta in self._deltas(item, text, read))
        if not self._begun:
            return self._as_written(content, is_last=is_last), deltas
        if (rest := self._unreadable()) is not None:
            return self._past_unreadable(rest, is_last=is_last, deltas=deltas)
        if had_begun:
            is_lost = was_inside and not self._parser.has_calls
            given = self._begun[max(self._begun)]
            found = broken_call(self._parser, self._raw, given, is_lost=is_lost, is_last=is_last)
            if found is not None:
                index = max(self._begun) + 1
                return self._past(*found, is_last=is_last, deltas=deltas, index=index)
        return self._finished(content, deltas) if is_last else (content, deltas)

    def _finished(
        self, content: str, deltas: tuple[ToolDelta, ...]
    ) -> tuple[str, tuple[ToolDelta, ...]]:
        """What the parser left of a last call that is not JSON, and the text after it."""
        index = max(self._begun)
        if is_json(self._begun[index]):
            return content, deltas
        written, later = leftovers.cut_call(self._raw, *self._frame)
        rest = leftovers.after(self._begun[index], written)
        deltas += (ToolDelta(index, None, None, rest),) if rest else ()
        if not later or not (self._parser.has_named or self._parser.finds_call(later)):
            return content, deltas
        return self._past("", later, is_last=True, deltas=deltas, index=index + 1)

    def _past(
        self,
        broken: str,
        rest: str,
        *,
        is_last: bool,
        deltas: tuple[ToolDelta, ...],
        index: int,
    ) -> tuple[str, tuple[ToolDelta, ...]]:
        """What is broken is content; a fresh reader takes what follows it, from call `index` on."""
        deltas, self._doubted = (*(self._doubted or ()), *deltas), None
        self._next, content = self._fresh(index), without_control_tokens(broken)
        for index in range(len(rest) + is_last):
            at_end = is_last and index == len(rest)
            more = self._next.read(rest[index : index + 1], is_last=at_end)
            content, deltas = content + more[0], deltas + more[1]
        return content, deltas

    def _fresh(self, first_index: int) -> CallReader:
        return CallReader(self._make, self._tools, self._ids, first_index=first_index)

    def _is_between(self) -> bool:
        """Whether a call of an array has ended and another may begin."""
        is_array = self._parser.begin.endswith("[")
        has_more = self._spaces.follow_text or self._unsaid.strip() not in ("", "}")
        if not is_array or has_more or not self._begun or "{" in self._parser.unread:
            return False
        return self._is_left or is_json(self._begun[max(self._begun)])

    def _as_written(self, content: str, *, is_last: bool) -> str:
        """The content before any call, with what the parser dropped from inside it."""
        end = self._raw.rfind(content) + len(content)
        if end < len(content):
            self._is_rewritten = True
        if is_last:
            end = len(self._raw)
        elif not content:
            return ""
        if self._is_rewritten:
            return content
        written, self._raw = self._raw[:end], self._raw[end:]
        if FRAME.search(written):
            written = written.removeprefix(self._parser.begin)
        return content if FRAME.search(written) else written

    def _parse(self, text: str, *, is_last: bool) -> tuple[str, list[Any]]:
        content, items = self._parser.read(text, self._tools)
        if is_last:
            more = items  # some give a name only, and its arguments with the next piece
            while more and (found := self._parser.read("", self._tools)[1]) != more:
                items += (more := found)  # never the same again: DeepSeek V3.1's repeats itself
            rest, late = self._parser.finish(self._tools)
            content, items = content + rest, [*items, *late]
        return content, items

    def _deltas(self, item: Any, text: str, read: str) -> tuple[ToolDelta, ...]:
        arguments = escaped_halves(item.parameters or "", read)
        if item.name:  # some number calls by their tools, or count some that they do not give
            self._indexes[item.tool_index] = self._first_index + self._count
            self._count += 1
        index = self._indexes.get(item.tool_index, -1)
        if item.name:
            before, arguments = self._filled(), finite(arguments, "", read)
            self._begun[index] = arguments
            call_id, is_random = self._ids.make(item.name, index, self._unsaid)
            self._enter(text)
            return (*before, ToolDelta(index, call_id, item.name, arguments, is_random))
        if index not in self._begun or not arguments:
            return ()
        arguments = finite(arguments, self._begun[index], read)
        if self._begun[index].endswith("}") and is_json(self._begun[index]):
            self._misread += arguments  # some return everything after the last call
            return ()
        self._begun[index] += arguments
        return (ToolDelta(index, None, None, arguments),)

    def _filled(self) -> tuple[ToolDelta, ...]:
        """What the last call lacks where it was given no arguments: they are an empty object."""
        if not self._has_blank():
            return ()
        last = max(self._begun)
        self._begun[last] += "{}"
        return (ToolDelta(last, None, None, "{}"),)

    def _enter(self, text: str) -> None:
        """A call's name was read, in `text`: are its arguments in the same JSON object?"""
        calls = list(CALL.finditer(self._raw))
        braces = Braces()
        is_open = bool(calls) and braces.end(self._raw[calls[-1].start() :]) < 0
        self._braces, self._object_end = braces if is_open else None, -1
        self._is_left = False
        if is_open:
            start = calls[-1].start()
            begin = self._raw.rfind(self._parser.call_begin, 0, start + 1)
            self._written, self._doubted = self._raw[begin if begin >= 0 else start :], ()
        self._raw = text
