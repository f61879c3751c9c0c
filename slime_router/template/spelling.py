"""How a template wants messages spelled: found by trial, once, at start.

Templates disagree on what an assistant message with calls holds. Most print arguments given as an
object; DeepSeek's adds them to a string. DeepSeek V3's prints calls only where the content is null,
gpt-oss' only where it is not; that of a distilled R1 prints an empty turn after calls where it is
not null. Mistral's refuses ids that are not nine letters or digits, and gpt-oss' a thought beside
both text and calls. Those of models that see pictures may print a list of parts but not a string.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from typing import Any, Literal

from slime_router.template.messages import arguments_value
from slime_router.types import Message, TemplateOptions

SHORT_ID_LEN = 9  # Mistral's

_LETTERS = string.ascii_letters + string.digits
_SHORT_ID = re.compile(rf"[A-Za-z0-9]{{{SHORT_ID_LEN}}}")
_PROBE, _LONG_ID, _PROBE_ID = "Zq7argument7qZ", "call_0123456789abcdef01234567", "abCD12345"
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
PROBE_OPTIONS = TemplateOptions(tools=(_TOOL,))

TryRender = Callable[[list[Message], TemplateOptions], str | None]


@dataclass(frozen=True, slots=True)
class Spelling:
    """What a template takes: the forms of content, of a call's arguments, and of ids."""

    arguments: Literal["object", "text"] = "object"
    has_null_content: bool = False  # a call's empty content is null, or more than it is printed
    has_short_ids: bool = False
    prints_calls: bool = False
    prints_calls_beside_text: bool = True
    prints_ids: bool = False
    has_parts: bool = False
    joins_thoughts: bool = False  # refuses a thought beside text and calls: the text begins with it

    def spelled(self, message: Message) -> Message:
        """`message`, whose content is a string, as the template wants it. Returns a copy."""
        calls = message.get("tool_calls")
        if calls:
            if self.joins_thoughts:
                message = _with_joined_thought(message)
            content = message["content"]
            message = {
                **message,
                "content": None if self.has_null_content and not content else content,
                "tool_calls": [self._call(call) for call in calls],
            }
        if self.has_short_ids and message["role"] == "tool":
            message = {**message, "tool_call_id": short_id(message.get("tool_call_id") or "")}
        if self.has_parts and message["content"] is not None:
            message = {**message, "content": [{"type": "text", "text": message["content"]}]}
        return message

    def new_id(self) -> str:
        """An id, made at random, for a call that a model has sampled."""
        if self.has_short_ids:
            return "".join(secrets.choice(_LETTERS) for _ in range(SHORT_ID_LEN))
        return random_call_id()

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function.get("arguments")
        wanted = arguments_value if self.arguments == "object" else arguments_text
        call = {**call, "function": {**function, "arguments": wanted(arguments)}}
        if self.has_short_ids:
            call["id"] = short_id(call.get("id") or "")
        return call


def _with_joined_thought(message: Message) -> Message:
    """A message whose text has its thought, where it has both."""
    thought, content = message.get("reasoning_content"), message["content"]
    if not (thought and content):
        return message
    rest = {name: value for name, value in message.items() if name != "reasoning_content"}
    return {**rest, "content": f"{thought}\n\n{content}"}


def random_call_id() -> str:
    """A new id of a tool call that looks like OpenAI's."""
    return f"call_{secrets.token_hex(12)}"


def arguments_text(arguments: Any) -> str:
    """A tool call's arguments as JSON text, in the client's own spelling where it sent text."""
    if isinstance(arguments, str):
        return arguments if arguments.strip() else "{}"
    return json.dumps({} if arguments is None else arguments, ensure_ascii=False)


def short_id(call_id: str) -> str:
    """The id itself where it has nine letters or digits, else nine that stand for it alone.

    No id, which such a template refuses, is an empty one.
    """
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    number = int.from_bytes(blake2b(call_id.encode("utf-8", "replace")).digest(), "little")
    letters = []
    for _ in range(SHORT_ID_LEN):
        number, index = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[index])
    return "".join(letters)


def find_spelling(try_render: TryRender) -> Spelling:
    """Try the spellings, the commonest first; the default where nothing is ever printed.

    `try_render` takes messages as they are and returns None where the template refuses them.
    """
    has_parts = _has_parts(try_render)

    def printed(
        call_id: str, content: str | None, *, as_object: bool, thought: str | None = None
    ) -> str:
        """The text of a call and its result; "" where the call is not in it."""
        loop = _tool_loop(call_id, content, as_object=as_object)
        if thought is not None:
            loop[1]["reasoning_content"] = thought
        if has_parts:
            loop = [Spelling(has_parts=True).spelled(message) for message in loop]
        text = try_render(loop, PROBE_OPTIONS) or ""
        # Python's own quotes: the template took the object for a string.
        return text if _PROBE in text and f"'{_PROBE}'" not in text else ""

    for call_id, content, as_object in product((_LONG_ID, _PROBE_ID), ("", None), (True, False)):
        if text := printed(call_id, content, as_object=as_object):
            null = printed(call_id, None, as_object=as_object)
            with_text = printed(call_id, "Hi", as_object=as_object)
            with_both = printed(call_id, "Hi", as_object=as_object, thought="Hm")
            return Spelling(
                arguments="object" if as_object else "text",
                has_null_content=content is None or 0 < len(null) < len(text),
                has_short_ids=call_id == _PROBE_ID,
                prints_calls=True,
                prints_calls_beside_text=bool(with_text),
                prints_ids=call_id in text,
                has_parts=has_parts,
                joins_thoughts=bool(with_text) and not with_both,
            )
    return Spelling(has_parts=has_parts)


def _has_parts(try_render: TryRender) -> bool:
    """Whether a user's text is printed only where it is a part of a list."""
    for has_parts in (False, True):
        message: Message = {"role": "user", "content": _PROBE}
        asked = Spelling(has_parts=has_parts).spelled(message)
        if _PROBE in (try_render([asked], TemplateOptions()) or ""):
            return has_parts
    return False


def _tool_loop(call_id: str, content: str | None, *, as_object: bool) -> list[Message]:
    arguments = {"a": _PROBE}
    function = {"name": "add", "arguments": arguments if as_object else json.dumps(arguments)}
    call = {"id": call_id, "type": "function", "function": function}
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": call_id},
    ]
