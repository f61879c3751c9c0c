"""The ids that Mistral's models give to their calls, which SGLang's parser does not read.

    [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "abCD12345"}, ...]
    [TOOL_CALLS]add[CALL_ID]abCD12345[ARGS]{"a": 1}

A call is given once it is whole: its id may be the last of it.
"""

from __future__ import annotations

import json
import re
from itertools import takewhile

from slime_router.json_text import Braces
from slime_router.replies.tool_calls import CallReader
from slime_router.types import ToolDelta
from slime_router.values import replace

NAME = "mistral"  # of the parser

_START, _MARK, _ARGUMENTS = "[TOOL_CALLS", "[CALL_ID]", "[ARGS]"
_ID = re.compile(r"\[CALL_ID\]\s*([^\s\[]*)\s*")
_NAME = re.compile(r"\[TOOL_CALLS\]?\s*([^\s\[\]{]+)")


class MistralCalls:
    """A reader of calls that gives them the ids which the model sampled."""

    def __init__(self, reader: CallReader) -> None:
        self._reader = reader
        self.marks = reader.marks
        self._head: list[str] = []  # pieces outside of JSON that may be the beginning of an id
        self._between = ""  # the calls
        self._id: str | None = None  # before the arguments that come next
        self._left_out = ""  # the text of the id
        self._body: str | None = None  # the JSON object that is read
        self._braces = Braces()
        self._ended: list[tuple[str, str | None]] = []  # calls that are whole: name and id
        self._waiting: dict[int, list[ToolDelta]] = {}  # calls, until their ids are known
        self._given: set[str] = set()

    @property
    def holds_nothing(self) -> bool:
        """Whether no text has come: ids may begin anywhere in it."""
        return self._reader.is_unused

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        """See `CallReader`."""
        content, deltas = "", tuple[ToolDelta, ...]()
        pieces = self._without_ids(text, is_last=is_last) or ([""] if is_last else [])
        for number, piece in enumerate(pieces, 1):
            said, more = self._reader.read(piece, is_last=is_last and number == len(pieces))
            content, deltas = content + self._whole(said), deltas + more
        for delta in deltas:
            self._waiting.setdefault(delta.index, []).append(delta)
        is_over = is_last or bool(content.strip())
        # In order: one that is not whole yet keeps those after it.
        ready = [*takewhile(lambda index: is_over or self._is_whole(index), self._waiting)]
        return content, tuple(each for index in ready for each in self._named(index))

    def _is_whole(self, index: int) -> bool:
        name = self._waiting[index][0].name
        return name is None or any(each == name for each, _ in self._ended)

    def _named(self, index: int) -> list[ToolDelta]:
        first, *rest = _without_end(self._waiting.pop(index))
        found = next((call for call in self._ended if call[0] == first.name), None)
        if found is None:
            return [first, *rest]
        self._ended.remove(found)
        sampled = found[1]
        if not sampled or sampled in self._given:
            return [first, *rest]
        self._given.add(sampled)
        return [replace(first, id=sampled, has_random_id=False), *rest]

    def _without_ids(self, text: str, *, is_last: bool) -> list[str]:
        """The pieces as SGLang's parser reads them; what may be an id waits."""
        if self._body is not None:
            self._note(text)
            return [text]
        if _START not in self._between:
            text_near = self._between + text
            start = text_near.find(_START)
            self._between = text_near[start:] if start >= 0 else text_near[-len(_START) :]
            return [text]
        pieces, self._head = [*self._head, text], []
        text = "".join(pieces)
        tail = text[text.rfind("[") :] if "[" in text else ""
        if not is_last and tail and (_MARK.startswith(tail) or tail.startswith(_MARK)):
            self._head = pieces
            return []
        self._between += text
        found = _ID.search(text)
        if found is not None and not is_last:
            self._id, self._left_out = found[1], found.group()
            pieces = [text[: found.start()], text[found.end() :]]
        if "{" in text:
            self._body, self._braces = "", Braces()
            self._note(text[text.index("{") :])
        return [piece for piece in pieces if piece]

    def _whole(self, content: str) -> str:
        """The content with the id that was left out of it, where it is not a call after all."""
        if self._left_out and _ARGUMENTS in content:
            content = content.replace(_ARGUMENTS, self._left_out + _ARGUMENTS, 1)
            self._left_out = ""
        return content

    def _note(self, text: str) -> None:
        """Takes note of JSON, up to the end of its object."""
        assert self._body is not None
        end = self._braces.end(text)
        self._body += text if end < 0 else text[:end]
        if end >= 0:
            name = _NAME.search(self._between)
            self._ended.append((name[1], self._id) if name is not None else _call_in(self._body))
            self._body = self._id = None
            self._between = self._between if name is None else ""


def _without_end(deltas: list[ToolDelta]) -> list[ToolDelta]:
    """A call without what follows its arguments: the beginning of an id, where it was cut."""
    first, *rest = deltas
    arguments = "".join(delta.arguments for delta in rest)
    end = Braces().end(arguments)
    if not 0 <= end < len(arguments):
        return deltas
    return [first, replace(rest[0], arguments=arguments[:end])]


def _call_in(body: str) -> tuple[str, str | None]:
    """The name and the id of a call in the older form; "" and None where they are not to be had."""
    try:
        call = json.loads(body)  # also half an emoji or a number that is too huge, unlike orjson
    except (ValueError, RecursionError):
        return "", None
    name, call_id = call.get("name"), call.get("id")
    return str(name), call_id if isinstance(call_id, str) else None
