"""Anthropic messages as they go out: one body, or a stream of events; and their errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from aiohttp import web

from slime_router.api.anthropic.events import Event, MessageEvents, MessageStyle
from slime_router.api.anthropic.inputs import whole_input
from slime_router.api.errors import ErrorStyle, openai_error
from slime_router.api.sse import named_event
from slime_router.errors import ContextLengthExceeded, RouterError
from slime_router.types import GenerateChunk

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
THREAD_UNSUPPORTED = "thread_unsupported_request"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_TOO_LONG = "prompt is too long"  # agents that see this shorten the conversation


class MessageStream:
    """One streamed message."""

    def __init__(self, style: MessageStyle, request_id: str) -> None:
        self._events = MessageEvents(style)
        self._request_id = request_id

    def text_event(self, text: str, tokens: int) -> bytes:
        """The events of a chunk that is just text."""
        return b"".join(map(named_event, self._events.of_text(text, tokens)))

    def events(self, chunk: GenerateChunk) -> Iterable[bytes]:
        """The events of one chunk. Raises RouterError where the worker gave up."""
        assert chunk.sample == 0, "one message, one generation"
        return [named_event(event) for event in self._events.of_chunk(chunk)]

    def closing(self) -> Iterable[bytes]:
        """The last chunk's events are the last."""
        return ()

    def failure(self, exc: RouterError) -> bytes:
        """An error after the first byte."""
        return named_event(error_object(exc, self._request_id))


class MessageBody:
    """One message in one piece: the events of the stream, folded together."""

    def __init__(self, style: MessageStyle) -> None:
        self._events = MessageEvents(style)
        self._message: dict[str, Any] = {}
        self._blocks: list[_FoldedBlock] = []

    def add(self, chunk: GenerateChunk) -> None:
        """Takes a chunk. Raises RouterError where the worker gave up."""
        assert chunk.sample == 0, "one message, one generation"
        for event in self._events.of_chunk(chunk):
            self._fold(event)

    def body(self) -> bytes:
        """The JSON of the whole reply."""
        content = [block.whole() for block in self._blocks]
        return orjson.dumps({**self._message, "content": content})

    def _fold(self, event: Event) -> None:
        match event["type"]:
            case "message_start":
                self._message = event["message"]
            case "content_block_start":
                self._blocks.append(_FoldedBlock(event["content_block"]))
            case "content_block_delta":
                self._blocks[event["index"]].add(event["delta"])
            case "message_delta":
                self._message |= {**event["delta"], "usage": event["usage"]}


class _FoldedBlock:
    """A block and its deltas."""

    def __init__(self, block: dict[str, Any]) -> None:
        self._block = block
        self._texts: list[str] = []

    def add(self, delta: dict[str, Any]) -> None:
        match delta:
            case {"type": "signature_delta", "signature": signature}:
                self._block["signature"] = signature
            case {"text": text} | {"thinking": text} | {"partial_json": text}:
                self._texts.append(text)

    def whole(self) -> dict[str, Any]:
        text = "".join(self._texts)
        kind = self._block["type"]
        if kind == "tool_use":  # as it is written: its numbers may be longer than ours
            return {**self._block, "input": orjson.Fragment(whole_input(text))}
        return {**self._block, kind: text}


def messages_error(exc: RouterError, request_id: str) -> web.Response:
    """Anthropic's reply; its status, and whether to ask again, are as in every API."""
    response = openai_error(exc)
    response.body = orjson.dumps(error_object(exc, request_id))
    return response


def error_object(exc: RouterError, request_id: str) -> dict[str, Any]:
    """Anthropic's error object. It has no place for the field at fault: the message names it."""
    message = exc.message
    if exc.code == ContextLengthExceeded.code:
        message = f"{_TOO_LONG}: {message}"
    elif exc.param is not None and exc.param not in message:
        message = f"{exc.param}: {message}"
    kind = "api_error" if exc.status >= 500 else "invalid_request_error"
    error: dict[str, Any] = {"type": _ERROR_TYPES.get(exc.status, kind), "message": message}
    if exc.code == THREAD_UNSUPPORTED:  # the SDK reads it, and sends the whole conversation
        error["details"] = {"error_code": THREAD_UNSUPPORTED, "unsupported": [exc.param]}
    return {"type": "error", "error": error, "request_id": request_id}


ANTHROPIC_ERRORS = ErrorStyle(messages_error, id_headers=("x-request-id", "request-id"))
