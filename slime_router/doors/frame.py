"""What the doors stand in: all of them share it."""

from __future__ import annotations

from dataclasses import dataclass, field

from slime_router.chat.parse import ReplyParsers
from slime_router.doors.delivery import Admission
from slime_router.doors.joining import Joiner
from slime_router.doors.media import MediaPass
from slime_router.doors.models import ModelNames
from slime_router.doors.vocabulary import Vocabulary


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
