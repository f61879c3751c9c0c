"""How many tokens a text has at least, by its characters: nothing is encoded to know it.

Each character has a weight, and no token's characters weigh more than 1 together: so a text has at
least as many tokens as it weighs. A character weighs one over the length of the longest token that
it occurs in, in characters. All that begin with the same byte in UTF-8 weigh the same, so that
counting bytes weighs a text.

What a tokenizer may leave out of a text, or make one of several characters, weighs nothing. Where
that could be anything (a normalizer that is not known here, text that no token spells), a text
weighs nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import models

from slime_router.tokens.components import components
from slime_router.tokens.decoder import byte_alphabet

Weights: TypeAlias = npt.NDArray[np.float64]  # shape [256], for the byte that begins a character
_Codes: TypeAlias = npt.NDArray[np.uint32]  # of characters

CHUNK_LEN = 2**16  # bytes counted at a time: numpy makes numbers of eight bytes of them

_SPACE = 0x20
_META_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's spelling of it, which texts may hold
_META_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _META_SPACE}
_CONTINUING = slice(0x80, 0xC0)  # bytes of a character that has begun
# With these bytes white space begins (Unicode's White_Space): added tokens may eat what is beside
# them, however much it is.
_WHITE = (*range(0x09, 0x0E), _SPACE, 0xC2, 0xE1, 0xE2, 0xE3)
# Characters that begin with these bytes (ASCII, Cyrillic, Chinese, Korean) are their own NFC, and
# join none before them. What joins one of them begins otherwise, and joins no more than that one.
NFC_INERT = (*range(0x80), 0xD0, 0xD1, *range(0xE4, 0xEA), 0xEB, 0xEC)
_IN_TEXTS = (*range(0xC0), *range(0xC2, 0xF5))  # all bytes that UTF-8 has
_KEEPING = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"}  # pre-tokenizers, but for
_DROPPING = "Removed"  # this behavior of theirs


class LeastTokens:
    """The weights of one vocabulary's characters. Never changes."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._weights = _weights(backend) if _keeps_text(backend) else None

    def of(self, text: str) -> int:
        """At least so many tokens has `text`, no special tokens added; 0 if it is not Unicode.

        Takes about 2 ns for a byte.
        """
        if self._weights is None:
            return 0
        try:
            data = np.frombuffer(text.encode(), np.uint8)
        except UnicodeEncodeError:  # a lone surrogate: whoever encodes it says so
            return 0
        counts = np.zeros(256, np.int64)
        for start in range(0, len(data), CHUNK_LEN):
            counts += np.bincount(data[start : start + CHUNK_LEN], minlength=256)
        return max(0, int(counts @ self._weights))


def _keeps_text(backend: tokenizers.Tokenizer) -> bool:
    """Whether each character is spelled by tokens that have it, or weighs nothing here."""
    normalizers, model = components(backend.normalizer), backend.model
    splitters = components(backend.pre_tokenizer)
    if not isinstance(model, models.BPE):
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    return (
        all(each["type"] in ("NFC", "Prepend") or each == _META_REPLACE for each in normalizers)
        and all(each["type"] in _KEEPING for each in splitters)
        and all(each.get("behavior") != _DROPPING for each in splitters)
        and _spells_all(backend, model)
    )


def _spells_all(backend: tokenizers.Tokenizer, model: models.BPE) -> bool:
    """Whether there is a token for each byte: else text is dropped, or becomes one unknown."""
    known = backend.token_to_id
    if _is_byte_level(backend):
        spelled = {byte: char for char, byte in byte_alphabet().items()}
        return all(known(spelled[byte]) is not None for byte in _IN_TEXTS)
    return model.byte_fallback and all(known(f"<0x{byte:02X}>") is not None for byte in range(256))


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    return any(each["type"] == "ByteLevel" for each in components(backend.pre_tokenizer))


def _weights(backend: tokenizers.Tokenizer) -> Weights:
    """What the characters that begin with each byte weigh; one in which none begins weighs 0."""
    added = backend.get_added_tokens_decoder().values()
    names = backend.get_vocab(with_added_tokens=False)
    first = _of_alphabet if _is_byte_level(backend) else _of_character
    longest = np.maximum(
        _longest(names, first), _longest([token.content for token in added], _of_character)
    )
    meta = _META_SPACE.encode()[0]  # written for a space, and for itself
    longest[_SPACE] = max(longest[_SPACE], longest[meta])
    weights = 1 / longest
    weights[_CONTINUING] = 0
    if any(each["type"] == "NFC" for each in components(backend.normalizer)):
        weights = _composing(weights)
    if any(token.lstrip or token.rstrip for token in added):
        weights[list(_WHITE)] = np.minimum(weights[list(_WHITE)], 0)
    return weights


def _composing(weights: Weights) -> Weights:
    """The weights where NFC may make one character of several.

    Each composition takes in a character that is not inert, and at most one that is.
    """
    inert = np.isin(np.arange(256), NFC_INERT)
    composing = np.where(inert, weights, -weights[inert].max())
    composing[_CONTINUING] = 0
    return composing


def _longest(names: Collection[str], first: Callable[[_Codes], _Codes]) -> npt.NDArray[np.int64]:
    """By byte: the length of the longest of these tokens with a character that begins with it.

    At least 1. Lengths are in characters that begin in the token. `first` says which byte a
    character of a name is, or begins with.
    """
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    begun = first(np.frombuffer("".join(names).encode("utf-32-le"), "<u4"))
    is_begin = (begun < _CONTINUING.start) | (begun >= _CONTINUING.stop)
    begun, token = begun[is_begin], np.repeat(np.arange(len(names)), lengths)[is_begin]
    longest = np.ones(256, np.int64)
    np.maximum.at(longest, begun, np.bincount(token, minlength=len(names))[token])
    return longest


def _of_character(codes: _Codes) -> _Codes:
    """The first byte of each character in UTF-8."""
    forms = [codes < 0x80, codes < 0x800, codes < 0x10000]
    return np.select(
        forms, [codes, 0xC0 | codes >> 6, 0xE0 | codes >> 12], 0xF0 | codes >> 18
    ).astype(np.uint32)


def _of_alphabet(codes: _Codes) -> _Codes:
    """The byte that each character stands for; added tokens are not spelled in the alphabet."""
    bytes_of = _of_character(np.arange(0x144, dtype=np.uint32))
    for char, byte in byte_alphabet().items():
        bytes_of[ord(char)] = byte
    is_spelled = codes < len(bytes_of)
    return np.where(is_spelled, bytes_of[np.where(is_spelled, codes, 0)], _of_character(codes))
