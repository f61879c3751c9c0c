"""What the endpoints of one router share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from slime_router.api.media import MediaPass
from slime_router.api.retries import Joiner
from slime_router.api.token_ids import Vocabulary
from slime_router.errors import TooManyRequests
from slime_router.replies.parser import ReplyParsers


class Admission:
    """Counts the requests inside the endpoints that share it.

    A request over the limit is turned away unread, and `on_refusal` is called.
    """

    def __init__(self, limit: int, on_refusal: Callable[[], None] = lambda: None) -> None:
        self._limit = limit
        self._on_refusal = on_refusal
        self._inside = 0

    def __repr__(self) -> str:
        return f"<Admission {self._inside}/{self._limit}>"

    def __enter__(self) -> None:
        if self._inside >= self._limit:
            self._on_refusal()
            raise TooManyRequests(f"More than {self._limit} requests at once; try again later.")
        self._inside += 1

    def __exit__(self, *_: object) -> None:
        self._inside -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointContext:
    """The parts of the router that endpoints use.

    Attributes:
        joiner: runs the generations that requests ask for.
        vocabulary: the model's tokens.
        parsers: read tool calls and reasoning out of replies.
        admission: limits how many requests the endpoints handle at once.
        default_model: the model's name for a request that gives none.
        served_names: the names of the one model; None serves it under any name.
        media: where requests with pictures, audio or video go.
        has_two_reasonings: chat replies give reasoning under both of its names.
    """

    joiner: Joiner
    vocabulary: Vocabulary
    parsers: ReplyParsers
    admission: Admission
    default_model: str
    served_names: frozenset[str] | None = None
    media: MediaPass = field(default_factory=MediaPass.off)
    has_two_reasonings: bool = False
