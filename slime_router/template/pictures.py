"""Pictures in a conversation: where a template prints one, and what stands for it in texts.

To the router a picture is a word: a mark with a digest of it, which stands in a message's text
where the picture was. So messages with other pictures are other messages, and texts with other
pictures other texts. A template prints the mark like any text; what it prints for a picture is
found by trial, once, at start. A worker is sent the ids of that, and puts the picture's own in
place of one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from slime_router.template.parts import Parts
from slime_router.types import Message, Piece, TemplateOptions
from slime_router.values import replace

Render = Callable[[list[Message], TemplateOptions], str | None]

RESERVED = "\U0010fffe"  # Unicode keeps it for use inside of programs: no text has it
_MARK = re.compile(f"{RESERVED}([0-9a-f]{{32}})")
_DIGEST_LEN = 32  # hexadecimal digits of SHA-256
_ONE, _TWO = "Zq7one7qZ", "Zq8two8qZ"
_PICTURE = None  # in `_TRIED`
_TRIED: tuple[tuple[str | None, ...], ...] = (
    (_ONE, _PICTURE, _TWO),
    (_PICTURE, _ONE),
    (_ONE, _PICTURE),
    (_PICTURE, _PICTURE, _TWO),
    (f" {_ONE}\n", _PICTURE, f"\n\n{_TWO} "),  # some strip each part
    (_ONE, _PICTURE, _TWO, _PICTURE),
    (_PICTURE,),
)
_ROLES = ("user", "tool")
_FRAME_BEGINS, _FRAME_ENDS = re.compile(r"<[^<>\s]+>\Z"), re.compile(r"<[^<>\s]+>")


def digest_of(data: bytes) -> str:
    """How a picture is named: the first 32 hexadecimal digits of the SHA-256 of its bytes."""
    return sha256(data).hexdigest()[:_DIGEST_LEN]


def mark_of(digest: str) -> str:
    """What stands for a picture in a text."""
    return RESERVED + digest


def digests_in(text: str) -> tuple[str, ...]:
    """The pictures of a text, in order."""
    return tuple(_MARK.findall(text)) if RESERVED in text else ()


@dataclass(frozen=True, slots=True)
class Pictures:
    """How a template shows pictures.

    Attributes:
        before, after: what it prints around the token that a worker puts the picture's in place of.
        token: the text of that token, an added one.
        token_id: its id.
        roles: whose messages may have pictures.
    """

    before: str
    token: str
    after: str
    token_id: int
    roles: frozenset[str]

    def shown(self, text: str) -> str:
        """A rendered text with the marks where the pictures' tokens are."""
        return _MARK.sub(lambda mark: f"{self.before}{mark[0]}{self.after}", text)

    def written(self, text: str) -> str:
        """A text of `shown` as it is encoded."""
        return _MARK.sub(lambda _: self.token, text)

    def marked(self, pieces: Sequence[Piece], text: str) -> tuple[Piece, ...]:
        """The pieces of `written(text)` with the texts that they have in `text`."""
        digests = iter(digests_in(text))

        def of(piece: Piece) -> Piece:
            head, *rest = piece.text.split(self.token)
            if not rest:
                return piece
            return replace(
                piece, text=head + "".join(mark_of(next(digests)) + part for part in rest)
            )

        return tuple(map(of, pieces))


def find_pictures(
    render: Render, try_as_it_is: Render, parts: Parts, token: str, token_id: int
) -> Pictures | None:
    """Tries what the template prints for a picture; None where that is not one thing everywhere.

    The template must put a frame around the token. Where it does not, a worker's processor adds the
    frame to a text (Gemma 4, LFM2), and SGLang 0.5 leaves it out where it is sent ids.

    Args:
        render: as requests are rendered; `try_as_it_is` takes messages as they are. Both return
            None where the template refuses them.
        parts: joins texts in several parts.
        token: the text that stands for a picture, whose id is `token_id`.
    """
    found = {role: _printed(render, try_as_it_is, parts, role) for role in _ROLES}
    printed = found["user"]
    if printed is None or printed.count(token) != 1 or RESERVED in printed:
        return None
    before, _, after = printed.partition(token)
    if not (_FRAME_BEGINS.search(before) and _FRAME_ENDS.match(after)):
        return None
    roles = frozenset(role for role, each in found.items() if each == printed)
    return Pictures(before, token, after, token_id, roles)


def _printed(render: Render, try_as_it_is: Render, parts: Parts, role: str) -> str | None:
    """What stands for a picture of this role, the same in all that is tried."""
    mark = mark_of(digest_of(b""))
    printed: str | None = None
    for tried in _TRIED:
        texts = [_text(mark if each is _PICTURE else each) for each in tried]
        real = [{"type": "image"} if each is _PICTURE else _text(each) for each in tried]
        marked = render([*map(parts.joined, _talk(role, texts))], TemplateOptions())
        shown = try_as_it_is(_talk(role, real), TemplateOptions())
        if marked is None or shown is None:
            return None
        if printed is None:
            head, _, tail = marked.partition(mark)
            if not (shown.startswith(head) and shown.endswith(tail)):
                return None
            printed = shown[len(head) : len(shown) - len(tail)]
        if marked.replace(mark, printed) != shown:
            return None
    return printed


def _talk(role: str, content: object) -> list[Message]:
    """A short conversation that ends with a message of this role, which has this content."""
    if role == "user":
        return [{"role": "user", "content": content}]
    call = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {}}}
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": role, "content": content, "tool_call_id": "call00001"},
    ]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
