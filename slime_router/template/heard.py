"""Long conversations in JSON, of which only what is new is read.

An agent sends its whole conversation again with every turn. The JSON text of its messages is
compared, byte by byte, with those that came before. Messages whose text is the same are the same:
they are not parsed, checked or recognised once more. Nothing depends on whether they were found: it
only takes longer where they were not. Of an API whose messages become those of a chat, these are
kept, in place of its own.

The JSON parser itself says whether the text that was taken out was the value of the body's own
messages: the name of the field is replaced by one that no client can know, and has to come out as
a field of the body.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from secrets import token_hex
from typing import Any, NamedTuple, TypeAlias

import orjson

from slime_router.cache.text_index import Place, TextIndex
from slime_router.json_text import signs
from slime_router.types import Message

LONG_LEN = 2**14  # bytes of a body that is worth a closer look
MAX_CHAINS = 4  # of one conversation, with other tools, say
MAX_KEPT_LEN = 2**26  # bytes of texts and of what was made of them
_SHARE = 3  # of its text's length that a conversation counts
_MESSAGE_LEN = 64  # bytes more for each message: in tuples and lists

_BACKSLASH = ord("\\")
_OPENING = re.compile(rb"\s*+:\s*+\[")
_NEXT = re.compile(rb"[ \t\n\r]*+(?:,[ \t\n\r]*+(?=\{)|(?=\]))")  # JSON has no other white space
Owner: TypeAlias = tuple[str, str]  # the path of an API, and who sent it

# Up to the next bracket of a list, or long string, of JSON that was found to be valid. Short ones
# are passed here: where a string is longer, it is faster to look for its quote.
_SIGN = re.compile(rb'(?:[^"\[\]]++|"[^"\\]{0,24}+")*+(["\[\]])')


def is_text(message: Any) -> bool:
    """Whether it may be a message whose content is a text, or nothing."""
    if type(message) is not dict:
        return False
    content = message.get("content")
    return content is None or type(content) is str


class Spoken(NamedTuple):
    """Where an API's bodies have their messages, and which of these can be remembered."""

    field: str
    is_usual: Callable[[Any], bool]


_CHAT = Spoken("messages", is_text)


class Chain(NamedTuple):
    """What was worked out of the messages of a conversation: of each prefix, the empty one first.

    `handles` are the names of turns in them, `found` the ids of the turns that had these, and
    `named` the places of the messages that are replies of such turns. `ids` leads from the client's
    own ids of calls to those of the turn, and `held` has, by place, the messages with the latter.
    `waiting` are the ids of the last calls that have no result yet.
    """

    keys: list[bytes]
    spellings: list[bytes]
    handles: list[str]
    found: list[str | None]
    named: set[int]
    ids: dict[str, str]
    held: dict[int, Message]
    waiting: list[str]

    @classmethod
    def of(cls, root: bytes) -> Chain:
        """The chain of no messages."""
        return cls([root], [b""], [], [], set(), {}, {}, [])

    def copy(self) -> Chain:
        """The same, to be continued."""
        lists = self.keys[:], self.spellings[:], self.handles[:], self.found[:]
        return Chain(*lists, {*self.named}, {**self.ids}, {**self.held}, self.waiting[:])


class Head(NamedTuple):
    """Messages before all others that stand elsewhere in the body; `size` is that of their JSON."""

    messages: tuple[Message, ...] = ()
    size: int = 0


_NO_HEAD = Head()


class Past:
    """Messages that came in one request: they never change, nor does what is known of them.

    The head's come first. `count` is how many the others were in the body; `entries` has them as
    they came, where they are asked for. `is_whole`: each has one text, or nothing. `is_apart`: no
    two of them are one reply in two parts. `signs`: how many arrays, objects and members are in
    their text, at most. `chains` has the last chain for each beginning of one.
    """

    __slots__ = (
        "before", "chains", "count", "entries", "followers", "head", "is_apart",
        "is_whole", "messages", "place", "signs", "size",
    )  # fmt: skip

    def __init__(
        self,
        messages: tuple[Message, ...],
        signs: int,
        count: int,
        *,
        head: Head = _NO_HEAD,
        is_whole: bool = True,
        entries: tuple[Any, ...] = (),
    ) -> None:
        self.messages = messages
        self.signs = signs
        self.count = count
        self.head = head
        self.is_whole = is_whole
        self.entries = entries
        self.before: Past | None = None  # what was kept of the request before
        self.followers = 0
        self.size = 0
        self.place: Place[bytes, Past] | None = None  # None where it is not kept
        self.chains: OrderedDict[bytes, Chain] = OrderedDict()
        self.is_apart = False

    def note(self, root: bytes, chain: Chain) -> None:
        """Keep a chain that begins with this key; nobody changes it any more."""
        self.chains[root] = chain
        if len(self.chains) > MAX_CHAINS:
            self.chains.popitem(last=False)


