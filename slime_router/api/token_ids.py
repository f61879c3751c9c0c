"""What the doors know about the model's vocabulary, and the checks that keep workers alive.

A worker that is sent a token id outside its vocabulary dies, and all its work with it, so every id
that a client sends is checked here before anything else happens. `TokenNames` says how replies
name tokens.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import orjson

from slime_router.api.request import wrong_type
from slime_router.errors import BadRequest
from slime_router.tokens.written.id_text import WrittenIds
from slime_router.types import TokenIds, token_ids

_MAX_ID_DIGITS = 10  # int() of an arbitrarily long string would burn CPU


class Vocabulary(Protocol):
    """The model's tokens."""

    @property
    def vocab_size(self) -> int:
        """Ids are in `[0, vocab_size)`."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; they need not be whole characters."""

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a control token."""


def checked_ids(values: Any, vocab_size: int, param: str) -> TokenIds:
    """`values` as token ids, int32 `[tokens]`, read-only.

    Raises:
        BadRequest: it is not a list, has no entries, or holds something that is not a token's id.
    """
    if type(values) is WrittenIds:
        if int(values.ids.max()) >= vocab_size:
            raise _outside(param, vocab_size)
        return values.ids
    if type(values) is not list:
        raise wrong_type(param, "a list of token ids")
    if not values:
        raise BadRequest(f"'{param}' cannot be empty.", param=param)
    try:  # `pack` is the fastest check there is: prompts have up to a million ids
        ids = np.frombuffer(struct.pack(f"={len(values)}i", *values), np.int32)
    except struct.error:
        if set(map(type, values)) == {int}:
            raise _outside(param, vocab_size) from None
        raise wrong_type(param, "a list of integers") from None
    if b"e" in orjson.dumps(values):  # true or false, which are ints to Python
        raise wrong_type(param, "a list of integers")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise _outside(param, vocab_size)
    return token_ids(ids)


def written(values: Any) -> bytes | memoryview:
    """The JSON array that these ids were read from; empty where it was not kept."""
    return values.text if type(values) is WrittenIds else b""


def check_bias_keys(bias: Mapping[str, object], vocab_size: int, param: str) -> None:
    """Raises BadRequest if a key of a logit bias is not a token's id."""
    for key in bias:
        is_id = key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS
        if not is_id or int(key) >= vocab_size:
            raise BadRequest(
                f"'{param}' must have keys in [0, {vocab_size - 1}], got '{key[:40]}'.", param=param
            )


def _outside(param: str, vocab_size: int) -> BadRequest:
    return BadRequest(
        f"'{param}' holds a token id outside the vocabulary [0, {vocab_size - 1}].", param=param
    )


class TokenNames:
    """Names by text, or by id where the client asks for that: `token_id:40`.

    Ids are vLLM's `return_tokens_as_token_ids`: trainers read them back as ints.
    """

    def __init__(self, vocabulary: Vocabulary, *, by_id: bool = False) -> None:
        self._vocabulary = vocabulary
        self._by_id = by_id

    def text(self, token_id: int) -> str:
        """The token's text; bytes that are not a character are replaced."""
        if self._by_id:
            return id_name(token_id)
        return self._vocabulary.token_bytes(token_id).decode("utf-8", "replace")

    def key(self, token_id: int) -> str:
        r"""A name that two tokens with different bytes never share.

        Bytes that are not a character are written as OpenAI does: `bytes:\xe2\x96`.
        """
        if self._by_id:
            return id_name(token_id)
        raw = self._vocabulary.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that the token stands for."""
        return self._vocabulary.token_bytes(token_id)


def id_name(token_id: int) -> str:
    """`token_id:40`."""
    return f"token_id:{token_id}"
