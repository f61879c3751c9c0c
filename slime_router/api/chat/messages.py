"""The messages of a chat request: checked deeply, handed on as the client wrote them.

Nothing is added, dropped or put in another order, because templates print what they are given.
Two changes: a role is written in lower case, and an assistant's parts of thinking become its
reasoning. Parts are not joined here; that is rendering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slime_router.api.chat.tools import custom_hint, named_function
from slime_router.api.request import missing, named_as, require
from slime_router.errors import BadRequest
from slime_router.template.heard import Heard, Written
from slime_router.template.messages import REFERENCE, Plain
from slime_router.types import Message

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING_PARTS = {"thinking": "thinking", "reasoning": "text"}  # and the field with their text
_OPTIONAL_STRINGS = ("name", "tool_call_id", "reasoning_content", "reasoning")


def read_messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    """The conversation in `messages`.

    Raises:
        BadRequest: with the path of the field at fault, such as `messages[3].content`.
    """
    messages = body.get("messages")
    if isinstance(messages, Heard):
        return messages
    if isinstance(messages, Written):
        return messages.checked(checked(messages.new, messages.first_new))
    if messages is None:
        raise missing("messages")
    require(type(messages) is list, "messages", "a list of messages")
    if not messages:
        raise BadRequest("'messages' cannot be empty.", param="messages")
    return Plain.of(messages) or tuple(checked(messages, 0))


def is_continued(messages: tuple[Message, ...], asked: bool) -> bool:
    """Whether the reply continues the last message instead of starting a new one.

    `asked` is the request's own flag; DeepSeek's clients mark the message with `prefix` instead.

    Raises:
        BadRequest: there is no assistant message to continue.
    """
    last = messages[-1]
    if not asked and last.get("prefix") is not True:
        return False
    if last["role"] != "assistant":
        param = "continue_final_message" if asked else f"messages[{len(messages) - 1}].prefix"
        raise BadRequest("Only an assistant message can be continued.", param=param)
    return True


def checked(messages: Sequence[Any], start: int) -> list[Message]:
    """Messages after checking; `start` is the place of the first."""
    return [
        message if _is_plain(message) else _message(message, f"messages[{i}]")
        for i, message in enumerate(messages, start)
    ]


def _is_plain(message: Any) -> bool:
    """Whether it is the most common kind of message, a role and a text, and valid."""
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and message.get("role") in ROLES
    )


def _message(message: Any, path: str) -> Message:
    require(isinstance(message, dict), path, "an object")
    role = _role(message, path)
    for name in _OPTIONAL_STRINGS:
        value = message.get(name)
        require(value is None or isinstance(value, str), f"{path}.{name}", "a string")
    prefix = message.get("prefix")
    require(prefix is None or isinstance(prefix, bool), f"{path}.prefix", "true or false")
    content = message.get("content")
    _check_content(content, role, f"{path}.content")
    if role == "assistant":
        message = _modern(message, path)
    _check_tool_calls(message.get("tool_calls"), f"{path}.tool_calls")
    if role == "assistant" and type(content) is list and any(map(_is_thinking, content)):
        message = _without_thinking_parts(message)
    return message if message["role"] == role else {**message, "role": role}


def _modern(message: Message, path: str) -> Message:
    """The message with the deprecated `function_call` among its calls, unless there are others."""
    function = message.get("function_call")
    if function is None or message.get("tool_calls"):
        return message
    call = {"type": "function", "function": function}
    with named_as([(f"{path}.function", f"{path}.function_call")]):
        _check_tool_call(call, path)
    plain = {name: value for name, value in message.items() if name != "function_call"}
    return {**plain, "tool_calls": [call]}


def _is_thinking(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _THINKING_PARTS


def _without_thinking_parts(message: Message) -> Message:
    """The message with its reasoning where templates look for it."""
    thoughts = [part for part in message["content"] if _is_thinking(part)]
    texts = [part for part in message["content"] if not _is_thinking(part)]
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not reasoning:
        reasoning = "".join(map(_thought, thoughts))
    return {**message, "content": texts or None, "reasoning_content": reasoning}


def _thought(part: Mapping[str, Any]) -> str:
    """The text of a part of thinking, which may be in pieces of its own, as Mistral has it."""
    text = part.get("thinking") or part.get("text") or ""
    return text if isinstance(text, str) else "".join(piece["text"] for piece in text)


def _role(message: Message, path: str) -> str:
    role = message.get("role")
    if role is None:
        raise missing(f"{path}.role")
    require(isinstance(role, str), f"{path}.role", "a string")
    if role.lower() not in ROLES:
        raise BadRequest(f"'role' must be one of {', '.join(ROLES)}.", param=f"{path}.role")
    return str(role.lower())


def _check_content(content: Any, role: str, path: str) -> None:
    """Only a user must say something: agents send back assistant and tool messages without."""
    if content is None:
        if role == "user":
            raise missing(path)
        return
    require(isinstance(content, str | list), path, "a string or a list of parts")
    if isinstance(content, list):
        for j, part in enumerate(content):
            if role == "assistant" and _is_thinking(part):
                _check_thinking(part, f"{path}[{j}]")
            else:
                _check_part(part, f"{path}[{j}]")


def _check_thinking(part: Mapping[str, Any], path: str) -> None:
    """A part of thinking has its text in `thinking` or in `text`."""
    given = [name for name in ("thinking", "text") if part.get(name) is not None]
    name = given[0] if given else _THINKING_PARTS[part["type"]]
    value = part.get(name)
    if value is None:
        raise missing(f"{path}.{name}")
    require(isinstance(value, str | list), f"{path}.{name}", "a string or a list of parts")
    for j, piece in enumerate(value if isinstance(value, list) else ()):
        text = piece.get("text") if isinstance(piece, dict) else None
        require(isinstance(text, str), f"{path}.{name}[{j}].text", "a string")


def _check_part(part: Any, path: str) -> None:
    require(isinstance(part, dict), path, "an object")
    kind = part.get("type")
    if kind is None:
        raise missing(f"{path}.type")
    if kind == REFERENCE:
        require(isinstance(part.get("name"), str), f"{path}.name", "a string")
        return
    if kind == "refusal":
        require(isinstance(part.get("refusal"), str), f"{path}.refusal", "a string")
        return
    if kind not in _TEXT_PARTS:
        raise BadRequest(
            f"'{str(kind)[:40]}' input is not supported for this model; parts must be text.",
            param=f"{path}.type",
        )
    if part.get("text") is None:
        raise missing(f"{path}.text")
    require(isinstance(part["text"], str), f"{path}.text", "a string")


def _check_tool_calls(calls: Any, path: str) -> None:
    if calls is None:
        return
    require(isinstance(calls, list), path, "a list of tool calls")
    for j, call in enumerate(calls):
        _check_tool_call(call, f"{path}[{j}]")


def _check_tool_call(call: Any, path: str) -> None:
    require(isinstance(call, dict), path, "an object")
    call_id = call.get("id")
    require(call_id is None or isinstance(call_id, str), f"{path}.id", "a string")
    if (kind := call.get("type")) not in (None, "function"):
        raise BadRequest(
            "A tool call's type must be 'function'." + custom_hint(kind), param=f"{path}.type"
        )
    function = named_function(call, path)
    arguments = function.get("arguments")
    require(
        arguments is None or isinstance(arguments, str | dict),
        f"{path}.function.arguments",
        "a string or an object",
    )
