"""What a chat client sees of each chunk: content, reasoning, tool calls."""

from __future__ import annotations

from collections.abc import Sequence

from slime_router.replies.parser import ReplyDelta, ReplyParser, joined
from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import GenerateChunk

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
