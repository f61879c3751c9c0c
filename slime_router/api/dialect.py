"""A dialect: how one API's requests are read, and how its replies and errors are written.

Each API is a folder with one dialect; `slime_router.api.endpoint` serves them all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias

from aiohttp import web

from slime_router.api import sse
from slime_router.api.context import EndpointContext
from slime_router.api.errors import OPENAI_ERRORS, ErrorStyle
from slime_router.api.request import A
from slime_router.errors import RouterError
from slime_router.template.heard import Spoken
from slime_router.types import GenerateChunk

TextEvent: TypeAlias = Callable[[str, int], bytes]


class StreamedReply(Protocol):
    """Writes chunks as events."""

    @property
    def text_event(self) -> TextEvent | None:
        """Writes a chunk that differs from the one before only in its tokens; of a single sample.

        Called with the text that the client sees of the tokens, and their number; returns nothing
        to write (b"") where that adds no event. None for a format that needs the chunk itself.
        """

    def events(self, chunk: GenerateChunk) -> Iterable[bytes]:
        """The events for a chunk of any sample. Raises RouterError to end the stream."""

    def closing(self) -> Iterable[bytes]:
        """The events between the last chunk's and the end of the stream."""

    def failure(self, exc: RouterError) -> bytes:
        """The event that reports an error after the first byte."""


class WholeReply(Protocol):
    """Folds chunks into one body."""

    def add(self, chunk: GenerateChunk) -> None:
        """Takes a chunk of any sample. Raises RouterError if there can be no reply."""

    def body(self) -> bytes:
        """The JSON body, once every generation has finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect(Generic[A]):
    """One API.

    Attributes:
        read: checks a body and returns what it asks for. Raises RouterError.
        write: makes the writer of a reply in one piece.
        stream: makes the writer of a streamed reply, given the request's id.
        errors: how to answer a request that failed before its first byte.
        prompt_field: the field at fault where a prompt is too long.
        ending: the event that ends a stream; empty if there is none.
        sign_of_life: what is sent where a stream would be silent for too long.
        is_limited: whether the router's limit on concurrent requests and its model names apply.
        settled: waits until what was kept of a reply, when its last events were made, outlives the
            router; None if nothing is kept.
        media_path: the worker's own path for requests with media; "" if there is none.
        fields: the names that a body may have at its top; empty if any may stand there.
        ids_field: the field that holds the prompt as token ids, which may be long; "" if none does.
        spoken: where a body has messages that need not be read again once they were, so that they
            come as `Written`; None if it has none.
    """

    read: Callable[[dict[str, Any], web.Request, EndpointContext], A]
    write: Callable[[A, EndpointContext], WholeReply]
    stream: Callable[[A, EndpointContext, str], StreamedReply]
    errors: ErrorStyle = OPENAI_ERRORS
    prompt_field: str = "messages"
    ending: bytes = sse.DONE
    sign_of_life: bytes = sse.COMMENT
    is_limited: bool = True
    settled: Callable[[], Awaitable[object]] | None = None
    media_path: str = ""
    fields: frozenset[str] = frozenset()
    ids_field: str = ""
    spoken: Spoken | None = None
