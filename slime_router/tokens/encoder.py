"""Encoding: text to token ids, whole or in pieces that can be kept and used again.

What always holds: `concat(p.ids for p in encode_pieces(text)) == encode(text)`, and two texts
with a common prefix have their pieces in common as far as it reaches.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import tokenizers

from slime_router.errors import BadRequest
from slime_router.tokens.control_tokens import ControlTokens
from slime_router.tokens.decoder import TokenBytes
from slime_router.tokens.libraries import SHORT_LEN, Library, TokenizersLibrary
from slime_router.types import NO_TOKENS, Piece, TokenIds

# Control tokens that are closer together than this share a piece: `<|im_end|>\n<|im_start|>user`
# is one piece, not two of a token or three.
MIN_PIECE_LEN = 16
# From here on a piece may end at a space. Shorter pieces share more of two texts that part in the
# middle of a message, longer ones cost less to make and to keep: this is about 500 tokens.
LONG_PIECE_LEN = 2048
KNOWN_LEN = 64  # characters; ids of shorter texts are kept: templates put the same ones everywhere
MAX_KNOWN = 1024

_WORD_END = re.compile(r"[^\W_](?= )")  # a letter or digit (str.isalnum) before a space
_JOINED_WORDS = re.compile(
    r"(?:[^\W_]|\ufffd) "
)  # the same in a token, which may begin mid-character
_INNER_SPACE = re.compile(r".[Ġ▁ ]", re.DOTALL)  # the ways in which vocabularies spell a space

_CONTROL_PROBES = ("\nfoo", "foo", " foo", "1")
_TEXT_CONTEXTS = ("a", "1", ".", "\n")
_WORDS_PROBE = (
    "You are a helpful assistant.  What's 1 + 23 - 4567?\n\n    def f(x): return x  # it's\n"
    'I\'LL go to "HAVING" {"name": "get_weather", "arguments": {"city": "Paris", "n": 12 }}\t x\n'
    "Grüße aus Köln , déjà vu — naïve café ; 東京 は 首都 です 。 Привет  мир ! 안녕 하세요 "
    "🙂 ok 🙂 1 000 000,5 km/h a.b c_d e-f g/h // i ## j   k\r\n l    \n m"
)


class After(StrEnum):
    """What precedes the text that is encoded."""

    START = "start"  # nothing: the text begins the prompt
    CONTROL = "control"  # a control token
    TEXT = "text"  # an ordinary token: a sampled span that was cut off, or ended by a stop string


class Encoder:
    """Encodes with one vocabulary: by `tokenizers`, or by a library that makes the same tokens.

    Only methods that change nothing are called on `backend`: any number of threads may do so.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, controls: ControlTokens, table: TokenBytes
    ) -> None:
        self._library: Library = TokenizersLibrary(backend)
        self._controls = controls
        self._table = table
        self._known: dict[str, TokenIds] = {}  # what a template puts around each message
        self._control_literal = next(iter(controls.literals.values()), "")
        self.is_prefix_free = self._probe_prefix_free(backend)

    def over(self, library: Library) -> Encoder:
        """The same rules with another library."""
        other = copy(self)
        other._library, other._known = library, {}
        return other

    def encode(self, text: str, after: After) -> TokenIds:
        """The ids of `text`; read-only, int32, shape `[tokens]`."""
        if after is After.START or self.is_prefix_free or self._controls.is_at(text, 0):
            return self._encode_one(text)
        if after is After.CONTROL and self._control_literal:
            return self._encode_one(self._control_literal + text)[1:]
        return self._encode_after_text(text)

    def encode_pieces_after(self, last_id: int | None, text: str) -> tuple[Piece, ...]:
        """`text` as it follows a token, or begins the prompt: cut at safe places, with its ids."""
        if last_id is None:
            return self.encode_pieces(text, After.START)
        if eater := self._controls.eater(last_id):
            return self._pieces_after_literal(eater, text)
        after = After.CONTROL if last_id in self._controls else After.TEXT
        return self.encode_pieces(text, after)

    def encode_pieces(self, text: str, after: After) -> tuple[Piece, ...]:
        """`text` cut at safe places, each piece with its ids."""
        if not text:
            return ()
        parts = list(self._cut(text))
        # All but the first begin with a control token or with a space: what precedes them changes
        # nothing.
        runs = self._encode_alone(parts)
        if not self.is_prefix_free:
            runs[0] = self.encode(parts[0], after)
        return tuple(map(Piece, parts, runs))

    def _pieces_after_literal(self, literal: str, text: str) -> tuple[Piece, ...]:
        """The same right after an added token that is no anchor: it may eat white space."""
        if not text:
            return ()
        parts = list(self._cut(text))
        runs = self._encode_alone([literal + parts[0], *parts[1:]])
        before = self._encode_one(literal)
        if not _starts_with(runs[0], before):  # they overlap, and are another token together
            return self.encode_pieces(text, After.TEXT)
        runs[0] = runs[0][len(before) :]
        return tuple(map(Piece, parts, runs))

    def is_anchor(self, text: str, index: int) -> bool:
        """Whether unsampled `text` can be cut at `index` without changing any token."""
        if index == 0 or self._controls.is_at(text, index):
            return True
        is_inside = 0 < index < len(text)
        is_word_end = is_inside and text[index] == " " and text[index - 1].isalnum()
        return is_word_end and self.is_prefix_free

    def _cut(self, text: str) -> Iterator[str]:
        begin, control = 0, -1
        while begin < len(text):
            if control < begin + MIN_PIECE_LEN:
                control = self._controls.next_start(text, begin + MIN_PIECE_LEN)
            end = control
            if self.is_prefix_free:
                word = _WORD_END.search(text, begin + LONG_PIECE_LEN - 1, control)
                end = control if word is None else word.end()
            yield text[begin:end]
            begin = end

    def _encode_after_text(self, text: str) -> TokenIds:
        """Without the space that SentencePiece puts before a text's first word."""
        first_control = self._controls.next_start(text, 0)
        head, rest = text[:first_control], text[first_control:]
        for context in _TEXT_CONTEXTS:
            before = self._encode_one(context)
            ids = self._encode_one(context + head)
            tail = ids[len(before) :]
            if _starts_with(ids, before) and self._table.join(tail.tolist()) == head.encode():
                return _joined(tail, self._encode_one(rest))
        return self._encode_one(text)

    def _encode_one(self, text: str) -> TokenIds:
        [ids] = self._encode_alone([text])
        return ids

    def _encode_alone(self, texts: Sequence[str]) -> list[TokenIds]:
        try:
            if sum(map(len, texts)) < SHORT_LEN:
                return [self._encode_short(text) for text in texts]
            return self._library.encode(texts)
        except (TypeError, UnicodeError) as exc:  # a lone surrogate, which JSON can spell
            raise BadRequest("The text is not valid Unicode.") from exc

    def _encode_short(self, text: str) -> TokenIds:
        known = self._known.get(text)
        if known is not None:
            return known
        [ids] = self._library.encode([text])
        if len(text) <= KNOWN_LEN:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[text] = ids
        return ids

    def _probe_prefix_free(self, backend: tokenizers.Tokenizer) -> bool:
        """Whether text cut at an anchor is tokenized the same, whatever precedes it."""
        literal = self._control_literal

        def encode(text: str) -> list[int]:
            ids: list[int] = self._encode_one(text).tolist()
            return ids

        if literal and any(
            encode(literal + probe) != encode(literal) + encode(probe) for probe in _CONTROL_PROBES
        ):
            return False
        if self._table.join(encode("foo")) != b"foo" or self._joins_words(backend):
            return False
        words = re.split(r"(?<=[^\W_])(?= )", _WORDS_PROBE)
        return [i for word in words for i in encode(word)] == encode(_WORDS_PROBE)

    def _joins_words(self, backend: tokenizers.Tokenizer) -> bool:
        """Whether a token can span a letter or digit and the space after it."""
        added = backend.get_added_tokens_decoder().values()
        if any(token.rstrip and token.content[-1:].isalnum() for token in added):
            return True
        ids = map(backend.token_to_id, filter(_INNER_SPACE.search, _vocabulary(backend)))
        return any(
            _JOINED_WORDS.search(self._table[token_id].decode(errors="replace"))
            for token_id in ids
            if token_id is not None
        )


