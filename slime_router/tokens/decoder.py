"""Decoding: token ids back to the text they stand for, as far as it is complete.

`tokenizers`' own stream decoder is not used: on malformed byte-fallback streams it raises or
loses text, and it never gives up what it holds back. Here each id has its bytes, and what the
bytes of a stream spell is UTF-8.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias

import tokenizers

from slime_router.tokens.components import components

FindBytes: TypeAlias = Callable[[bytes], re.Match[bytes] | None]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes(dict[int, bytes]):
    """The actual bytes of each token id in the middle of a text; computed when first needed.

    An id without a token has none: `table[id] == b""`.
    """

    def __init__(self, backend: tokenizers.Tokenizer, known: Mapping[int, bytes]) -> None:
        super().__init__(known)
        self._token_of = backend.id_to_token
        self._read = _token_reader(backend)

    def __missing__(self, token_id: int) -> bytes:
        token_id = int(token_id)  # numpy's own ints would stay as keys
        token = self._token_of(token_id) if token_id >= 0 else None
        if token is None:
            return b""  # not kept: a worker may name any id
        return self.setdefault(token_id, self._read(token_id, token))

    def join(self, ids: Iterable[int]) -> bytes:
        """The bytes of all `ids`, concatenated."""
        return b"".join(map(self.__getitem__, ids))


class Decoder:
    """Text of tokens that arrive one by one, after a prompt.

    `"".join(push(chunk) for chunk in chunks) + flush() == decode(all ids)`, however they are cut
    into chunks.
    """

    def __init__(self, table: TokenBytes) -> None:
        self._bytes_of = table.__getitem__
        self._held = b""  # the first bytes of a character

    def push(self, ids: Iterable[int]) -> str:
        """The text that is complete now; bytes that may still become a character wait."""
        spelled = self._held + b"".join(map(self._bytes_of, ids))
        text, used_len = codecs.utf_8_decode(spelled, "replace", False)
        self._held = spelled[used_len:]
        return text

    def run_len(self, find: FindBytes, ids: Sequence[int]) -> int:
        """How many of `ids` come before the first whose bytes hold the first thing found.

        0 while a part of a character is held.
        """
        if self._held:
            return 0
        found = find(b"".join(map(self._bytes_of, ids)))
        if found is None:
            return len(ids)
        ends = accumulate(map(len, map(self._bytes_of, ids)))
        return sum(end <= found.start() for end in ends)

    def flush(self) -> str:
        """What is held back; bytes that never became a character are U+FFFD."""
        text, self._held = self._held.decode(errors="replace"), b""
        return text


def _token_reader(backend: tokenizers.Tokenizer) -> Callable[[int, str], bytes]:
    """How a token of this vocabulary is read: by its decoder's kind."""
    steps = {step["type"]: step for step in components(backend.decoder)}
    if "ByteLevel" in steps:
        return _byte_level_reader()
    if steps.keys() & {"Metaspace", "Replace", "ByteFallback"}:
        return _sentence_piece_reader(has_byte_tokens="ByteFallback" in steps)
    return _probing_reader(backend)


def _byte_level_reader() -> Callable[[int, str], bytes]:
    byte_of = byte_alphabet()

    def read(_token_id: int, token: str) -> bytes:
        try:
            return bytes(map(byte_of.__getitem__, token))
        except KeyError:  # an added token, which is not written in the byte alphabet
            return token.encode()

    return read


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: visible Latin-1 as itself, the others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(0x100)) - set(visible))
    alphabet = {chr(byte): byte for byte in visible}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


def _sentence_piece_reader(*, has_byte_tokens: bool) -> Callable[[int, str], bytes]:
    def read(_token_id: int, token: str) -> bytes:
        match = _BYTE_TOKEN.fullmatch(token) if has_byte_tokens else None
        if match is not None:
            return bytes.fromhex(match[1])
        return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    return read


def _probing_reader(backend: tokenizers.Tokenizer) -> Callable[[int, str], bytes]:
    """For every other decoder (WordPiece, ...): what the token adds after another one."""
    context = backend.encode("a", add_special_tokens=False).ids[:1]
    before = backend.decode(context, skip_special_tokens=False)

    def read(token_id: int, token: str) -> bytes:
        text = backend.decode([*context, token_id], skip_special_tokens=False)
        return (text[len(before) :] if text.startswith(before) else token).encode()

    return read
