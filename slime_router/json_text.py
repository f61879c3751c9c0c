"""JSON as models write it, where a strict reader refuses it; and how many bytes a value takes."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any

import orjson

_HALVES = re.compile("[\ud800-\udfff]")
_ESCAPES = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_ESCAPED = re.compile(  # the group is there where it is half of a pair
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u([dD][89a-fA-F])|\\.", re.DOTALL
)
_SIGNS = re.compile(r'["\\\x00-\x1f]')
_HUGE = re.compile(r"\d[eE]\+?\d{3}|\d{309}")  # may be more than a double can hold
_WORDS = re.compile(r'"(?:[^"\\]|\\.)*"?|Infinity', re.DOTALL)
_LINE_ENDS = tuple((end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029")


def escaped_halves(text: str, source: str = "") -> str:
    r"""The text with halves of surrogate pairs as the escapes they were read from: `\ud83d`.

    A model may sample half of an escaped emoji. Python reads that as a separate character, which
    has no UTF-8: nothing could be sent, hashed or logged. `source` is what was sampled: escapes are
    spelled as they are there.
    """
    if text.isascii() or not _HALVES.search(text):
        return text
    spelled: dict[str, str] = {escape.lower(): escape for escape in _ESCAPES.findall(source)}

    def escape(half: re.Match[str]) -> str:
        plain = f"\\u{ord(half[0]):04x}"
        return spelled.get(plain, plain)

    return _HALVES.sub(escape, text)


def finite(text: str, given: str, source: str) -> str:
    """The next text of a value of which `given` was written, with `1e999` for Python's `Infinity`.

    Python reads a number that no double can hold as infinity, and writes that as a word, which is
    not JSON. A word that is not from such a number in the `source` stays.
    """
    if "Infinity" not in text or not _HUGE.search(source):
        return text

    def number(found: re.Match[str]) -> str:
        return "1e999" if found[0] == "Infinity" else found[0]

    return _WORDS.sub(number, given + text)[len(given) :]


def without_mark(raw: bytes) -> bytes:
    """JSON without the byte order mark that some editors and shells put before it."""
    return raw.removeprefix(BOM_UTF8)


def is_whole_json(text: str) -> bool:
    """Whether orjson takes the text for JSON, but for half an escaped emoji.

    It takes no number that is too huge for a double, so SGLang writes no such call again.
    """
    try:
        orjson.loads(without_halves(text))
    except orjson.JSONDecodeError:
        return False
    return True


def one_line(written: bytes) -> bytes:
    """JSON in which also those see one line who take Unicode's line ends for the end of a line.

    Formats of lines know LF and CR alone, which JSON escapes. Python's `str.splitlines` knows more,
    and with it the clients that read streams and lines by httpx or requests.
    """
    if not written.isascii():
        for end, escape in _LINE_ENDS:
            written = written.replace(end, escape)
    return written


def cut_to_size(written: bytes) -> bytes:
    """The same bytes, to be kept: those of `orjson.dumps` take four kilobytes or more each."""
    return bytes(memoryview(written))


def without_halves(text: str) -> str:
    """JSON text with an x for each escaped half: a strict reader then takes what is left."""
    return _ESCAPES.sub(r"\\u0078", text) if "\\u" in text else text


def is_text(said: str) -> bool:
    """Whether there are no halves of surrogate pairs in it: those have no UTF-8."""
    return said.isascii() or not _HALVES.search(said)


def has_half(text: str) -> bool:
    """Whether half of a surrogate pair is escaped in JSON text without the other half."""
    return "\\u" in text and any(found[1] for found in _ESCAPED.finditer(text))


def is_json(text: str) -> bool:
    """Whether the text is JSON, as RFC 8259 has it: half a surrogate pair may be escaped in it."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


class Braces:
    """Finds where a JSON object ends in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def end(self, text: str) -> int:
        """The index after the last brace; -1 while the object continues."""
        for index, letter in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif letter == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                self._is_escaped = letter == "\\"
            elif letter in "{}":
                self._depth += 1 if letter == "{" else -1
                if not self._depth:
                    return index + 1
        return -1


class StringControls:
    """Escapes the control characters in strings of JSON that comes in pieces.

    JSON has none there, but models write line ends and tabs as they are.
    """

    def __init__(self) -> None:
        self._in_string = False
        self._is_escaped = False

    def escaped(self, text: str) -> str:
        """The next piece; everything else in it stays as it is."""
        parts: list[str] = []
        start, escaped_at = 0, 0 if self._is_escaped else -1
        self._is_escaped = False
        for found in _SIGNS.finditer(text):
            at, sign = found.start(), found[0]
            if at == escaped_at:
                continue
            if sign == '"':
                self._in_string = not self._in_string
            elif self._in_string and sign == "\\":
                escaped_at = at + 1
            elif self._in_string:
                parts += text[start:at], json.dumps(sign)[1:-1]
                start = at + 1
        self._is_escaped = escaped_at == len(text)
        return "".join([*parts, text[start:]])


def brackets(raw: bytes) -> int:
    """How many arrays and objects are in JSON text at most: those in strings count as well."""
    return raw.count(b"[") + raw.count(b"{")


def signs(raw: bytes) -> int:
    """How many arrays, objects and members of objects, likewise."""
    return brackets(raw) + raw.count(b":")


def size_of(value: Any) -> int:
    """The bytes of a value, as JSON or a little less."""
    return sum(sizes(value))


def sizes(value: Any) -> Iterator[int]:
    """The bytes of each string and number inside a value; at least one for each.

    A reader may stop where it has seen enough.
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if type(each) is str:
            yield len(each) if each.isascii() else len(each.encode("utf-8", "surrogatepass"))
        elif type(each) is dict:
            for key, inner in each.items():
                yield len(key) + 4
                waiting.append(inner)
        elif type(each) is list or type(each) is tuple:
            yield 2
            for inner in each:
                yield 1
                waiting.append(inner)
        else:
            yield 4
