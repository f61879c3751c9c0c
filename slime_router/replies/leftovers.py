"""What an SGLang parser read and did not return: is it only the frame of a call, or lost text?

Pure: text in, text out. Frames are what formats put around calls and between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from slime_router.json_text import Braces

FRAME = re.compile(r"<[|｜][^<>]*[|｜]>")  # control tokens, which are not content
ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')
CALL = re.compile(r'\{[^{}]*"name"\s*:\s*"')
_CLOSING = r"</[^<>]*>|<\|close\|>\w+<\|sep\|>"
_FRAME_PART = re.compile(
    rf"\s|{_CLOSING}|<[\w:|｜]*(?:tool|function)_calls?>|<[|｜][^<>]*[|｜]>|<\w+\|>|\]<\]minimax\[>\["
    r"|[\[\]{}(),;`]"  # of JSON, of Python, of a code block
)
_FRAMES = re.compile(f"(?:{_FRAME_PART.pattern})*")
_WORDLESS = re.compile(rf"(?:{_FRAME_PART.pattern}|\W)*")  # up to the first word outside of them
_CLOSED = re.compile(_CLOSING)
_HEADER = re.compile(r"<\|(?:start|message_model)\|>")  # of a message that is a call
_BEFORE_VALUE = re.compile(r'(?:\{\s*(?:"(?:[^"\\]|\\.)*(?:"\s*(?::\s*)?)?)?)?')
_NO_VALUE = re.compile(r'\{\s*(?:[^\s"}]|"(?:[^"\\]|\\.)*"\s*(?:[^\s:]|:\s*(?![\s"{\[tfn\d-])\S))')
_BARE_CALL = re.compile(r'\{\s*(?:"(?:name|id|type)"\s*:\s*"(?:[^"\\]|\\.)*"\s*(?:,\s*)?)*\}')
_CLOSERS = re.compile(r"[\s}\]]*")
_WORD = re.compile(r"\w")
_MOST_MARKS = 16  # so many are looked at: each takes as long as the call is


def without_control_tokens(text: str) -> str:
    """The text without marks such as `<|end|>`."""
    return FRAME.sub("", text)


def after_call(text: str) -> str:
    """The text after a call that has ended; empty where it is only the end of the frame."""
    said = text[_FRAMES.match(text).end() :]  # type: ignore[union-attr] # it matches anything
    return content_of(said)


def call_start(text: str, mark: str, is_call: Callable[[str], bool]) -> int:
    """Where the call that `text` ends with begins; -1 where no `mark` is in it.

    An argument may hold the mark, too: it is the last one from which on `is_call`.
    """
    last = at = text.rfind(mark) if mark else -1
    for _ in range(_MOST_MARKS):
        before = text.rfind(mark, 0, at) if at > 0 else -1
        if at == last and before < 0:
            break  # the only one
        if is_call(text[at:]):
            return at
        if before < 0:
            break
        at = before
    return last


def between_calls(text: str, at: int) -> str:
    """The text after a call and before the next one, which begins `at`, and whose name was read."""
    return after_call(_HEADER.split(text[:at])[0]) if at > 0 else ""


def is_empty_call(text: str) -> bool:
    """Whether a call has ended without arguments, where this is all that follows its name."""
    if _WORDLESS.match(text).end() < len(text):  # type: ignore[union-attr] # it matches anything
        return False
    return _CLOSED.search(text) is not None or text.rstrip().endswith("}")


def cut_call(text: str, begin: str, end: str, names: Collection[str]) -> tuple[str, str]:
    """The arguments of a call that is not JSON, and the text after it.

    `text` is that since the call's name, `begin` and `end` are the marks around calls, and `names`
    those of the tools. Where a quote too many or too few hides the end of a call, it is where the
    next one begins.
    """
    mark = end.strip()
    following = _next_call(text, begin, names, has_mark=len(mark) > 1)
    key = ARGUMENTS.search(text, 0, following if following >= 0 else len(text))
    start = len(text) if key is None else key.end()
    if len(mark) > 1:
        ended = text.find(mark)
        if following >= 0 and (ended < 0 or following < ended):
            return opened(text[start:following], has_ended=False), text[following:]
        if ended < 0:
            return opened(text[start:], has_ended=False), ""
        return opened(text[start:ended], has_ended=True), text[ended + len(mark) :]
    at = Braces().end(text[start:]) + start
    call = CALL.search(text, at) if at > start else None
    if call is not None and _FRAMES.fullmatch(text, at, call.start()):
        return text[start:at], begin + text[call.start() :]
    if following < 0:
        return opened(text[start:], has_ended=False), ""
    arguments = opened(text[start:following].rstrip(" \n;,"), has_ended=True)
    return arguments, begin + text[following:].removeprefix(begin)


def cut_frame(text: str, begin: str, end: str, names: Collection[str]) -> tuple[str, str, bool]:
    """A call up to the mark that ends it or to the next call, the text after it, and whether it
    has ended; only for calls between marks.
    """
    mark = end.strip()
    if len(mark) < 2:
        return "", "", False
    following = _next_call(text[1:], begin, names, has_mark=True) + 1
    ended = text.find(mark)
    if following > 0 and not 0 <= ended < following:
        return text[:following], text[following:], True
    at = ended + len(mark) if ended >= 0 else len(text)
    return text[:at], text[at:], ended >= 0


def _next_call(text: str, begin: str, names: Collection[str], *, has_mark: bool) -> int:
    """Where another call of a known tool begins, with its mark where it must have one; or -1."""
    mark = re.escape(begin.strip())
    before = rf"{mark}\s*" if has_mark else rf"(?:{mark}\s*|(?<=\}}[;,])\s*|(?<=\}})\s*)"
    known = "|".join(map(re.escape, names))
    call = rf'{before}\{{\s*"name"\s*:\s*"(?:{known})"\s*,\s*"(?:arguments|parameters)"'
    found = re.search(call, text)
    return -1 if found is None else found.start()


def opened(written: str, *, has_ended: bool) -> str:
    """Arguments without the brace that closes the call around them, where there is one."""
    written = written.strip()
    if Braces().end(written) == len(written):
        return written
    if has_ended or written.count("}") > written.count("{"):
        written = written.removesuffix("]").rstrip().removesuffix("}").rstrip()
    return written


def after(given: str, written: str) -> str:
    """What of arguments is written after those `given`, which may be spaced differently."""
    at = 0
    for letter in "".join(given.split()):
        while written[at : at + 1].isspace():
            at += 1
        if not written.startswith(letter, at):
            return ""
        at += 1
    space = given[len(given.rstrip()) :]  # inside a string it is a part of what was given
    return written[at:].removeprefix(space)


def frame_end(text: str, mark: str) -> int:
    """Where the frame of a call ends in the text after its object; -1 while that may still come.

    Where something else comes it is at once, and so it is where no `mark` ends calls.
    """
    if len(mark) < 2:
        return 0
    at = _CLOSERS.match(text).end()  # type: ignore[union-attr] # it matches anything
    if text.startswith(mark, at):
        return at + len(mark)
    return -1 if mark.startswith(text[at:]) else 0


def is_no_call(written: str) -> bool:
    """Whether a call's JSON has no arguments, but members that calls do not have."""
    call = CALL.search(written)
    if call is None or ARGUMENTS.search(written, call.start()):
        return False
    return not _BARE_CALL.match(written, call.start())


def has_no_value(arguments: str) -> bool:
    """Whether arguments end before their first value, or something else stands in its place."""
    arguments = arguments.strip()
    return bool(_BEFORE_VALUE.fullmatch(arguments) or _NO_VALUE.match(arguments))


def content_of(text: str) -> str:
    """Text without control tokens; empty where it has no words."""
    text = without_control_tokens(text)
    return text if _WORD.search(text) else ""
