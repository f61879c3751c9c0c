"""What a chat client sees of each chunk: content, reasoning, tool calls."""

from __future__ import annotations

from dataclasses import replace

from slime_router.replies.parser import ReplyDelta, ReplyParser
from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import GenerateChunk


class ReplyReader:
    """Fills in what a chat client sees of each chunk: content, reasoning, tool calls."""

    def __init__(self, visible: VisibleText, parser: ReplyParser | None) -> None:
        self._visible = visible
        self._parser = parser

    def read(self, chunk: GenerateChunk) -> list[GenerateChunk]:
        """The next chunk, filled in; the last one has `finish`.

        A chunk says reasoning, then text, then calls. Where it holds more than that, it is cut
        in several, so that the order of what was said does not hang on how the tokens came.
        """
        if self._parser is None:
            chunk.text = self._visible.push(chunk.output_ids, chunk.finish)
            return [chunk]
        parts, start = [], 0
        # Token by token: from longer pieces some parsers lose text.
        ids = chunk.output_ids
        steps = [ids] if len(ids) < 2 else [[token_id] for token_id in ids]
        for index, step in enumerate(steps):
            is_last = chunk.finish is not None and index == len(steps) - 1
            text = self._visible.push(step, chunk.finish if is_last else None)
            if not (text or is_last):  # part of a character
                chunk.reasoning_tokens += self._parser.is_thinking
                continue
            delta = self._parser.push(text, is_last=is_last)
            has_begun = bool(chunk.text or chunk.tool_calls)
            if has_begun and _is_out_of_order(chunk, delta):
                part, chunk = _cut(chunk, index - start)
                parts.append(part)
                start = index
            chunk.text += delta.content
            chunk.reasoning += delta.reasoning
            chunk.tool_calls += delta.tool_calls
            chunk.reasoning_tokens += delta.is_thinking
            chunk.hidden_calls += delta.hidden_calls
        return [*parts, chunk]


def _is_out_of_order(chunk: GenerateChunk, delta: ReplyDelta) -> bool:
    """Whether what is said now comes, in a chunk, before what was said already."""
    if delta.reasoning and (chunk.text or chunk.tool_calls):
        return True
    return bool(delta.content and chunk.tool_calls)


def _cut(chunk: GenerateChunk, count: int) -> tuple[GenerateChunk, GenerateChunk]:
    """The first `count` tokens with all that was said; and the rest, not parsed yet."""
    logprobs, tops = chunk.logprobs, chunk.top_logprobs
    before = replace(
        chunk,
        output_ids=chunk.output_ids[:count],
        logprobs=logprobs and logprobs[:count],
        top_logprobs=tops and tops[:count],
        finish=None,
        weight_versions=(),
        routed_experts=None,
        item=None,
    )
    after = replace(
        chunk,
        output_ids=chunk.output_ids[count:],
        logprobs=logprobs and logprobs[count:],
        top_logprobs=tops and tops[count:],
        text="",
        reasoning="",
        tool_calls=(),
        reasoning_tokens=0,
        hidden_calls=0,
        prompt=None,
    )
    return before, after
