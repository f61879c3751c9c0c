"""The library `fastokens`: some twenty times faster than `tokenizers`, and an extra.

Nothing else knows its names. What is used of it is tried out when it is loaded, so that another
version is refused then; whether it makes the same tokens is proved elsewhere (`proof.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from slime_router.errors import SetupError, one_line
from slime_router.tokens.libraries import Library
from slime_router.types import TokenIds

NAME = "fastokens"
_TRIAL = ("Hello world", "", "1 + 2")

# Ids of all texts, one after the other, as uint32, and where each text's begin, as uint64; with a
# last number for the end. Both are little-endian.
_EncodeFlat = Callable[[list[str]], tuple[bytes, bytes]]


class LibraryFailed(Exception):
    """The library failed on a text, which says nothing about the text."""


class FastLibrary:
    """Encodes with a loaded vocabulary."""

    def __init__(self, encode_flat: _EncodeFlat) -> None:
        self._encode_flat = encode_flat

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text by itself.

        Raises:
            TypeError, UnicodeError: a text is not valid Unicode.
            LibraryFailed: whatever else goes wrong.
        """
        try:
            ids_of_all, bounds = self._encode_flat(list(texts))
            ids: TokenIds = np.frombuffer(ids_of_all, "<i4")  # of bytes: nobody can write to it
            ends = np.frombuffer(bounds, "<u8").tolist()
            return [ids[start:end] for start, end in pairwise(ends)]
        except (TypeError, UnicodeError):
            raise
        except BaseException as exc:  # a panic in its Rust code is not an Exception
            if isinstance(exc, Exception) or _is_panic(exc):
                raise LibraryFailed(f"{type(exc).__name__}: {exc}") from exc
            raise


def load_fast_library(vocabulary: str) -> Library:
    """The library with a vocabulary, given as the text of a `tokenizer.json`. Takes seconds.

    Raises:
        SetupError: it is not installed, is not as expected, or cannot read this vocabulary.
    """
    try:
        import fastokens  # an extra
    except ImportError as exc:
        raise SetupError(
            f"{NAME} is not installed: pip install 'slime-router[fast]', or --encoder tokenizers"
        ) from exc
    library = FastLibrary(_loaded(fastokens, vocabulary))
    try:
        runs = library.encode(_TRIAL)
    except Exception as exc:  # whatever another version raises
        raise _misfit("Tokenizer.encode_batch_flat", one_line(exc)) from exc
    if [bool(len(run)) for run in runs] != [bool(text) for text in _TRIAL]:
        raise _misfit("Tokenizer.encode_batch_flat", "its result is another")
    return library


def _loaded(fastokens: Any, vocabulary: str) -> _EncodeFlat:
    load = getattr(getattr(fastokens, "Tokenizer", None), "from_json_str", None)
    if load is None:
        raise _misfit("Tokenizer.from_json_str", "it is missing")
    try:
        encode_flat: _EncodeFlat | None = getattr(load(vocabulary), "encode_batch_flat", None)
    except BaseException as exc:  # likewise
        if isinstance(exc, Exception) or _is_panic(exc):
            raise SetupError(f"{NAME} cannot read this vocabulary: {_said(exc)}") from exc
        raise
    if encode_flat is None:
        raise _misfit("Tokenizer.encode_batch_flat", "it is missing")
    return encode_flat


def _is_panic(exc: BaseException) -> bool:
    """Whether code in Rust has panicked: that is not an `Exception`."""
    return type(exc).__name__ == "PanicException"


def _said(exc: BaseException) -> str:
    return one_line(exc if isinstance(exc, Exception) else Exception(str(exc)))


def _misfit(name: str, why: str) -> SetupError:
    return SetupError(f"this version of {NAME} does not fit: {name}: {why}")