def _vocabulary(backend: tokenizers.Tokenizer) -> Collection[str]:
    """All tokens: where no id is left out one by one, which takes half the time of all at once."""
    size = backend.get_vocab_size(with_added_tokens=True)
    tokens = [*filter(None, map(backend.id_to_token, range(size)))]
    return tokens if len(tokens) == size else backend.get_vocab(with_added_tokens=True)


def _starts_with(ids: TokenIds, first: TokenIds) -> bool:
    return np.array_equal(ids[: len(first)], first)


def _joined(left: TokenIds, right: TokenIds) -> TokenIds:
    ids: TokenIds = np.concatenate((left, right))
    ids.setflags(write=False)
    return ids


INLINE_PIECES = 2048  # more of them take over 10 ms, and should not hold a loop

Whole: TypeAlias = tuple[TokenIds, TokenIds, tuple[Piece, ...]]


def with_head(head: TokenIds, pieces: tuple[Piece, ...]) -> Whole:
    """All ids, those of the pieces, and the pieces as slices of these.

    The tree keeps the slices and the store the whole array, so they share memory.
    """
    own: TokenIds = np.concatenate([piece.ids for piece in pieces]) if pieces else NO_TOKENS
    ids: TokenIds = np.concatenate((head, own)) if len(head) else own
    own.setflags(write=False)
    ids.setflags(write=False)
    slices, end = [], 0
    for piece in pieces:
        begin, end = end, end + len(piece.ids)
        slices.append(Piece(piece.text, own[begin:end], piece.is_sampled))
    return ids, own, tuple(slices)
