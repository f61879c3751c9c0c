"""A reply as the events of Anthropic's stream, before they are written.

First comes the start of the message; then its blocks, one after the other, each with its start,
deltas and stop; then why the reply ended and its usage; last the stop of the message.

A thinking block is signed with the turn's id: agents send it back unchanged, so the turn can be
recognised whatever else they rewrite. A tool's arguments are passed on as they come while they can
still become an object (see `inputs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from slime_router.api.anthropic.inputs import StreamedInput
from slime_router.api.chat.reply import Tally
from slime_router.types import Finish, GenerateChunk, ToolDelta

Event: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MessageStyle:
    """What stays the same throughout a reply."""

    id: str
    model: str
    hides_thinking: bool = False  # its blocks are there, and signed, but empty


@dataclass(slots=True)
class _Block:
    """One block: text, thinking, or a tool use."""

    index: int
    type: str
    input: StreamedInput = field(default_factory=StreamedInput)  # of a tool use


class MessageEvents:
    """The events of one message."""

    def __init__(self, style: MessageStyle) -> None:
        self._style = style
        self._tally = Tally()
        self._has_begun = False
        self._turn = ""
        self._count = 0  # blocks
        self._open: _Block | None = None
        self._calls: dict[int, _Block] = {}
        self._later: list[tuple[str, str]] = []  # what was said while a call was open

    def of_chunk(self, chunk: GenerateChunk) -> Sequence[Event]:
        """The events of the next chunk. Raises RouterError if the worker gave up."""
        self._tally.add(chunk)
        events = []
        if not self._has_begun:
            self._has_begun = True
            self._turn = chunk.prompt.receipt.turn if chunk.prompt is not None else ""
            events.append(self._start())
        if chunk.reasoning:
            events += self._say("thinking", chunk.reasoning)
        if chunk.text:
            events += self._say("text", chunk.text)
        for call in chunk.tool_calls:
            events += self._call(call, is_last=chunk.finish is not None)
        if chunk.finish is not None:
            while self._open is not None:
                events += self._close(is_cut=chunk.finish.type == "length")
            events += self._end(chunk.finish)
        return events

    def of_text(self, text: str, tokens: int) -> Sequence[Event]:
        """The events of a chunk that differs from the one before only in its tokens, a text."""
        self._tally.completion += tokens
        return self._say("text", text) if text else ()

    def _say(self, kind: str, text: str) -> list[Event]:
        """Text or thinking; blocks do not overlap, so it waits until an open call has ended."""
        if self._open is not None and self._open.type == "tool_use":
            self._later.append((kind, text))
            return []
        events = []
        if self._open is None or self._open.type != kind:
            empty = {"type": "text", "text": ""}
            if kind == "thinking":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
            events += [*self._close(), self._begin(empty)]
        if kind == "thinking" and self._style.hides_thinking:
            return events
        assert self._open is not None
        return [*events, _delta(self._open, {"type": f"{kind}_delta", kind: text})]

    def _call(self, call: ToolDelta, *, is_last: bool) -> list[Event]:
        events = []
        if call.index not in self._calls:
            while self._open is not None:
                events += self._close()
            block: dict[str, Any] = {
                "type": "tool_use",
                "id": call.id,
                "name": call.name,
                "input": {},
            }
            events.append(self._begin(block))
            assert self._open is not None
            self._calls[call.index] = self._open
        called = self._calls[call.index]
        return [*events, *_input(called, called.input.push(call.arguments, is_last=is_last))]

    def _begin(self, content: dict[str, Any]) -> Event:
        self._open = _Block(self._count, content["type"])
        self._count += 1
        return {
            "type": "content_block_start",
            "index": self._open.index,
            "content_block": content,
        }

    def _close(self, *, is_cut: bool = False) -> list[Event]:
        """The end of the open block, and what was waiting for it."""
        block, self._open = self._open, None
        if block is None:
            return []
        events = []
        if block.type == "thinking":
            events.append(_delta(block, {"type": "signature_delta", "signature": self._turn}))
        events += _input(block, block.input.end(is_cut=is_cut))
        events.append({"type": "content_block_stop", "index": block.index})
        later, self._later = self._later, []
        for kind, text in later:
            events += self._say(kind, text)
        return events

    def _start(self) -> Event:
        message: dict[str, Any] = {
            "id": self._style.id,
            "type": "message",
            "role": "assistant",
            "model": self._style.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(of_prompt=True),
        }
        return {"type": "message_start", "message": message}

    def _end(self, finish: Finish) -> list[Event]:
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        if finish.type == "length":
            delta["stop_reason"] = "max_tokens"
        elif self._calls:
            delta["stop_reason"] = "tool_use"
        elif isinstance(finish.matched, str):
            delta = {"stop_reason": "stop_sequence", "stop_sequence": finish.matched}
        return [
            {"type": "message_delta", "delta": delta, "usage": self._usage()},
            {"type": "message_stop"},
        ]

    def _usage(self, *, of_prompt: bool = False) -> dict[str, Any]:
        """Anthropic's usage: cached tokens do not count as input tokens."""
        usage = self._tally.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        thinking = usage["completion_tokens_details"]["reasoning_tokens"]
        sampled = usage["completion_tokens"]
        if of_prompt:
            sampled = thinking = 0
        return {
            "input_tokens": max(usage["prompt_tokens"] - cached, 0),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": sampled,
            "output_tokens_details": {"thinking_tokens": thinking},
        }


def _input(block: _Block, text: str) -> list[Event]:
    return [_delta(block, {"type": "input_json_delta", "partial_json": text})] if text else []


def _delta(block: _Block, delta: dict[str, Any]) -> Event:
    return {"type": "content_block_delta", "index": block.index, "delta": delta}
