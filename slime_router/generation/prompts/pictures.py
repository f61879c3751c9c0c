"""Prompts with pictures: their tokens, and the proof that a worker has kept all others.

The router sends one token for each picture, and the pictures beside the ids. A worker puts the
picture's own tokens in place of that one. It must leave all others as they are, so what it says of
its prompt is compared with what it was sent (SGLang: `SGLANG_MM_AVOID_RETOKENIZE`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from slime_router.errors import BadRequest
from slime_router.template.pictures import RESERVED, Pictures, digests_in
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import GenerateCall, GenerateChunk, Piece, TokenIds

logger = logging.getLogger(__name__)

SOURCES = "image_data"  # SGLang's field for pictures
PROVES = "return_prompt_token_ids"  # and the one that asks for its own prompt
_CHANGED = "computed another prompt than it was sent"


class PictureTokens:
    """Texts with pictures as they are filed and encoded; `shows` is the template's way.

    Attributes:
        token_id: what stands for a picture; None where the template shows none.
    """

    def __init__(self, tokenizer: Tokenizer, shows: Pictures | None) -> None:
        self._tokenizer = tokenizer
        self._shows = shows
        self.token_id = None if shows is None else shows.token_id

    def shown(self, call: GenerateCall, text: str) -> str:
        """A rendered text with the marks of pictures where their tokens are.

        Raises:
            BadRequest: it has others than the last ones of the call's.
        """
        if self._shows is None:
            return text
        found = digests_in(text)
        is_own = found == call.pictures[len(call.pictures) - len(found) :]
        if not is_own or (call.pictures and self._shows.token in text):
            raise BadRequest("a text has what stands for a picture", param="messages")
        return self._shows.shown(text) if found else text

    async def encode(self, text: str, held: TokenIds, context_len: int | None) -> tuple[Piece, ...]:
        """`Tokenizer.encode_pieces_async` for a text of `shown`."""
        if self._shows is None or RESERVED not in text:
            return await self._tokenizer.encode_pieces_async(text, held, context_len)
        written = self._shows.written(text)
        pieces = await self._tokenizer.encode_pieces_async(written, held, context_len)
        return self._shows.marked(pieces, text)

    def check_places(self, call: GenerateCall, ids: TokenIds) -> None:
        """A prompt has one place for each picture.

        Raises:
            BadRequest: it has more or fewer, as where a template leaves some out.
        """
        if self._shows is None or not call.pictures:
            return
        places, count = int(np.count_nonzero(ids == self._shows.token_id)), len(call.pictures)
        if places != count:
            raise BadRequest(
                f"the prompt has {self._shows.token} {places} times for {count} pictures",
                param="messages",
            )


@dataclass(slots=True)
class PictureProof:
    """Whether workers keep the tokens around pictures; no picture is captured once one has not.

    Attributes:
        token_id: what a picture's tokens are put in place of; None if the template shows none.
        captured: requests with pictures that were proved.
        changed: those whose prompt a worker has encoded again, or does not report.
    """

    token_id: int | None
    captured: int = 0
    changed: int = 0

    @property
    def is_on(self) -> bool:
        """Whether pictures are captured."""
        return self.token_id is not None and not self.changed

    def placed(self, sent: TokenIds, pictures: Sequence[str]) -> tuple[tuple[int, str], ...]:
        """The place of each picture in the prompt, and its digest."""
        places = np.flatnonzero(sent == self.token_id).tolist()
        return tuple(zip(places, pictures, strict=True))

    def fault(self, sent: TokenIds, pictures: Sequence[str], first: GenerateChunk) -> str:
        """Why the worker's prompt is not known to be `sent`, by its first chunk; "" if it is."""
        fault = self._fault(sent, len(pictures), first.item or {})
        if not fault:
            self.captured += 1
            return ""
        if not self.changed:  # once: none is captured from now on
            logger.error(
                "pictures go to workers uncaptured from now on: %s %s", first.worker_url, fault
            )
        self.changed += 1
        return fault

    def _fault(self, sent: TokenIds, count: int, item: dict[str, Any]) -> str:
        own = item.get("prompt_token_ids")
        if type(own) is list:  # of a reply in one piece
            return "" if self._around(own) == self._around(sent.tolist()) else _CHANGED
        meta = item.get("meta_info") or {}
        total, of_pictures = meta.get("prompt_tokens"), meta.get("image_tokens")
        if type(total) is not int or type(of_pictures) is not int:
            return "does not say how long its prompt is"
        return "" if total - of_pictures + count == len(sent) else _CHANGED

    def _around(self, prompt: Sequence[Any]) -> list[Any]:
        """The tokens of a prompt; those of pictures that follow each other count as one."""
        around: list[Any] = []
        for token, run in groupby(prompt):
            around += [token] if token == self.token_id else run
        return around
