"""Ranks of byte strings, as tiktoken keeps a vocabulary, made into a backend of `tokenizers`.

tiktoken joins the two neighbours that together have the lowest rank; `tokenizers` joins by a list
of merges. The list that does the same holds, for each token in the order of the ranks, all pairs
of tokens that it can be joined from. Whether both then read every text alike is not taken for
granted: `prove` compares them before the backend is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from slime_router.chat.decoder import byte_alphabet
from slime_router.errors import SetupError

MAX_PROBES = 2000  # tokens of the vocabulary that are read in three surroundings each

_TEXTS = (
    "You are a helpful assistant.  What's 1 + 23 - 4567?\n\n    def f(x): return x  # it's\r\n\r\n",
    'I\'LL go to "HAVING" {"name":"get_weather","arguments":{"city":"Paris","n":12}}}\t x\n \n\n y',
    "Grüße aus Köln, déjà vu — nai\u0308ve café; 東京は首都です。中文English混合 北京市 Pascal",
    "Привет, мир! 안녕하세요 각 नमस्ते ไทย مرحبا שלום 🙂👩\u200d👩\u200d👧 ①②③ Ⅷ ½ ٣٤٥ Ǆǅǆ ʰª",
    "   \u00a0\u3000\u2028 a\u0085b \x00\x1f\x7f \ufeff\ufffd A\u030aB''s'S'Ll DON'T don't  1000,5",
)


@dataclass(frozen=True, slots=True)
class Special:
    """A token that is no piece of ordinary text: its id and how it is spelled."""

    id: int
    literal: str
    is_hidden: bool = True  # from texts that are read with `skip_special_tokens`


def build_backend(
    ranks: Mapping[bytes, int], pattern: str, specials: Sequence[Special], first_id: int = 0
) -> tokenizers.Tokenizer:
    """A backend that reads ordinary text by `ranks`, in the stretches that `pattern` matches.

    Args:
        ranks: The rank of each token; its id is `first_id` more.
        pattern: A regular expression whose matches are tokenized alone.
        specials: The other tokens, with ids of their own.
        first_id: The id of the token with rank 0.

    Raises:
        SetupError: A special token is spelled like an ordinary one, or the vocabulary has holes.
    """
    alphabet = {byte: character for character, byte in byte_alphabet().items()}

    def spell(token: bytes) -> str:
        return "".join(map(alphabet.__getitem__, token))

    vocabulary = {spell(token): first_id + rank for token, rank in ranks.items()}
    for special in specials:
        if special.literal in vocabulary:
            raise SetupError(f"the token {special.literal!r} has two ids")
        vocabulary[special.literal] = special.id
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise SetupError(f"the vocabulary has no token for byte {missing[0]}")
    merges = [(spell(left), spell(right)) for left, right in _merges(ranks)]
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    for special in sorted(specials, key=lambda each: each.id):
        token = AddedToken(special.literal, special=special.is_hidden, normalized=False)
        add = backend.add_special_tokens if special.is_hidden else backend.add_tokens
        add([token])
    return backend


def prove(
    backend: tokenizers.Tokenizer,
    ranks: Iterable[bytes],
    specials: Sequence[Special],
    native: Callable[[str], Sequence[int]],
) -> None:
    """Compare the backend with the vocabulary's own reader, on texts from all over it.

    Args:
        backend: What `build_backend` made.
        ranks: The ordinary tokens.
        specials: Those that `native` knows by their literals too.
        native: The ids of a text as the vocabulary's own library reads it.

    Raises:
        SetupError: They differ; the line shows the shortest such text.
    """
    differing = [
        text
        for text in _probes(list(ranks), specials)
        if backend.encode(text, add_special_tokens=False).ids != list(native(text))
    ]
    if differing:
        shortest = min(differing, key=len)
        raise SetupError(
            f"its tokens cannot be reproduced exactly, for example those of {shortest!r}"
        )


def _probes(tokens: Sequence[bytes], specials: Sequence[Special]) -> Iterator[str]:
    yield from _TEXTS
    for start in range(0, len(specials), 16):
        literals = [special.literal for special in specials[start : start + 16]]
        yield "".join(literals)
        yield "\n" + " a\n".join(literals) + "b"
    step = max(len(tokens) // MAX_PROBES, 1)
    words = [token.decode(errors="replace") for token in tokens[::step]]
    for start in range(0, len(words), 8):
        some = words[start : start + 8]
        yield "".join(some)
        yield " ".join(some)
        yield "x\n" + "1".join(some)


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [pair for pair in cuts if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
