"""Replies taken apart: reasoning, content and tool calls, piece by piece as the text comes.

The formats are SGLang's (`sglang_parsers.py`). Its parsers are fed one token's text at a time:
some of them lose text when given longer pieces. What is held back is given at the end; what no
parser can read stays content. The held tokens are what was sampled, whatever is parsed here.

`ReplyReader` fills in what that makes of each chunk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from slime_router.replies.calls.nothing_lost import NothingLost
from slime_router.replies.detectors import ReasoningDetector
from slime_router.replies.harmony import HarmonyReader
from slime_router.replies.leftovers import without_control_tokens
from slime_router.replies.pieces import Marks, Pieces
from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import GenerateChunk, ToolDelta

logger = logging.getLogger(__name__)


class ReplyDelta(NamedTuple):
    """What a piece of text added to a reply."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolDelta, ...] = ()
    is_thinking: bool = False  # the piece was reasoning, tags included
    hidden_calls: int = 0  # calls after the first, where one was asked for


class ReplyParser:
    """Takes one reply apart.

    `ends` are control tokens that it must see although a generation may end with them. `marks` are
    those of its reasoning and calls, where it is known that text without them is not cut, and
    `thoughts` those that are looked for in reasoning. Where calls are not parallel, only the first
    is shown. With `strips_newlines` its content does not begin with the line breaks that follow
    reasoning.
    """

    def __init__(
        self,
        reasoning: ReasoningDetector | None,
        messages: HarmonyReader | None,
        calls: NothingLost | None,
        *,
        is_parallel: bool = True,
        ends: Collection[str] = (),
        marks: Marks | None = None,
        thoughts: Marks | None = None,
        strips_newlines: bool = False,
    ) -> None:
        self.ends = ends
        self._reasoning = reasoning
        self._messages = messages
        self._calls = calls
        self._is_parallel = is_parallel
        self._is_broken = False
        # All text, until something is made of it; of messages something always is.
        self._silent: str | None = "" if messages is None else None
        self._pieces: Pieces | None = None  # until some text has to be cut
        self.is_thinking = messages is not None and messages.is_thinking
        if reasoning is not None and reasoning.is_open:
            self.is_thinking = True
        self._may_strip = strips_newlines  # until the content has begun
        self._has_thought = self.is_thinking
        self._marks = marks if messages is None else None
        self._thoughts = thoughts if messages is None else None
        # Text without these may come in one piece, however long; None: it comes token by token.
        is_free = calls is None or calls.holds_nothing
        self.stops = self._stops() if is_free else None
        # Set while text in which it finds nothing is content, and need not be pushed.
        self._begins: Callable[[str], object] | None = None

    def is_content(self, text: str) -> bool:
        """Whether the next piece of text is content as it is, and need not be pushed."""
        return self._begins is not None and self._begins(text) is None

    def push(self, text: str, *, is_last: bool) -> ReplyDelta:
        """What a piece of text adds; at the end also what was held back."""
        pieces: Sequence[str]
        stops = self.stops
        if not is_last and self.is_content(text):
            return ReplyDelta(text)
        if stops is None or (stops.is_in(text) if is_last else stops.begins(text)) is not None:
            pieces = self._cut(text, is_last=is_last)
        elif self.is_thinking or self._may_strip:
            pieces = (text,)
        else:
            if text:
                self._silent, self._begins = None, stops.begins
            return ReplyDelta(text)
        whole = None
        for index, piece in enumerate(pieces, 1):
            delta = self._guarded(piece, is_last=is_last and index == len(pieces))
            whole = delta if whole is None else joined(whole, delta)
        marks = self._stops()
        self.stops = stops = marks if marks is not None and self._holds_nothing() else None
        has_begun = self._silent is None and not (self._may_strip or self.is_thinking)
        self._begins = stops.begins if stops is not None and has_begun else None
        if whole is None:
            return ReplyDelta(is_thinking=self.is_thinking)
        return self._without_ends(whole) if self.ends else whole

    def _stops(self) -> Marks | None:
        return self._thoughts if self.is_thinking else self._marks

    def _holds_nothing(self) -> bool:
        """Whether all text so far was given back, so that what follows stands by itself."""
        if self._is_broken or (self._pieces is not None and self._pieces.waiting):
            return False
        if self._reasoning is not None and not self._reasoning.holds_nothing:
            return False
        return self._calls is None or self._calls.holds_nothing

    def _without_ends(self, delta: ReplyDelta) -> ReplyDelta:
        """What was added without tokens that end replies, of which the format made nothing."""
        content = delta.content
        for end in self.ends:
            content = content.replace(end, "")
        return delta._replace(content=content)

    def _cut(self, text: str, *, is_last: bool) -> Sequence[str]:
        if self._pieces is None:
            tags = self._reasoning.tags if self._reasoning is not None else ()
            self._pieces = Pieces((*tags, *(self._calls.marks if self._calls is not None else ())))
        return self._pieces.cut(text, is_last=is_last) or ([""] if is_last else ())

    def _guarded(self, text: str, *, is_last: bool) -> ReplyDelta:
        if self._is_broken:
            return ReplyDelta(text)
        try:
            delta = self._push(text, is_last=is_last)
        except Exception:  # SGLang's parsers may raise anything on what models write
            logger.exception("a reply could not be taken apart: the rest of it stays text")
            self._is_broken = True
            return ReplyDelta((self._calls.unread() if self._calls is not None else "") + text)
        if self._silent is None:
            return delta
        is_silent = not (delta.content or delta.reasoning or delta.tool_calls)
        self._silent = self._silent + text if is_silent else None
        if self._silent and is_last:
            return delta._replace(content=self._without_marks(self._silent))
        return delta

    def _without_marks(self, text: str) -> str:
        """What is left to show of a text that its format made nothing of."""
        if self._reasoning is not None:
            text = text.replace(self._reasoning.begin, "").replace(self._reasoning.end, "")
        return without_control_tokens(text) if text.strip() else ""

    def _push(self, text: str, *, is_last: bool) -> ReplyDelta:
        reasoning, was_thinking, is_open = "", self.is_thinking, False
        if self._reasoning is not None:
            reasoning, text = self._reasoning.read(text)
            if is_last:
                more = self._reasoning.finish()
                reasoning, text = reasoning + more[0], text + more[1]
            is_open = self._reasoning.is_open
        calls: tuple[ToolDelta, ...] = ()
        if self._messages is not None:
            read = self._messages.push(text, is_last=is_last)
            text, reasoning, calls = read.content, reasoning + read.reasoning, read.tool_calls
            is_open = is_open or self._messages.is_thinking
        self.is_thinking = is_open
        if self._calls is not None and (text or is_last or not self._calls.holds_nothing):
            text, more_calls = self._calls.read(text, is_last=is_last)
            calls += more_calls
        is_thinking = was_thinking or is_open or bool(reasoning)
        if self._may_strip:
            self._has_thought = self._has_thought or is_thinking
            text = text.lstrip("\r\n") if self._has_thought else text
            self._may_strip = not (text or calls)
        if self._is_parallel:
            return ReplyDelta(text, reasoning, calls, is_thinking)
        hidden = sum(bool(delta.name) for delta in calls if delta.index)
        shown = tuple(delta for delta in calls if not delta.index)
        return ReplyDelta(text, reasoning, shown, is_thinking, hidden)


