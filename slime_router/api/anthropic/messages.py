"""Anthropic's messages as the chat messages that a client of the chat door would send.

a user's tool results          one `tool` message each, before the user's text
an assistant's thinking        `reasoning_content`; a signature of ours names the `turn`
an assistant's uses of tools   `tool_calls` under the same ids, arguments as objects
system, wherever it stands     a `system` message there

A tool's input is the arguments that a model wrote, as the JSON object that Anthropic's API has.
Arguments that are not an object become `{"_raw": "<as the model wrote them>"}`, which is turned
back into them when the agent returns it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic_core import from_json

from slime_router.api.request import missing, require, wrong_type
from slime_router.errors import BadRequest
from slime_router.types import Message

RAW = "_raw"
BILLING = "x-anthropic-billing-header:"  # Claude Code's: differs in every request

_TURN_ID = re.compile(r"turn_[0-9a-f]{24}(-\d+)?")


def read_conversation(body: Mapping[str, Any]) -> list[Message]:
    """The chat messages of `system` and `messages`.

    Raises:
        BadRequest: with the path of the field at fault, such as `messages[3].content[0].type`.
    """
    messages = body.get("messages")
    if messages is None:
        raise missing("messages")
    require(isinstance(messages, list), "messages", "a list of messages")
    if not messages:
        raise BadRequest("'messages' cannot be empty.", param="messages")
    chat = _system(body.get("system"), "system")
    for i, message in enumerate(messages):
        chat += _message(message, f"messages[{i}]")
    if not chat:
        raise BadRequest("'messages' cannot be empty.", param="messages")
    return chat


def _message(message: Any, path: str) -> list[Message]:
    require(isinstance(message, dict), path, "an object")
    content = message.get("content")
    if content is None:
        raise missing(f"{path}.content")
    match message.get("role"):
        case "user":
            return _user(content, f"{path}.content")
        case "assistant":
            return [_assistant(content, f"{path}.content")]
        case "system":
            return _system(content, f"{path}.content")
    raise BadRequest("'role' must be one of user, assistant, system.", param=f"{path}.role")


def _system(content: Any, path: str) -> list[Message]:
    texts = [text for text in _texts(content, path) if not text.startswith(BILLING)]
    return [{"role": "system", "content": _content(texts)}] if texts else []


def _user(content: Any, path: str) -> list[Message]:
    chat, texts = [], []
    for block, place in _blocks(content, path):
        if block["type"] == "tool_result":
            chat.append(_tool_result(block, place))
        else:
            texts.append(_text(block, place))
    if texts or not chat:
        chat.append({"role": "user", "content": _content(texts)})
    return chat


def _tool_result(block: Mapping[str, Any], path: str) -> Message:
    texts = _texts(block.get("content"), f"{path}.content")
    call_id = _string(block, "tool_use_id", path)
    return {"role": "tool", "tool_call_id": call_id, "content": _content(texts)}


def _assistant(content: Any, path: str) -> Message:
    """One reply. Its texts are joined as they are: the reply's writer parted them."""
    texts, thoughts, calls, turn = [], [], [], None
    for block, place in _blocks(content, path):
        match block["type"]:
            case "thinking":
                thoughts.append(_string(block, "thinking", place))
                turn = turn or _turn_id(block.get("signature"))
            case "redacted_thinking":
                pass  # only Anthropic can read it
            case "tool_use":
                calls.append(_call(block, place))
            case _:
                texts.append(_text(block, place))
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    if turn is not None:
        message["turn"] = turn
    return message


def _call(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    given = block.get("input")
    require(given is None or isinstance(given, dict), f"{path}.input", "an object")
    name = _string(block, "name", path)
    require(bool(name), f"{path}.name", "a string that is not empty")
    function = {"name": name, "arguments": arguments_of(given or {})}
    return {"id": _string(block, "id", path), "type": "function", "function": function}


def _turn_id(signature: Any) -> str | None:
    is_ours = isinstance(signature, str) and _TURN_ID.fullmatch(signature) is not None
    return signature if is_ours else None


def _blocks(content: Any, path: str) -> list[tuple[dict[str, Any], str]]:
    """The blocks of a content, each with its path; a string is one block."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, path)]
    require(isinstance(content, list), path, "a string or a list of blocks")
    for i, block in enumerate(content):
        require(isinstance(block, dict), f"{path}[{i}]", "an object")
        if block.get("type") is None:
            raise missing(f"{path}[{i}].type")
    return [(block, f"{path}[{i}]") for i, block in enumerate(content)]


def _texts(content: Any, path: str) -> list[str]:
    """The texts of a content that can hold nothing else."""
    return [] if content is None else [_text(*found) for found in _blocks(content, path)]


def _text(block: Mapping[str, Any], path: str) -> str:
    if block["type"] != "text":
        raise BadRequest(
            f"'{str(block['type'])[:40]}' blocks are not supported here for this model.",
            param=f"{path}.type",
        )
    return _string(block, "text", path)


def _string(block: Mapping[str, Any], name: str, path: str) -> str:
    value = block.get(name)
    if value is None:
        raise missing(f"{path}.{name}")
    if not isinstance(value, str):
        raise wrong_type(f"{path}.{name}", "a string")
    return value


def _content(texts: list[str]) -> str | list[dict[str, str]]:
    """What a chat client sends for these texts: how parts are joined is said where they render."""
    if len(texts) < 2:
        return "".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def input_json(arguments: str) -> str:
    """The input as JSON text; an object is left as the model spelled it."""
    if not arguments.strip():
        return "{}"
    return arguments if _is_object(arguments) else orjson.dumps({RAW: arguments}).decode()


def arguments_of(given: dict[str, Any]) -> dict[str, Any] | str:
    """The arguments that became this input."""
    raw = given.get(RAW)
    if len(given) == 1 and isinstance(raw, str) and raw.strip() and not _is_object(raw):
        return raw
    return given


def begins_object(text: str) -> bool:
    """Whether more text can make it a JSON object."""
    try:
        return isinstance(from_json(text, allow_partial=True), dict)
    except ValueError:
        return False


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
