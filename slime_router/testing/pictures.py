"""What a fake worker makes of pictures: tokens of their own, in place of one token for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Sight:
    """How it sees.

    Attributes:
        token_id: what stands for a picture in a prompt that it is sent.
        width: tokens of each picture.
        encodes_again: it reads the prompt as text and encodes that, as SGLang does with
            `SGLANG_MM_AVOID_RETOKENIZE=0`: the first two tokens become one.
        tells: whether it says how many of its prompt's tokens are pictures'.
    """

    token_id: int
    width: int = 4
    encodes_again: bool = False
    tells: bool = True

    def prompt(self, sent: Sequence[int]) -> list[int]:
        """The prompt that it computes."""
        tokens = sent[1:] if self.encodes_again else sent
        return [
            each
            for token in tokens
            for each in [token] * (self.width if token == self.token_id else 1)
        ]

    def says(self, sent: Sequence[int], body: dict[str, Any]) -> dict[str, Any]:
        """What it says of a prompt with pictures, among the other fields of `meta_info`."""
        pictures = len(body.get("image_data") or ())
        if not pictures:
            return {}
        said = {"prompt_tokens": len(self.prompt(sent))}
        return {**said, "image_tokens": pictures * self.width} if self.tells else said
