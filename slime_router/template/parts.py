"""Texts in several parts as one text, with what the template itself puts between two parts.

SGLang gives a template that walks through parts the parts themselves, and to any other their texts
joined with a space. What a template does with them is found by trial, once, at start. The text of
a reply is another matter: a client may have parted what was sampled as one, see `spellings`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from slime_router.template.heard import Heard
from slime_router.template.messages import PART_SEPARATOR, Plain, part_text
from slime_router.types import Message, TemplateOptions

TryRender = Callable[[list[Message], TemplateOptions], str | None]

_ONE, _TWO = "Zq7one7qZ", "Zq8two8qZ"
_BETWEEN = ("", "\n", "\n\n", PART_SEPARATOR)
_ROLES = ("user", "assistant", "system", "tool")


class Parts:
    """Joins texts as one template does.

    `separators` has what it puts between them, by role; `stripped` are the roles of which it prints
    each text without the white space around it, as Gemma's does.
    """

    def __init__(
        self, separators: Mapping[str, str] | None = None, stripped: Collection[str] = ()
    ) -> None:
        self._separators = dict(separators or {})
        self._stripped = frozenset(stripped)

    def __repr__(self) -> str:
        return f"<Parts {self._separators}, stripped {sorted(self._stripped)}>"

    def whole(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with one text each; the same object where each has that already."""
        if isinstance(messages, Plain) or (isinstance(messages, Heard) and messages.whole.is_whole):
            return messages
        if not any(map(_is_parted, messages)):
            return messages
        return tuple(self.joined(message) for message in messages)

    def joined(self, message: Message) -> Message:
        """The message with one text; the same object where it has that already."""
        if not _is_parted(message):
            return message
        role, texts = str(message["role"]).lower(), _texts(message)
        if role in self._stripped:
            texts = list(map(str.strip, texts))
        return {**message, "content": self._separators.get(role, PART_SEPARATOR).join(texts)}

    def spellings(self, message: Message) -> Iterator[Message]:
        """All that a reply in parts may have been as one text, the likeliest first."""
        if not _is_parted(message):
            yield message
            return
        texts = _texts(message)
        own = self._separators.get("assistant", PART_SEPARATOR)
        for separator in dict.fromkeys((own, *_BETWEEN)):
            yield {**message, "content": separator.join(texts)}


def find_parts(try_render: TryRender) -> Parts:
    """Tries what the template prints between two parts of each role's text.

    `try_render` takes messages as they are and returns None where the template refuses them.
    """

    def printed(role: str, *texts: str) -> str:
        return try_render(_talk(role, [*map(_part, texts)]), TemplateOptions()) or ""

    found, stripped = {}, []
    for role in _ROLES:
        parts = printed(role, _ONE, _TWO)
        for separator in _BETWEEN:
            if _ONE + separator + _TWO in parts:
                found[role] = separator
                if _ONE + separator + _TWO in printed(role, f"{_ONE} ", f" {_TWO}"):
                    stripped.append(role)
                break
    return Parts(found, stripped)


def prints_names(try_render: TryRender) -> bool:
    """Whether the template prints the `name` of a user or of a system message."""
    for role in ("user", "system"):
        talk = [{**message, "name": _ONE} for message in _talk(role, _TWO)]
        if _ONE in (try_render(talk, TemplateOptions()) or ""):
            return True
    return False


def _talk(role: str, content: Any) -> list[Message]:
    """A short conversation with a message of this role, which has this content."""
    user: Message = {"role": "user", "content": "Hi"}
    said: Message = {"role": role, "content": content}
    if role == "system":
        return [said, user]
    return [said] if role == "user" else [user, said]


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _is_parted(message: Message) -> bool:
    """Whether the content is texts alone, and several."""
    content = message.get("content")
    return isinstance(content, list) and len(content) > 1 and None not in map(part_text, content)


def _texts(message: Message) -> list[str]:
    return [text for part in message["content"] if (text := part_text(part)) is not None]
