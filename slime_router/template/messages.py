"""Messages as templates need them: the many spellings of clients become one.

Templates crash on what clients send (content null, missing or in parts; arguments as a string), so
every message passes here before it is rendered. The rules are those of SGLang's own chat route,
so that a prompt is what the worker itself would have made. Nothing is changed in place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

from pydantic_core import from_json

from slime_router.json_text import without_halves
from slime_router.types import Message

TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
PART_SEPARATOR = " "  # SGLang's, for a template that takes no parts; see `parts`

REFERENCE = "tool_reference"  # a part that names a tool; some templates print its description
_PLAIN_FIELDS = ("role", "content")  # in the order in which forms have them
_PLAIN_ROLES = ("system", "user", "assistant")


def references(content: Any) -> list[str]:
    """The names in a content's parts that refer to tools."""
    if not isinstance(content, list):
        return []
    return [
        str(part.get("name"))
        for part in content
        if isinstance(part, dict) and part.get("type") == REFERENCE
    ]


def content_text(content: Any) -> str:
    """The text of a message's content: a string, parts, null or nothing."""
    if isinstance(content, str):
        return content
    if not content:
        return ""
    texts = map(part_text, content)
    return PART_SEPARATOR.join(text for text in texts if text is not None)


def part_text(part: str | dict[str, Any]) -> str | None:
    """The text of one part of a content; None where it has none."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text")
    if kind in TEXT_PARTS:
        return str(part.get("text", ""))
    return str(part.get("refusal", "")) if kind == "refusal" else None


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


def whole_arguments(arguments: Any) -> dict[str, Any]:
    """The same; an empty object if the string does not hold one: a call that was cut."""
    value = arguments_value(arguments)
    return value if isinstance(value, dict) else {}


def with_whole_arguments(messages: Sequence[Message]) -> list[Message] | None:
    """The messages, with an object where arguments are text; None if there are no such arguments.

    It holds what of the text is JSON, or else all of it under `_raw`.
    """
    changed = False
    copies = []
    for message in messages:
        calls = message.get("tool_calls")
        if calls and any(_is_broken(call) for call in calls):
            changed = True
            message = {**message, "tool_calls": [_mended(call) for call in calls]}
        copies.append(message)
    return copies if changed else None


def _is_broken(call: dict[str, Any]) -> bool:
    return not isinstance(arguments_value(call["function"].get("arguments")), dict)


def _mended(call: dict[str, Any]) -> dict[str, Any]:
    if not _is_broken(call):
        return call
    text = str(call["function"]["arguments"])
    return _with_arguments(call, _begun(text, "trailing-strings") or {"_raw": text})


def with_begun_arguments(reply: Message) -> list[Message]:
    """A reply as SDKs have it that add up a call which was cut: with the string that was cut, and
    without it. Empty where none was cut.
    """
    calls = reply.get("tool_calls") or ()
    if not any(map(_is_cut, calls)):
        return []
    return [
        {**reply, "tool_calls": [_added_up(call, is_kept) for call in calls]}
        for is_kept in ("trailing-strings", True)
    ]


def _is_cut(call: dict[str, Any]) -> bool:
    """Whether its arguments end before their object does; seen without reading them."""
    arguments = call["function"].get("arguments")
    written = arguments.rstrip() if isinstance(arguments, str) else ""
    return bool(written) and not written.endswith("}")


def _added_up(call: dict[str, Any], is_kept: Literal["trailing-strings", True]) -> dict[str, Any]:
    if not _is_cut(call):
        return call
    return _with_arguments(call, _begun(call["function"]["arguments"], is_kept))


def _begun(text: str, is_kept: Literal["trailing-strings", True]) -> dict[str, Any]:
    """The object that a text begins, as far as it goes."""
    try:
        value = from_json(without_halves(text), allow_partial=is_kept)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _with_arguments(call: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": arguments}}


def without_repairs(reply: Message, tools: Sequence[dict[str, Any]]) -> Message:
    """A reply without what agents change in the arguments of its calls: the defaults of the tools,
    null where a field may be left out, and white space at the ends of lines. A reply without any of
    these is returned as it is.
    """
    calls = reply.get("tool_calls") or ()
    plain = [_unrepaired(call, tools) for call in calls]
    is_changed = any(call is not each for call, each in zip(calls, plain, strict=True))
    return {**reply, "tool_calls": plain} if is_changed else reply


def without_call_ids(reply: Message) -> Message:
    """A reply whose calls have no ids."""
    calls = [{**call, "id": ""} for call in reply.get("tool_calls") or ()]
    return {**reply, "tool_calls": calls}


def _unrepaired(call: dict[str, Any], tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    arguments = call["function"].get("arguments")
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            return call
        defaults = _defaults(call["function"].get("name"), tools)
        kept = {
            name: _without_trailing_space(value)
            for name, value in arguments.items()
            if name not in defaults or json.dumps(value) != defaults[name]
        }
    except (ValueError, RecursionError):  # no JSON, or beyond all bounds
        return call
    return call if kept == arguments else _with_arguments(call, kept)


def _defaults(name: Any, tools: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The values, as JSON, that the fields of a tool have where they are left out."""
    schemas = (tool["function"].get("parameters") for tool in tools if _name(tool) == name)
    schema = next((each for each in schemas if isinstance(each, dict)), {})
    fields, required = schema.get("properties"), schema.get("required")
    return {
        field: json.dumps(each.get("default"))
        for field, each in (fields.items() if isinstance(fields, dict) else ())
        if isinstance(each, dict)
        and ("default" in each or not (isinstance(required, list) and field in required))
    }