class Heard(tuple[Message, ...]):
    """Messages that were checked, and the first of which came before: nobody may write to them.

    Replies among them have one text, or nothing: nothing that was recorded says what they are.
    `past` is what came before, None for nothing; `whole` is what is known of all of them.
    """

    past: Past | None
    whole: Past

    @classmethod
    def of(cls, whole: Past, past: Past | None) -> Heard:
        """All messages of `whole`, which begin with those of `past`."""
        heard = cls(whole.messages)
        heard.past, heard.whole = past, whole
        return heard


@dataclass(slots=True, eq=False)
class Written:
    """The messages of a body: those that came before, checked, and the new ones as they are."""

    past: Past | None
    new: list[Any]
    _owner: Owner
    _text: bytes | None  # of the new ones, and what is before them; None once they are checked
    _texts: MessageTexts = field(repr=False)

    def __len__(self) -> int:
        return self.first_new + len(self.new)

    @property
    def first_new(self) -> int:
        """The place in the body of the first new one."""
        return 0 if self.past is None else self.past.count

    @property
    def known(self) -> tuple[Message, ...]:
        """The messages that came before, as they were checked then."""
        return () if self.past is None else self.past.messages

    def checked(self, new: Iterable[Message]) -> Heard:
        """All messages of a chat, given the new ones as they were checked; may be called once.

        It lets go of their text: the body may be held for as long as the reply takes.
        """
        return self.remade((), new)

    def let_go(self) -> None:
        """Frees the text of messages that are not remembered; in place of `checked`."""
        self._text = None

    def remade(
        self,
        first: Sequence[Message],
        new: Iterable[Message],
        entries: tuple[Any, ...] = (),
        *,
        is_closed: bool = True,
    ) -> Heard:
        """All messages of a chat, given what was made of the new ones; in place of `checked`.

        `first` are those that come before all others, and stand elsewhere in the body; `entries`
        are all others as they came, if they are to be kept. Where the last message may become
        another one with what follows (not `is_closed`), they are not remembered.
        """
        assert self._text is not None, "called twice"
        text, self._text = self._text, None
        past, known, known_signs, is_whole = self.past, self.known, 0, True
        head = _NO_HEAD if past is None else past.head
        is_same = head.messages == tuple(first)
        if past is not None:
            known_signs, is_whole = past.signs, past.is_whole
            if is_same and not self.new:
                return Heard.of(past, past)
        if not is_same:
            known = known[len(head.messages) :]
            head = Head(tuple(first), len(orjson.dumps(first)))
            known, is_whole = (*head.messages, *known), is_whole and all(map(is_text, first))
        new = tuple(new)
        now = Past(
            (*known, *new),
            known_signs + signs(text),
            len(self),
            head=head,
            is_whole=is_whole and all(map(is_text, new)),
            entries=entries,
        )
        if self.new and is_closed:
            self._texts.keep(now, text, past, self._owner)
        return Heard.of(now, past if is_same else None)


