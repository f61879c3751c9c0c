"""Control tokens: the literals at which a text can be cut without changing any token.

A tokenizer takes its added tokens (`<|im_start|>`) out of a text first and tokenizes each stretch
between them alone. An *anchor* is an added token that is found wherever its literal stands, so that
`encode(a + b) == encode(a) + encode(b)` whenever `b` begins with one. It

* strips no whitespace beside it, and does not ask for word boundaries;
* is looked for in the raw text, not in the normalized one;
* overlaps no other added token, nor itself: none ends as another begins, none holds another.

Because anchors overlap nothing, every occurrence of a literal in a text is the token: one pattern
over the anchors alone finds what the tokenizer finds among all its added tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from tokenizers import AddedToken


class ControlTokens:
    """The anchors of one tokenizer. Never changes."""

    def __init__(self, added: Mapping[int, AddedToken], *, has_normalizer: bool) -> None:
        apart = _apart([token.content for token in added.values()])
        self._ids = {
            token.content: token_id
            for token_id, token in added.items()
            if token.content in apart and _is_memoryless(token, has_normalizer)
        }
        self._literals = {token_id: literal for literal, token_id in self._ids.items()}
        self._all_ids = frozenset(self._literals)
        self._eaters = {
            token_id: token.content
            for token_id, token in added.items()
            if token_id not in self._literals and token.content.strip()
        }
        self._pattern = re.compile(_trie(sorted(self._ids)) if self._ids else r"(?!)")
        self._added = {
            token.content: token_id for token_id, token in added.items() if token.content.strip()
        }
        self._added_pattern = re.compile(_trie(sorted(self._added)) if self._added else r"(?!)")

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, token_id: int) -> bool:
        return token_id in self._literals

    def __repr__(self) -> str:
        return f"ControlTokens({len(self)} anchors)"

    @property
    def ids(self) -> frozenset[int]:
        """The id of each anchor."""
        return self._all_ids

    @property
    def literals(self) -> Mapping[int, str]:
        """The literal of each anchor, by id."""
        return self._literals

    def is_at(self, text: str, start: int) -> bool:
        """Whether an anchor begins at `text[start]`."""
        return self._pattern.match(text, start) is not None

    def find(self, text: str, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """All anchors that begin at or after `start`, left to right, as `(start, end, id)`."""
        for match in self._pattern.finditer(text, start):
            yield match.start(), match.end(), self._ids[match.group()]

    def find_added(self, text: str) -> Iterator[tuple[int, int, int]]:
        """All added tokens in `text`, anchors or not, as `(start, end, id)`.

        The leftmost first and of several the longest, as the tokenizer takes them out. The white
        space that some of them eat is not theirs here.
        """
        for match in self._added_pattern.finditer(text):
            yield match.start(), match.end(), self._added[match.group()]

    def eater(self, token_id: int) -> str:
        """The literal of an added token that is not an anchor (it may eat white space); else ""."""
        return self._eaters.get(token_id, "")

    def next_start(self, text: str, start: int) -> int:
        """Where the first anchor at or after `start` begins; `len(text)` when there is none."""
        match = self._pattern.search(text, start)
        return len(text) if match is None else match.start()


def _is_memoryless(token: AddedToken, has_normalizer: bool) -> bool:
    strips = token.lstrip or token.rstrip or token.single_word
    # Whitespace at its edge could be eaten by a neighbour that strips.
    has_clean_edges = token.content == token.content.strip()
    return has_clean_edges and not strips and not (token.normalized and has_normalizer)


def _apart(words: Sequence[str]) -> set[str]:
    """The `words` that overlap none of the others; linear in their number (Gemma has 6,400)."""
    known = set(filter(None, words))
    lengths = sorted({len(word) for word in known})
    heads = {word[:cut] for word in known for cut in range(1, len(word))}
    tails = {word[cut:] for word in known for cut in range(1, len(word))}
    entangled: set[str] = set()
    for word in known:
        cuts = range(1, len(word))
        if any(word[cut:] in heads or word[:cut] in tails for cut in cuts):
            entangled.add(word)
        held = {
            word[start : start + length]
            for length in lengths
            if length < len(word)
            for start in range(len(word) - length + 1)
        } & known
        if held:
            entangled |= held | {word}
    return known - entangled


def _trie(words: Sequence[str]) -> str:
    """A pattern for sorted `words` that prefers the longest of those that begin alike.

    Shaped as a trie: a flat alternation of thousands of literals tries them one by one.
    """
    if words == [""]:
        return ""
    ends_here = words[0] == ""
    branches = [
        re.escape(first) + _trie([word[1:] for word in branch])
        for first, branch in groupby(words[ends_here:], key=lambda word: word[0])
    ]
    if ends_here:
        return f"(?:{'|'.join(branches)})?"
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
