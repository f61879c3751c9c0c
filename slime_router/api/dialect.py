"""A dialect: how one API's requests are read, and how its replies and errors are written.

Each API is a folder that has one; `slime_router.api.endpoint` serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from aiohttp import web

from slime_router.api import sse
from slime_router.api.context import EndpointContext
from slime_router.api.errors import OPENAI_ERRORS, ErrorStyle
from slime_router.api.request import A
from slime_router.errors import RouterError
from slime_router.types import GenerateChunk


class StreamedReply(Protocol):
    """Writes chunks as events."""

    def events(self, index: int, chunk: GenerateChunk) -> Iterable[bytes]:
        """What the chunk of generation `index` becomes. Raises RouterError to end the stream."""

    def closing(self) -> Iterable[bytes]:
        """What stands between the last chunk's events and the end of the stream."""

    def failure(self, exc: RouterError) -> bytes:
        """The event that says of an error after the first byte."""


class WholeReply(Protocol):
    """Folds chunks into one body."""

    def add(self, index: int, chunk: GenerateChunk) -> None:
        """Takes the chunk of generation `index`. Raises RouterError where there is no reply."""

    def body(self) -> bytes:
        """The JSON body; every generation has finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect(Generic[A]):
    """One API.

    Attributes:
        read: checks a body and says what it asks for. Raises RouterError.
        write: makes what writes a reply in one piece.
        stream: makes what writes a streamed reply; it is given the request's id.
        errors: how a request is answered that failed before its first byte.
        ending: the event after the last one of a stream; empty where there is none.
        is_limited: the router's limit on requests at once, and its model's names, apply.
        media_path: the worker's own path, which answers requests with media; "" where none does.
    """

    read: Callable[[dict[str, Any], web.Request, EndpointContext], A]
    write: Callable[[A, EndpointContext], WholeReply]
    stream: Callable[[A, EndpointContext, str], StreamedReply]
    errors: ErrorStyle = OPENAI_ERRORS
    ending: bytes = sse.DONE
    is_limited: bool = True
    media_path: str = ""
