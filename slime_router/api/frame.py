"""What the doors stand in: all of them share it."""

from __future__ import annotations

from dataclasses import dataclass, field

from slime_router.api.delivery import Admission
from slime_router.api.media import MediaPass
from slime_router.api.models import ModelNames
from slime_router.api.retries import Joiner
from slime_router.api.token_ids import Vocabulary
from slime_router.replies.parser import ReplyParsers


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Each door is one shape of requests and replies in the same frame.

    Attributes:
        joiner: runs the generations that requests ask for.
        vocabulary: of the model's tokens.
        parsers: read tool calls and reasoning out of replies.
        admission: how many requests the doors have at once.
        default_model: the model's name for a request that has none.
        models: the names that are served.
        media: where requests with pictures, audio or video go.
    """

    joiner: Joiner
    vocabulary: Vocabulary
    parsers: ReplyParsers
    admission: Admission
    default_model: str
    models: ModelNames = field(default_factory=ModelNames)
    media: MediaPass = field(default_factory=MediaPass.off)
