"""Messages as templates need them: the many spellings of clients become one.

Templates crash on what clients send (content null, missing or in parts; arguments as a string), so
every message passes here before it is rendered. The rules are those of SGLang's own chat route,
so that a prompt is what the worker itself would have made. Nothing is changed in place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from slime_router.types import Message

TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
PART_SEPARATOR = " "  # SGLang joins text parts with one space


def content_text(content: Any) -> str:
    """The text of a message's content: a string, parts, null or nothing."""
    if isinstance(content, str):
        return content
    if not content:
        return ""
    return PART_SEPARATOR.join(
        part if isinstance(part, str) else str(part.get("text", ""))
        for part in content
        if isinstance(part, str) or part.get("type", "text") in TEXT_PARTS
    )


def without_reasoning(content: str) -> str:
    """What remains of a reply when a client, or a template, strips the thinking from it."""
    return content.rpartition("</think>")[2].lstrip("\n") if "</think>" in content else content


def arguments_value(arguments: Any) -> Any:
    """A tool call's arguments as an object, or the string itself if it does not hold one."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    if not arguments.strip():
        return {}
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def renderable(messages: Sequence[Message], *, has_developer_role: bool) -> list[Message]:
    """Copies of `messages` that a template can render."""
    return [_renderable(message, has_developer_role=has_developer_role) for message in messages]


def without_late_systems(messages: Sequence[Message], *, joins: bool) -> list[Message]:
    """The same for templates that take a system message at the beginning only.

    Those that begin the conversation are one; a later one stays where it is, as a user's turn: so
    nothing before it changes, and the next turn still begins with this one. With `joins`, turns of
    the user that follow each other are one, for templates that insist on taking turns.
    """
    folded: list[Message] = []
    for message in messages:
        last = folded[-1] if folded else None
        is_late = message["role"] == "system" and last is not None and last["role"] != "system"
        role = "user" if is_late else message["role"]
        is_one = role == "system" or (joins and role == "user")
        if last is not None and last["role"] == role and is_one:
            text = f"{last['content']}\n\n{message['content']}"
            folded[-1] = {**last, "content": text}
        else:
            folded.append({**message, "role": role})
    return folded


def _renderable(message: Message, *, has_developer_role: bool) -> Message:
    role = str(message["role"]).lower()
    if role == "developer" and not has_developer_role:
        role = "system"
    elif role == "function":
        role = "tool"
    # What is null is left out: to templates, a name that is present has a value.
    known = {name: value for name, value in message.items() if value is not None}
    known |= {"role": role, "content": content_text(message.get("content"))}
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    known.pop("reasoning", None)
    if isinstance(reasoning, str):
        known["reasoning_content"] = reasoning
    calls = known.pop("tool_calls", None)
    if calls:
        known["tool_calls"] = [_renderable_call(call) for call in calls]
    return known


def _renderable_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = arguments_value(function.get("arguments"))
    return {**call, "function": {**function, "arguments": arguments}}
