"""The model that every scripted worker runs: its next token is a function of all tokens before it.

So whoever goes on where another stopped says what that one would have said, and a token that was
lost, doubled or swapped on the way changes all that follows. Pure.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

MIN_REPLY_LEN = 12  # tokens, without the one that ends the turn
MAX_REPLY_LEN = 36
EMOJI = "🙂".encode()  # a token for each byte: a cut in between must not show
EMOJI_AT = 3  # place in the reply


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the model knows of the tokens so far; `crc` is all of them, `turn_crc` those before
    the turn that is open, which has `turn_len` tokens with its header."""

    crc: int = 0
    turn_crc: int = 0
    turn_len: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """One token, and the log-probability that the model gives it."""

    token_id: int
    logprob: float


class Oracle:
    """Speaks the tiny checkpoint's vocabulary; cheap to load, unlike `transformers`."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.im_start = self._id("<|im_start|>")
        self.im_end = self._id("<|im_end|>")
        self._header_len = len(self.encode("<|im_start|>assistant\n"))

    @cached_property
    def _words(self) -> list[int]:
        texts = {i: self.decode([i]) for i in range(self.im_start - 1)}
        return [i for i, text in texts.items() if text.isascii() and text.strip().isalpha()]

    @cached_property
    def _emoji(self) -> list[int]:
        alphabet = _byte_alphabet()
        return [self._id(alphabet[byte]) for byte in EMOJI]

    def _id(self, token: str) -> int:
        found: int | None = self.tokenizer.token_to_id(token)
        assert found is not None, f"the checkpoint has {token}"
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; control tokens in it are control tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def extend(self, prefix: Prefix, token_id: int) -> Prefix:
        """`prefix` and one token more."""
        crc = zlib.crc32(struct.pack("<i", token_id), prefix.crc)
        if token_id == self.im_start:
            return Prefix(crc, prefix.crc, 1)
        return Prefix(crc, prefix.turn_crc, prefix.turn_len + 1)

    def read(self, ids: Iterable[int], prefix: Prefix | None = None) -> Prefix:
        """The prefix that `ids` are."""
        known = prefix or Prefix()
        for token_id in ids:
            known = self.extend(known, token_id)
        return known

    def next(self, prefix: Prefix) -> Said:
        """What the model says after `prefix`."""
        logprob = -(prefix.crc % 4096 + 1) / 256  # exact in JSON and in float32
        place = prefix.turn_len - self._header_len
        if place >= MIN_REPLY_LEN + prefix.turn_crc % (MAX_REPLY_LEN - MIN_REPLY_LEN):
            return Said(self.im_end, logprob)
        if prefix.turn_crc % 2 and EMOJI_AT <= place < EMOJI_AT + len(EMOJI):
            return Said(self._emoji[place - EMOJI_AT], logprob)
        return Said(self._words[prefix.crc % len(self._words)], logprob)

    def reply(self, prompt: Sequence[int]) -> Iterator[Said]:
        """All that it says after `prompt`, to the end of the turn."""
        prefix = self.read(prompt)
        while True:
            said = self.next(prefix)
            yield said
            if said.token_id == self.im_end:
                return
            prefix = self.extend(prefix, said.token_id)


def _byte_alphabet() -> dict[int, str]:
    """How a byte-level BPE spells single bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {
        **{byte: chr(byte) for byte in shown},
        **{byte: chr(256 + place) for place, byte in enumerate(hidden)},
    }
