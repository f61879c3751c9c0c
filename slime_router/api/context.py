"""What the endpoints of one router share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from slime_router.api.chat.settings import SettingsReader
from slime_router.api.known.strictness import Strictness
from slime_router.api.media.media_pass import MediaPass
from slime_router.api.media.pictures import PictureDoor
from slime_router.api.model_names import ModelNames
from slime_router.api.retries import Joiner
from slime_router.api.token_ids import TokenNames, Vocabulary
from slime_router.auth.shares import Shares
from slime_router.edge.allowances import NOTHING_ALLOWED, Allowances
from slime_router.edge.grace import Grace
from slime_router.errors import TooManyRequests
from slime_router.template.heard import MessageTexts
from slime_router.tokens.written.id_text import IdTexts


class Admission:
    """Counts the requests inside the endpoints that share it.

    A request whose owner finds no place is turned away unread, and `on_refusal` is called.
    """

    def __init__(self, places: Shares, on_refusal: Callable[[], None] = lambda: None) -> None:
        self._places = places
        self._on_refusal = on_refusal

    def __repr__(self) -> str:
        return f"<Admission {self._places!r}>"

    def share_among(self, owners: Collection[str]) -> None:
        """These owners have shares from now on."""
        self._places.share_among(owners)

    def of(self, owner: str) -> AbstractContextManager[None]:
        """For the block, the place of one of the owner's requests.

        Raises:
            TooManyRequests: it finds none.
        """
        if not self._places.has_room(owner):
            self._on_refusal()
            raise TooManyRequests(
                f"More than {self._places.total} requests at once; try again later."
            )
        return _Place(self._places, owner)


class _Place:
    """See `Admission.of`."""

    __slots__ = ("_owner", "_places")

    def __init__(self, places: Shares, owner: str) -> None:
        self._places, self._owner = places, owner

    def __enter__(self) -> None:
        self._places.take(self._owner)

    def __exit__(self, *_: object) -> None:
        self._places.give_back(self._owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointContext:
    """The parts of the router that endpoints use.

    Attributes:
        joiner: runs the generations that requests ask for.
        vocabulary: the model's tokens.
        chat_settings: reads what a chat asks for besides its messages.
        admission: limits how many requests the endpoints handle at once.
        models: what the model of a request may be.
        media: where requests with pictures, audio or video go that are not captured.
        pictures: takes those that are.
        allowances: what clients may have a worker run or open.
        grace: ends requests that outlast a shutdown.
        isolates_owners: named keys do not share the workers' caches.
        keepalive_s: how long a stream may be silent before it shows a sign of life; 0: forever.
        tokens_as_ids: logprobs name tokens `token_id:40`, unless a request says otherwise.
        experts_shape: layers, and experts for each token; None where that is not known.
        strictness: what becomes of fields that an API does not know.
        id_texts: reads long prompts of token ids.
        message_texts: reads long conversations.
    """

    joiner: Joiner
    vocabulary: Vocabulary
    chat_settings: SettingsReader
    admission: Admission
    models: ModelNames
    media: MediaPass = field(default_factory=MediaPass.off)
    pictures: PictureDoor = field(default_factory=lambda: PictureDoor(None))
    allowances: Allowances = NOTHING_ALLOWED
    isolates_owners: bool = False
    grace: Grace = field(default_factory=lambda: Grace(0))
    keepalive_s: float = 15.0
    tokens_as_ids: bool = False
    experts_shape: tuple[int, int] | None = None
    strictness: Strictness = field(default_factory=lambda: Strictness("ignore"))
    id_texts: IdTexts = field(default_factory=IdTexts)
    message_texts: MessageTexts = field(default_factory=MessageTexts)

    def token_names(self, by_id: bool | None) -> TokenNames:
        """How a reply names tokens: as its request says, else as the router is set."""
        return TokenNames(self.vocabulary, by_id=self.tokens_as_ids if by_id is None else by_id)