def joined(first: ReplyDelta, then: ReplyDelta) -> ReplyDelta:
    """What two pieces added, one after the other."""
    return ReplyDelta(
        first.content + then.content,
        first.reasoning + then.reasoning,
        first.tool_calls + then.tool_calls,
        first.is_thinking or then.is_thinking,
        first.hidden_calls + then.hidden_calls,
    )


_WINDOW = 128  # tokens that are looked at together


class ReplyReader:
    """Fills in what a chat client sees of each chunk: content, reasoning, tool calls."""

    def __init__(self, visible: VisibleText, parser: ReplyParser | None) -> None:
        self._visible = visible
        self._parser = parser
        self._ahead: str | None = None  # of the next chunk: its text, which was decoded already

    def read(self, chunk: GenerateChunk) -> Sequence[GenerateChunk]:
        """The next chunk, filled in; the last one has `finish`.

        A chunk says reasoning, then text, then calls. Where it holds more than that, it is cut
        in several, so that the order of what was said does not hang on how the tokens came.
        """
        ids, finish, parser = chunk.output_ids, chunk.finish, self._parser
        if parser is not None and len(ids) > 1:
            return self._read_each(chunk, parser)
        if self._ahead is None:
            text = self._visible.push(ids, finish)
        else:
            text, self._ahead = self._ahead, None
        if parser is None or parser.is_content(text):
            # Made for each token: `_replace` takes twice as long.
            return (tuple.__new__(GenerateChunk, (*chunk[:3], text, *chunk[4:])),)
        if not text and finish is None:  # part of a character
            return (chunk._replace(reasoning_tokens=len(ids) * parser.is_thinking),)
        delta = parser.push(text, is_last=finish is not None)
        if delta.reasoning or delta.tool_calls or delta.is_thinking or delta.hidden_calls:
            return (_filled(chunk, delta, len(ids) * delta.is_thinking),)
        return (chunk._replace(text=delta.content),)

    def text_of(self, ids: list[int]) -> str | None:
        """The text of the next tokens, none of which is the last, if it is content as it is.

        None for all else: then a chunk of these tokens is to be read next.
        """
        parser = self._parser
        if parser is None:
            return self._visible.push(ids, None)
        if len(ids) > 1:
            return None
        text = self._visible.push(ids, None)
        if parser.is_content(text):
            return text
        self._ahead = text
        return None

    def _read_each(self, chunk: GenerateChunk, parser: ReplyParser) -> Sequence[GenerateChunk]:
        """Token by token, as some parsers lose text from longer pieces; but runs at once."""
        parts: list[GenerateChunk] = []
        start, thoughts, said = 0, 0, ReplyDelta()
        finish, ids = chunk.finish, chunk.output_ids
        index, count = 0, len(ids)
        run = self._run(ids, 0, parser, has_end=finish is not None)
        if finish is not None and len(run) == count:  # a whole reply without a mark, mostly
            said = parser.push(self._visible.push(run, finish), is_last=True)
            return [_filled(chunk, said, count * said.is_thinking)]
        while index < count:
            run = run if not index else self._run(ids, index, parser, has_end=finish is not None)
            is_last = finish is not None and index + len(run) == count
            text = self._visible.push(run, finish if is_last else None)
            is_thinking = parser.is_thinking
            if text or is_last:
                delta = parser.push(text, is_last=is_last)
                if _is_out_of_order(said, delta):
                    parts.append(_filled(_before(chunk, start, index), said, thoughts))
                    start, thoughts, said = index, 0, ReplyDelta()
                said, is_thinking = joined(said, delta), delta.is_thinking
            thoughts += len(run) * is_thinking
            index += len(run)
        if start:  # the rest, with all that ends the chunk
            chunk = chunk.cut(start, len(chunk.output_ids))._replace(prompt=None)
        return [*parts, _filled(chunk, said, thoughts)]

    def _run(
        self, ids: Sequence[int], start: int, parser: ReplyParser, *, has_end: bool
    ) -> Sequence[int]:
        """The next tokens that are read together: up to where a mark may begin, or else one."""
        stops = parser.stops
        if stops is None:
            return ids[start : start + 1]
        run = ids[start : start + _WINDOW]
        are_last = has_end and start + len(run) == len(ids)
        return run[: self._visible.run_len(stops.begins_in, run, are_last=are_last) or 1]


def _filled(chunk: GenerateChunk, said: ReplyDelta, thoughts: int) -> GenerateChunk:
    return chunk._replace(
        text=said.content,
        reasoning=said.reasoning,
        tool_calls=said.tool_calls,
        reasoning_tokens=thoughts,
        hidden_calls=said.hidden_calls,
    )


def _is_out_of_order(said: ReplyDelta, delta: ReplyDelta) -> bool:
    """Whether what is said now comes, in a chunk, before what was said already."""
    if delta.reasoning and (said.content or said.tool_calls):
        return True
    return bool(delta.content and said.tool_calls)


def _before(chunk: GenerateChunk, start: int, end: int) -> GenerateChunk:
    """The tokens `[start, end)` alone: they do not end the chunk."""
    return chunk.cut(start, end)._replace(
        finish=None,
        prompt=None if start else chunk.prompt,
        weight_versions=(),
        routed_experts=None,
        indexer_topk=None,
        item=None,
    )
