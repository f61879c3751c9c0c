"""A call after another that one of SGLang's parsers does not recognise."""

from __future__ import annotations

from slime_router.json_text import is_json
from slime_router.replies.detectors import CallDetector


def broken_call(
    parser: CallDetector, raw: str, given: str, *, is_lost: bool, is_last: bool
) -> tuple[str, str] | None:
    """The unrecognised call in the text `raw`, and what follows it; None if there is no such call.

    `given` are the arguments of the call before. After a call of an unknown tool the parser forgets
    all it has read (`is_lost`), and would add later text to the call before; after other faults it
    stops, and keeps what it cannot read.
    """
    begin = parser.call_begin
    if is_lost:
        at = raw.rfind(begin if begin in raw else "{")
        return "", raw[max(at, 0) :]
    unread = parser.unread
    if parser.has_named or len(unread) > len(raw):
        return None  # it reads a call, or keeps what it has read
    if is_last and begin not in unread and is_json(given):
        begin = "{"  # after a separator
    if begin not in unread:
        return None
    broken = unread[unread.index(begin) :]
    end = parser.end.strip()
    if len(end) > 1 and end in broken:
        head, _, rest = broken.partition(end)
        return head + end, rest
    return (broken, "") if is_last and len(broken) > len(begin) else None
