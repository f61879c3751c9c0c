"""What encodes: a library that makes token ids of texts, as the encoder sees it.

`tokenizers` is the reference. Another library may take its place where it makes the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import tokenizers

from slime_router.types import TokenIds, token_ids

# Characters, from which on it pays to wake the threads in which `tokenizers` encodes a batch.
SHORT_LEN = 2048


class Library(Protocol):
    """Encodes with one vocabulary. Any number of threads may do so at once."""

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text by itself, no special tokens added; read-only int32 arrays.

        Raises:
            TypeError, UnicodeError: a text is not valid Unicode (it has a lone surrogate).
        """


class TokenizersLibrary:
    """The reference, with one backend, whose padding and truncation are never set again."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text by itself."""
        if sum(map(len, texts)) < SHORT_LEN:
            one = self._backend.encode
            return [token_ids(one(text, add_special_tokens=False).ids) for text in texts]
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [token_ids(encoding.ids) for encoding in encodings]
