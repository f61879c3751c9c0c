"""A tool's input as it is streamed: whatever has been passed on can still become an object.

Models also write arguments that are not JSON, or half of an escaped character, which SDKs take for
broken. They read an input while it comes, and give up the whole reply where they cannot. So what
breaks off is ended there, halves are spelled out, and all that was written is the last member,
`_raw`.
"""

from __future__ import annotations

import json
import re
from typing import Final

import orjson

from slime_router.api.anthropic.messages import RAW, arguments_of, input_json, streamed_json
from slime_router.json_text import is_json

_SIGNS: Final = '"{}[],:'
_TOKEN: Final = re.compile(r'["{}\[\],:]|[ \t\n\r]+|[^ \t\n\r"{}\[\],:]+')
_UNQUOTED: Final = re.compile(r'[^ \t\n\r"{}\[\],:]*')
_SCALAR: Final = re.compile(r"(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)\Z")
_PART: Final = re.compile(  # of a string
    r'[^"\\\x00-\x1f]+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r'|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|["\x00-\x1f]'
)
_CUT_ESCAPE: Final = re.compile(  # or half of a character, the other half of which may follow
    r"\\(?:u(?:[0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?))?\Z"
)
_HALF: Final = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")  # of a character, by itself
_ENDS: Final = {"{": "}", "[": "]"}


def whole_input(streamed: str) -> str:
    """The input of a reply in one piece, from that of a stream: an object, or `_raw` alone."""
    may_have_raw = f'"{RAW}"' in streamed and is_json(streamed)  # a limit may cut it
    arguments = arguments_of(json.loads(streamed)) if may_have_raw else streamed
    return input_json(arguments if isinstance(arguments, str) else streamed)


class StreamedInput:
    """The arguments of one call, which come in pieces.

    Commas, keys and the last brace wait for what comes next: before a break are whole members.
    """

    def __init__(self) -> None:
        self._written: list[str] = []
        self._begun = ""  # an escape that may continue
        self._scalar: list[str] = []  # the pieces of a value without quotes, which may continue
        self._waiting = ""  # what is passed on with the next value
        self._has_given = self._has_members = False
        self._open: list[str] = []  # objects and arrays
        self._next = "object"  # or "key", "key or end", "colon", "value", "value or end", "more"
        self._string = ""  # the one that is open: "key" or "value"
        self._is_broken = False  # all that was written is given at the end
        self._has_stopped = False  # nothing more is passed on until then

    def push(self, text: str, *, is_last: bool) -> str:
        """What can be passed on now; arguments that come whole are checked as a whole."""
        self._written.append(text)
        if self._has_stopped or (is_last and not self._has_given):
            return ""
        given = self._read(text)
        if self._is_broken and not self._has_given:  # in the first piece
            self._has_stopped = True
            return ""
        self._has_given = self._has_given or bool(given)
        return given

    def end(self, *, is_cut: bool) -> str:
        """What ends it. Of one that a limit of tokens cut it is what is left, as it was written."""
        written = "".join(self._written)
        if not self._has_given:
            return streamed_json(written) if written.strip() else ""
        if is_cut and not self._is_broken and self._next != "end":
            return self._waiting + self._begun + "".join(self._scalar)
        rest = self._read(" ") if self._scalar else ""
        if self._next == "end" and not self._is_broken:
            return rest + self._waiting
        closing = ['"'] if self._string == "value" else []
        closing += [_ENDS[each] for each in reversed(self._open[1:])]
        comma = ", " if self._has_members else ""
        return rest + "".join(closing) + comma + orjson.dumps({RAW: written}).decode()[1:]

    def _read(self, text: str) -> str:
        if self._scalar and _UNQUOTED.fullmatch(text):
            self._scalar.append(text)
            return ""
        text = self._begun + "".join(self._scalar) + text
        self._begun, self._scalar = "", []
        given: list[str] = []
        at = 0
        while at < len(text) and not self._has_stopped:
            piece = self._part(text, at) if self._string else self._token(text, at)
            at += len(self._begun or piece)
            if not (self._begun or self._scalar):
                given.append(self._taken(piece))
        return "".join(given)

    def _part(self, text: str, at: int) -> str:
        """The next part of a string."""
        if _CUT_ESCAPE.match(text, at):
            self._begun = text[at:]
            return self._begun
        found = _PART.match(text, at)
        return text[at] if found is None else found[0]

    def _token(self, text: str, at: int) -> str:
        found = _TOKEN.match(text, at)
        assert found is not None, "each character has one kind"
        if found[0] not in _SIGNS and not found[0].isspace() and found.end() == len(text):
            self._scalar = [found[0]]
        return found[0]

    def _taken(self, piece: str) -> str:
        """What can be passed on with the next piece."""
        if self._string:
            return self._in_string(piece)
        if piece.isspace():
            self._waiting += piece
            return ""
        wanted, self._next = self._next, ""
        match piece:
            case "{" | "[" if wanted.startswith("value") or (wanted, piece) == ("object", "{"):
                self._has_members = bool(self._open)
                self._open.append(piece)
                self._next = "key or end" if piece == "{" else "value or end"
                return self._flushed(piece)
            case "}" | "]" if self._ends(piece, wanted):
                self._open.pop()
                self._next = "more" if self._open else "end"
                if self._open:
                    return self._flushed(piece)
            case "," if wanted == "more":
                self._next = "key" if self._open[-1] == "{" else "value"
            case ":" if wanted == "colon":
                self._next = "value"
            case '"' if wanted.startswith("key"):
                self._string = "key"
            case '"' if wanted.startswith("value"):
                self._string, self._has_members = "value", True
                return self._flushed(piece)
            case _ if wanted.startswith("value") and _SCALAR.match(piece):
                self._next, self._has_members = "more", True
                return self._flushed(piece)
            case _:
                self._is_broken = self._has_stopped = True
                return ""
        self._waiting += piece
        return ""

    def _ends(self, piece: str, wanted: str) -> bool:
        is_open = bool(self._open) and _ENDS[self._open[-1]] == piece
        return is_open and (wanted == "more" or wanted.endswith("or end"))

    def _in_string(self, piece: str) -> str:
        """The next part; one that JSON does not have there is escaped."""
        kind = self._string
        if piece == "\\" or _HALF.fullmatch(piece):
            piece, self._is_broken = f"\\{piece}", True
        elif piece < " ":
            piece = json.dumps(piece)[1:-1]
        elif piece == '"':
            self._string, self._next = "", "colon" if kind == "key" else "more"
        if kind == "value":
            return piece
        self._waiting += piece
        return ""

    def _flushed(self, piece: str) -> str:
        given, self._waiting = self._waiting + piece, ""
        return given
