"""Token splits that no tokenizer would choose: what a model may sample anyway."""

from __future__ import annotations

from slime_router.tokens.encoder import After
from slime_router.tokens.tokenizer import Tokenizer

MIN_LEN = 2  # characters of a token that can be cut in two


def odd_split(vocabulary: Tokenizer, text: str, after: After) -> list[int]:
    """Ids that spell `text`, in which plain words are cut where the tokenizer would not.

    Only tokens made of letters, with at most a space before them, are cut: control tokens and
    marks stay whole, as a model samples them.
    """
    ids: list[int] = []
    for token_id in vocabulary.encode(text, after).tolist():
        ids += _halves(vocabulary, token_id) or [token_id]
    return ids


def _halves(vocabulary: Tokenizer, token_id: int) -> list[int]:
    """Two tokens that spell the same; nothing where there are no such."""
    spelled = vocabulary.token_bytes(token_id)
    word = spelled.decode(errors="replace")
    if len(word) < MIN_LEN or not word.removeprefix(" ").isalpha() or not word.isascii():
        return []
    for cut in range(len(word) // 2, 0, -1):
        pair = [
            part_id
            for part in (word[:cut], word[cut:])
            for part_id in vocabulary.encode(part, After.TEXT).tolist()
        ]
        joined = b"".join(vocabulary.token_bytes(part_id) for part_id in pair)
        if len(pair) == 2 and joined == spelled:
            return pair
    return []
