"""Chunks written as OpenAI responses: one body, or a stream of named events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from aiohttp import web

from slime_router.api.errors import ErrorStyle, openai_error, openai_error_object
from slime_router.api.responses.events import Keep, ResponseEvents, ResponseStyle
from slime_router.api.sse import named_event
from slime_router.errors import RouterError
from slime_router.types import GenerateChunk

__all__ = ["RESPONSES_ERRORS", "ResponseBody", "ResponseStream", "ResponseStyle"]

_OWN_NAMES = (  # of fields that the chat modules name differently; the first match wins
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
)


class ResponseStream:
    """One streamed response. No `[DONE]` belongs to it: its last event says that it ended."""

    def __init__(self, style: ResponseStyle, keep: Keep) -> None:
        self._events = ResponseEvents(style, keep)
        self.text_event = self._text_event if style.entries is None else None

    def _text_event(self, text: str, tokens: int) -> bytes:
        return b"".join(map(named_event, self._events.of_text(text, tokens)))

    def events(self, chunk: GenerateChunk) -> Iterable[bytes]:
        """The events of one chunk. Raises RouterError where the worker gave up."""
        assert chunk.sample == 0, "one response, one generation"
        return [named_event(event) for event in self._events.of_chunk(chunk)]

    def closing(self) -> Iterable[bytes]:
        """Nothing: the last chunk ends the response."""
        return ()

    def failure(self, exc: RouterError) -> bytes:
        """An error after the first byte: the response has failed, and why."""
        error = openai_error_object(_in_own_words(exc))["error"]
        return b"".join(named_event(event) for event in self._events.failure(exc, error))


class ResponseBody:
    """One response in one piece: the one that a stream's last event would have carried."""

    def __init__(self, style: ResponseStyle, keep: Keep) -> None:
        self._events = ResponseEvents(style, keep)
        self._response: dict[str, Any] = {}

    def add(self, chunk: GenerateChunk) -> None:
        """Takes a chunk. Raises RouterError where the worker gave up."""
        assert chunk.sample == 0, "one response, one generation"
        events = self._events.of_chunk(chunk)
        if chunk.finish is not None:
            self._response = events[-1]["response"]

    def body(self) -> bytes:
        """The JSON of the whole response."""
        return orjson.dumps(self._response)


def responses_error(exc: RouterError, _: str = "") -> web.Response:
    """OpenAI's reply, with the names that fields have in this API."""
    return openai_error(_in_own_words(exc))


RESPONSES_ERRORS = ErrorStyle(responses_error)


def _in_own_words(exc: RouterError) -> RouterError:
    """The same error; a field that it names has its name of this API."""
    for chat, own in _OWN_NAMES:
        if exc.say_as(chat, own):
            break
    return exc