class MessageTexts:
    """Reads messages, and remembers the last two requests of each conversation.

    What was used least recently goes first. Owners do not learn of each other's conversations, nor
    does one API of another's.
    """

    def __init__(self, max_kept_len: int = MAX_KEPT_LEN) -> None:
        self._max_kept_len = max_kept_len
        self._name = f'"{token_hex(16)}"'.encode()
        self._indexes: dict[Owner, TextIndex[bytes, Past]] = {}
        self._kept: OrderedDict[Past, Owner] = OrderedDict()  # and whose they are
        self._kept_len = 0

    def __repr__(self) -> str:
        return f"<MessageTexts of {len(self._kept)} requests, {self._kept_len} bytes>"

    def __len__(self) -> int:
        return len(self._kept)

    def read(
        self,
        raw: bytes,
        owner: Owner = ("", ""),
        spoken: Spoken = _CHAT,
        max_signs: float = inf,
        max_messages: float = inf,
    ) -> tuple[dict[str, Any], bytes] | None:
        """A JSON object whose messages are `Written`, and the part of its text that is new.

        None if it is short, has more signs (see `signs`) or messages, or if anything about it is
        unusual.
        """
        field, is_long = b'"%b"' % spoken.field.encode(), len(raw) >= LONG_LEN
        at = raw.find(field) if self._max_kept_len > 0 and is_long else -1
        opening = None if at < 0 else _OPENING.match(raw, at + len(field))
        if opening is None:
            return None
        start = opening.end()
        past = self._find(owner, raw, start)
        begin = known_end = start
        if past is not None and past.place is not None:
            known_end = start + past.place.depth
            following = _NEXT.match(raw, known_end)
            if following is None:
                return None
            begin = following.end()
        rest = b"%b%b%b%b" % (raw[:at], self._name, opening[0], raw[begin:])
        if signs(rest) + (0 if past is None else past.signs) > max_signs:
            return None
        body = self._named(rest, spoken.field)
        if body is None:
            return None
        new = body[spoken.field]
        if len(new) + (0 if past is None else past.count) > max_messages:
            return None
        if not all(map(spoken.is_usual, new)) or (past is None and not new):
            return None
        new_at = at + len(self._name) + len(opening[0])
        end = begin + _end(rest, new_at) - new_at
        text = raw[known_end:end].rstrip()
        body[spoken.field] = Written(past, new, owner, text, self)
        return body, rest

    def keep(self, now: Past, text: bytes, past: Past | None, owner: Owner) -> None:
        """Remember messages that have this text after that of `past`."""
        above = None if past is None else past.place
        if past is not None and above is None:
            return  # it was forgotten meanwhile
        text_len = (above.depth if above else 0) + len(text) + now.head.size
        share = _SHARE + (_SHARE - 1) * bool(now.entries)
        now.size = share * text_len + _MESSAGE_LEN * len(now.messages)
        if now.size > self._max_kept_len:
            return  # all others would have to go, and then it as well
        index = self._indexes.setdefault(owner, TextIndex(b""))
        now.place = index.below(above or index.root, text)
        for same in now.place.marks:  # another request with these messages was quicker
            self._kept_len -= same.size
            del self._kept[same]
            same.place = None
        now.place.marks = (now,)
        self._kept[now] = owner
        self._kept_len += now.size
        if past is not None:
            now.before = past
            past.followers += 1
            first, past.before = past.before, None
            if first is not None and first.followers == 1:
                self._forget(first)
        while self._kept_len > self._max_kept_len:
            self._forget(next(iter(self._kept)))

    def _find(self, owner: Owner, raw: bytes, start: int) -> Past | None:
        index = self._indexes.get(owner)
        past = None
        for place in () if index is None else index.along(raw, start=start):
            [past] = place.marks
        if past is not None:
            self._kept.move_to_end(past)
        return past

    def _named(self, text: bytes, field: str) -> dict[str, Any] | None:
        """The body with its field's own name again; None if it was not the body's only one."""
        ours = self._name[1:-1].decode()
        try:
            fields = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        if type(fields) is not dict or type(fields.get(ours)) is not list or field in fields:
            return None
        return {(field if name == ours else name): value for name, value in fields.items()}

    def _forget(self, past: Past) -> None:
        owner = self._kept.pop(past, None)
        if owner is None or past.place is None:
            return
        self._kept_len -= past.size
        index, place = self._indexes[owner], past.place
        place.marks, past.place = (), None
        index.prune(place)
        if not index.size:
            del self._indexes[owner]


def _end(text: bytes, at: int) -> int:
    """Where the list ends whose inside begins at `at`: the place of its closing bracket."""
    depth = 1
    while True:
        found = _SIGN.match(text, at)
        assert found is not None, "the JSON is valid, so brackets are closed"
        at = found.end()
        if found[1] == b'"':
            at = _end_of_string(text, at)
            continue
        depth += 1 if found[1] == b"[" else -1
        if not depth:
            return at - 1


def _end_of_string(text: bytes, at: int) -> int:
    """Where the string ends, its quote included, whose inside begins at `at`."""
    quote = text.index(b'"', at)
    while text[quote - 1] == _BACKSLASH:
        first = quote - 1
        while text[first - 1] == _BACKSLASH:  # the opening quote is before them all
            first -= 1
        if (quote - first) % 2 == 0:  # they escape each other
            break
        quote = text.index(b'"', quote + 1)
    return quote + 1
