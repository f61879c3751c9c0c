"""What a parser of SGLang read and said nothing of: is it only the frame of a call, or lost text?

Pure: text in, text out. Frames are what formats put around calls and between them.
"""

from __future__ import annotations

import re

FRAME = re.compile(r"<[|｜][^<>]*[|｜]>")  # control tokens, which are no content
_CLOSING = r"</[^<>]*>|<\|close\|>\w+<\|sep\|>"
_FRAME_PART = re.compile(
    rf"\s|{_CLOSING}|<[\w:|｜]*(?:tool|function)_calls?>|<[|｜][^<>]*[|｜]>|<\w+\|>|\]<\]minimax\[>\["
    r"|[\[\]{}(),;`]"  # of JSON, of Python, of a code block
)
_FRAMES = re.compile(f"(?:{_FRAME_PART.pattern})*")
_CLOSED = re.compile(_CLOSING)
_HEADER = re.compile(r"<\|(?:start|message_model)\|>")  # of a message that is a call
_WORD = re.compile(r"\w")


def without_control_tokens(text: str) -> str:
    """The text without marks such as `<|end|>`."""
    return FRAME.sub("", text)


def behind_call(text: str) -> str:
    """What is said behind a call that has ended; empty where it is only the frame's end."""
    said = text[_FRAMES.match(text).end() :]  # type: ignore[union-attr] # it matches anything
    return _content(said)


def between_calls(text: str, mark: str) -> str:
    """What is said behind a call and before the `mark` of the next one, whose name was read."""
    at = text.rfind(mark) if mark else -1
    return behind_call(_HEADER.split(text[:at])[0]) if at > 0 else ""


def inside_call(text: str) -> str:
    """What was written of a call that has not ended."""
    return _content(text)


def is_empty_call(text: str) -> bool:
    """Whether a call has ended without arguments, where this is all that stands behind its name."""
    has_ended = _CLOSED.search(text) is not None or text.rstrip().endswith("}")
    return has_ended and not _WORD.search(_FRAME_PART.sub("", text))


def _content(text: str) -> str:
    text = without_control_tokens(text)
    return text if _WORD.search(text) else ""