def _name(tool: dict[str, Any]) -> Any:
    return tool["function"].get("name")


def _without_trailing_space(value: Any) -> Any:
    if isinstance(value, str):
        return "\n".join(line.rstrip() for line in value.split("\n"))
    if isinstance(value, list):
        return [_without_trailing_space(each) for each in value]
    if isinstance(value, dict):
        return {name: _without_trailing_space(each) for name, each in value.items()}
    return value


class Plain(tuple[Message, ...]):
    """Messages that are a role and a text each, and nothing else, in roles that all formats have.

    What other messages are looked at for, each by each, these need not be. Nobody writes to them.
    """

    __slots__ = ()

    @classmethod
    def of(cls, messages: Sequence[Any]) -> Plain | None:
        """The messages, which nobody has looked at; None where some are not like that."""
        return cls(messages) if all(map(_is_plain, messages)) else None


def _is_plain(message: Any) -> bool:
    return (
        type(message) is dict
        and tuple(message) == _PLAIN_FIELDS
        and type(message["content"]) is str
        and message["role"] in _PLAIN_ROLES
    )


def renderable(
    messages: Sequence[Message], *, has_developer_role: bool, takes_references: bool = False
) -> list[Message]:
    """Copies of `messages` that a template can render."""
    ready = [_renderable(message, has_developer_role=has_developer_role) for message in messages]
    if takes_references:
        for message, copy in zip(messages, ready, strict=True):
            if references(message.get("content")):
                copy["content"] = message["content"]
    return ready


def foldings(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """What may be taken in place of messages that a template refuses, the least changed first.

    Many templates take a system message at the beginning only, and some insist on taking turns, or
    take nothing but a reply after a tool's result. Nothing before a folded message changes, so the
    next turn still begins with this one.
    """
    tried = list(messages)
    for joining in ((), ("user",), ("user", "tool")):
        folded = _folded(messages, joining)
        if folded != tried:
            yield folded
        tried = folded


def _folded(messages: Sequence[Message], joining: Collection[str]) -> list[Message]:
    """The messages, whose contents are texts, with a late system message as a user's.

    The system messages that begin the conversation are one. What a user says right after a message
    of the roles `joining` is a part of that.
    """
    folded: list[Message] = []
    for message in messages:
        before = folded[-1]["role"] if folded else ""
        role = message["role"]
        if role == "system" and before not in ("", "system"):
            role = "user"
        if role == before == "system" or (role == "user" and before in joining):
            content = f"{folded[-1]['content']}\n\n{message['content']}"
            folded[-1] = {**folded[-1], "content": content}
        else:
            folded.append({**message, "role": role})
    return folded


def _renderable(message: Message, *, has_developer_role: bool) -> Message:
    role = str(message["role"]).lower()
    if role == "developer" and not has_developer_role:
        role = "system"
    elif role == "function":
        role = "tool"
    if len(message) == 2 and type(text := message.get("content")) is str:  # the usual case
        return {"role": role, "content": text}
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
