"""What a reader of calls makes nothing of: text that is neither in the content nor in a call.

SGLang's detectors leave out what they do not expect inside of calls: a value whose tag is
misspelled, a call without a name. Here the words of the text are looked for in what was given of
it. Where one is nowhere, the text between the marks around it is content, at the end of the reply.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterator, Sequence, Set
from typing import Final, Protocol

from slime_router.types import ToolDelta

logger = logging.getLogger(__name__)

_MARKS = re.compile(r"(<[|｜][^<>]*[|｜]>|</?[^<>\s]+(?:\s[^<>]*)?>|\]<\]minimax\[>\[|\[[A-Z_]+\])")
_CUT_MARK = re.compile(r"(?:<[^<>]*|\[[A-Z_]*|\](?:<(?:\]\w*(?:\[>?)?)?)?)\Z")  # at the end
_WORD = re.compile(r"(?<!\w)[^\W\d_]\w*")
_PIECE = re.compile(r"(?:[\w&]|\\u[0-9a-fA-F]{4}|\\.)+", re.DOTALL)  # of text, with escapes
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
# Of frames and of JSON, and what may have become a value of another kind.
_FRAME_WORD = re.compile(
    r"analysis|arg(ument)?s?|array|assistant|boolean|calls?|channel|commentary|constrain|false|final"
    r"|functions?|id|index|integer|invoke|item|json|key|message|name|no|none|null|number|object|off"
    r"|on|parameters?|sep|string|to|tools?|tool_call_id|tool_name|true|type|user|xml|yes"
)
_NOTHING: Final = frozenset[str]()
_MOST_BETWEEN = 4  # words
_MOST_LEN = 50_000  # characters; in longer replies nothing is looked for


class Reader(Protocol):
    """A reader of the calls of one reply; see `CallReader`."""

    @property
    def marks(self) -> Sequence[str]:
        """Tags that it must be given in one piece."""

    @property
    def holds_nothing(self) -> bool:
        """Whether it is as if nothing had come: plain text may go past it then."""

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        """Content and calls that a piece of text adds; at the end also what was held back."""


class NothingLost:
    """A reader of calls that ends the reply with what another one has left out.

    Where that one fails, what it has read and not given is content, as is all that follows.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.marks = reader.marks  # that it must be given in one piece
        self._read: list[str] = []  # since a text did not pass as it came
        self._content = ""  # likewise
        self._calls: dict[int, list[str]] = {}  # what was given of each
        self._has_failed = False

    @property
    def holds_nothing(self) -> bool:
        """See `Reader`."""
        return self._has_failed or self._reader.holds_nothing

    def unread(self) -> str:
        """What was read so far and is not given."""
        return self._lost() if self._content or self._calls else "".join(self._read)

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        """See `Reader`."""
        if self._has_failed:
            return text, ()
        try:
            content, deltas = self._reader.read(text, is_last=is_last)
        except Exception:  # SGLang's detectors may raise anything on what models write
            logger.exception("the calls of a reply could not be read: the rest of it stays text")
            content, self._has_failed = self.unread() + text, True
            self._read.clear()
            return content, ()
        self._read.append(text)
        self._note(content, deltas)
        if is_last:
            content += self._lost()
        return content, deltas

    def _note(self, content: str, deltas: Sequence[ToolDelta]) -> None:
        """Takes note of what was given; text that passes as it came is not looked at again."""
        if content and not (self._content or self._calls or deltas):
            read = "".join(self._read)
            if read.startswith(content):
                self._read = [read[len(content) :]]
                return
        self._content += content
        for delta in deltas:
            given = self._calls.setdefault(delta.index, [])
            if delta.name:
                given += (delta.id or "", " ", delta.name, " ")
            given.append(delta.arguments)

    def _lost(self) -> str:
        """What was read, and is not given."""
        read = "".join(self._read)
        if len(read) > _MOST_LEN:
            return ""
        given = " ".join([self._content, *map("".join, self._calls.values())])
        read, known = _CUT_MARK.sub("", read), _words(given)
        missing = _words(_MARKS.sub(" ", read)) - known
        if _are_of_frames(missing):
            return ""
        known |= _words(_plain(given))
        content = self._content.casefold()  # words may stand together without their marks
        known |= {word for word in missing if word in content}
        return "" if _are_of_frames(missing - known) else "".join(_unknown(read, known))


def _unknown(text: str, known: Set[str]) -> Iterator[str]:
    """The parts of a text with words that are not known, and the marks around them."""
    parts = _MARKS.split(text)  # each second one is a mark
    for at in range(0, len(parts), 2):
        part, begun = parts[at], 0
        if _are_known(part, known):
            continue
        for start, end in _unknown_spans(part, known):
            yield "" if start or not at else parts[at - 1]
            yield part[start:end]
            begun = end
        if begun == len(part) and _are_known("".join(parts[at + 2 : at + 3]), known):
            yield "".join(parts[at + 1 : at + 2])


def _unknown_spans(part: str, known: Set[str]) -> Iterator[tuple[int, int]]:
    """Where unknown words stand in a text, each from what was given before it to what was after.

    A few known words among them may be a coincidence.
    """
    of_frames, are_known = _Kept(_NOTHING), _Kept(known)
    given = [each for each in _PIECE.finditer(part) if not of_frames[each[0]]]
    unknown = [at for at, each in enumerate(given) if not are_known[each[0]]]
    while unknown:
        first = last = unknown.pop(0)
        while unknown and unknown[0] - last <= _MOST_BETWEEN:
            last = unknown.pop(0)
        start = given[first - 1].end() if first else 0
        yield start, given[last + 1].start() if last + 1 < len(given) else len(part)


class _Kept(dict[str, bool]):
    """Whether the words of pieces are known, each piece looked at once."""

    def __init__(self, known: Set[str]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, piece: str) -> bool:
        self[piece] = are_known = _are_known(piece, self._known)
        return are_known


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _plain(text: str) -> str:
    r"""The text with the characters that escapes such as `\u00e9` stand for; spaces for others."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ", text)


def _are_of_frames(words: Set[str]) -> bool:
    return all(map(_FRAME_WORD.fullmatch, words))


def _are_known(text: str, known: Set[str]) -> bool:
    """Whether all words of a text are known or a frame's, with or without its escapes."""

    def are(text: str) -> bool:
        return _are_of_frames(_words(text) - known)

    plain = _plain(text)
    return are(text) or any(are(each) for each in (plain, *map(html.unescape, (text, plain))))
