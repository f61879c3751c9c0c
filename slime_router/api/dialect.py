"""A dialect: how one API's requests are read, and how its replies and errors are written.

Each API is a folder that has one; `slime_router.api.endpoint` serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from aiohttp import web

from slime_router.api import sse
from slime_router.api.delivery import Admission, StreamedReply, WholeReply
from slime_router.api.errors import OPENAI_ERRORS, ErrorStyle
from slime_router.api.media import MediaPass
from slime_router.api.retries import Joiner
from slime_router.api.token_ids import Vocabulary
from slime_router.replies.parser import ReplyParsers
from slime_router.types import GenerateCall


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointContext:
    """What the endpoints of one router share.

    Attributes:
        joiner: runs the generations that requests ask for.
        vocabulary: of the model's tokens.
        parsers: read tool calls and reasoning out of replies.
        admission: how many requests the endpoints have at once.
        default_model: the model's name for a request that has none.
        served_names: the names of the one model; None serves it under any name.
        media: where requests with pictures, audio or video go.
        has_two_reasonings: in chat, reasoning stands under both of its names.
    """

    joiner: Joiner
    vocabulary: Vocabulary
    parsers: ReplyParsers
    admission: Admission
    default_model: str
    served_names: frozenset[str] | None = None
    media: MediaPass = field(default_factory=MediaPass.off)
    has_two_reasonings: bool = False


class Asked(Protocol):
    """What a request asks for."""

    @property
    def calls(self) -> Sequence[GenerateCall]:
        """One for each generation."""

    @property
    def stream(self) -> bool:
        """Whether the reply is a stream of events."""


A = TypeVar("A", bound=Asked)


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
