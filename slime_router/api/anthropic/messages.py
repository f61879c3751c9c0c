"""Anthropic's messages as the chat messages that a client of the chat door would send.

a user's tool results          `tool` messages, in their place among the user's text
an assistant's thinking        `reasoning_content`; a signature of ours names the `turn`
an assistant's uses of tools   `tool_calls` under the same ids, arguments as objects
system, wherever it stands     a `system` message there

A tool's input is the arguments that a model wrote, as the JSON object that Anthropic's API has.
Arguments that are not an object become `{"_raw": "<as the model wrote them>"}`, which is turned
back into them when the agent returns it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import orjson

from slime_router.api.anthropic.blocks import (
    block_text,
    is_service_call,
    is_service_result,
    is_silent,
    result_text,
    string_of,
)
from slime_router.api.as_written import write_as_read
from slime_router.api.chat.messages import checked
from slime_router.api.request import missing, require
from slime_router.errors import BadRequest
from slime_router.json_text import StringControls, has_half, is_json
from slime_router.template.heard import Written
from slime_router.template.messages import REFERENCE
from slime_router.types import Message

RAW = "_raw"
BILLING = "x-anthropic-billing-header:"  # Claude Code's: differs in every request

_TURN_ID = re.compile(r"turn_[0-9a-f]{24}(-\d+)?")


def read_conversation(body: Mapping[str, Any]) -> Sequence[Message]:
    """The chat messages of `system` and `messages`.

    Raises:
        BadRequest: with the path of the field at fault, such as `messages[3].content[0].type`.
    """
    messages = body.get("messages")
    if messages is None:
        raise missing("messages")
    head = _system(body.get("system"), "system")
    chat: Sequence[Message]
    if isinstance(messages, Written):
        new = _talk(messages.new, messages.first_new)
        is_closed = not (new and new[-1]["role"] == "assistant")  # else another may join it
        made = checked(new, len(messages.known))
        chat = messages.remade(checked(head, 0), made, is_closed=is_closed)
    else:
        require(isinstance(messages, list), "messages", "a list of messages")
        if not messages:
            raise BadRequest("'messages' cannot be empty.", param="messages")
        chat = head + _talk(messages, 0)
    if not chat:
        raise BadRequest("'messages' cannot be empty.", param="messages")
    return chat


def _talk(messages: Sequence[Any], first: int) -> list[Message]:
    """What the messages say in a chat; `first` is the place of the first of them.

    Replies that follow each other are one, as Anthropic documents it, unless two turns are named.
    """
    chat: list[Message] = []
    for i, message in enumerate(messages, first):
        said = _message(message, f"messages[{i}]")
        if chat and said and _are_one(chat[-1], said[0]):
            chat[-1] = _joined(chat[-1], said.pop(0))
        chat += said
    return chat


def _are_one(begun: Message, more: Message) -> bool:
    turns = {each["turn"] for each in (begun, more) if "turn" in each}
    return begun["role"] == more["role"] == "assistant" and len(turns) < 2


def _joined(begun: Message, more: Message) -> Message:
    both = {**begun, **more}
    for name in ("content", "reasoning_content", "tool_calls"):
        if name in begun and name in more:
            both[name] = begun[name] + more[name]
    return both


def _message(message: Any, path: str) -> list[Message]:
    require(isinstance(message, dict), path, "an object")
    content = message.get("content")
    if content is None:
        raise missing(f"{path}.content")
    match message.get("role"):
        case "user":
            return _user(content, f"{path}.content")
        case "assistant":
            return _assistant(content, f"{path}.content")
        case "system":
            return _system(content, f"{path}.content")
    raise BadRequest("'role' must be one of user, assistant, system.", param=f"{path}.role")


def _system(content: Any, path: str) -> list[Message]:
    texts = [text for text in _texts(content, path) if not text.startswith(BILLING)]
    return [{"role": "system", "content": _content(texts)}] if texts else []


def _user(content: Any, path: str) -> list[Message]:
    chat: list[Message] = []
    texts: list[str] = []
    for block, place in _blocks(content, path):
        if block["type"] != "tool_result":
            texts.append(block_text(block, place))
            continue
        if texts:
            chat.append({"role": "user", "content": _content(texts)})
            texts = []
        chat += _tool_results(block, place)
    if texts or not chat:
        chat.append({"role": "user", "content": _content(texts)})
    return chat


def _tool_results(block: Mapping[str, Any], path: str) -> Iterator[Message]:
    """One message; references to tools have their own, as templates look for them at its start."""
    name = "id" if block.get("tool_use_id") is None and "id" in block else "tool_use_id"
    head = {"role": "tool", "tool_call_id": string_of(block, name, path)}
    content = block.get("content")
    found = [] if content is None else _blocks(content, f"{path}.content")
    runs = [[*run] for _, run in groupby(found, key=lambda each: each[0]["type"] == REFERENCE)]
    for run in runs or [[]]:
        if run and run[0][0]["type"] == REFERENCE:
            parts = [{"type": REFERENCE, "name": _referred(*each)} for each in run]
            yield {**head, "content": parts}
        else:
            yield {**head, "content": _content([block_text(*each) for each in run])}


def _referred(block: Mapping[str, Any], path: str) -> str:
    return string_of(block, "name" if block.get("tool_name") is None else "tool_name", path)


class _Reply:
    """A reply as far as its blocks have been read.

    Its texts are joined as they are: the reply's writer parted them.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._turn: str | None = None

    def add(self, block: Mapping[str, Any], path: str) -> None:
        kind = str(block["type"])
        if kind == "thinking":
            self._thoughts.append(string_of(block, "thinking", path))
            self._turn = self._turn or _turn_id(block.get("signature"))
        elif kind == "tool_use" or is_service_call(kind):
            self._calls.append(_call(block, path))
        elif kind == "tool_result":
            self._texts.append(f"Tool result: {result_text(block.get('content'), path)}")
        elif kind != "redacted_thinking":  # only Anthropic can read that
            self._texts.append(block_text(block, path))

    def message(self) -> Message:
        message: Message = {"role": "assistant", "content": "".join(self._texts)}
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = self._calls
        if self._turn is not None:
            message["turn"] = self._turn
        return message

    @property
    def is_empty(self) -> bool:
        return not (self._texts or self._thoughts or self._calls)


def _assistant(content: Any, path: str) -> list[Message]:
    """One reply, or several: the result of what Anthropic's service ran stands in the middle."""
    chat: list[Message] = []
    reply = _Reply()
    for block, place in _blocks(content, path):
        kind = str(block["type"])
        if kind == "tool_result" or not is_service_result(kind):
            reply.add(block, place)
            continue
        chat.append(reply.message())
        reply = _Reply()
        text = result_text(block.get("content"), f"{place}.content")
        call_id = string_of(block, "tool_use_id", place)
        chat.append({"role": "tool", "tool_call_id": call_id, "content": text})
    return chat if chat and reply.is_empty else [*chat, reply.message()]


def _call(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    given = block.get("input")
    require(given is None or isinstance(given, dict), f"{path}.input", "an object")
    name = string_of(block, "name", path)
    require(bool(name), f"{path}.name", "a string that is not empty")
    function = {"name": name, "arguments": arguments_of(given or {})}
    return {"id": string_of(block, "id", path), "type": "function", "function": function}


def _turn_id(signature: Any) -> str | None:
    is_ours = isinstance(signature, str) and _TURN_ID.fullmatch(signature) is not None
    return signature if is_ours else None


def _blocks(content: Any, path: str) -> list[tuple[dict[str, Any], str]]:
    """The blocks of a content that say something, each with its path; a string is one block."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, path)]
    require(isinstance(content, list), path, "a string or a list of blocks")
    for i, block in enumerate(content):
        require(isinstance(block, dict), f"{path}[{i}]", "an object")
        if block.get("type") is None:
            raise missing(f"{path}[{i}].type")
    return [(block, f"{path}[{i}]") for i, block in enumerate(content) if not is_silent(block)]


def _texts(content: Any, path: str) -> list[str]:
    """The texts of a content that can hold nothing else."""
    return [] if content is None else [block_text(*found) for found in _blocks(content, path)]


def _content(texts: list[str]) -> str | list[dict[str, str]]:
    """What a chat client sends for these texts: how parts are joined is said where they render."""
    if len(texts) < 2:
        return "".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def input_json(arguments: str) -> str:
    """The input as JSON text; an object is left as the model spelled it, but for bare line ends."""
    if not arguments.strip():
        return "{}"
    written = StringControls().escaped(arguments)
    return written if _is_object(written) else orjson.dumps({RAW: arguments}).decode()


def streamed_json(arguments: str) -> str:
    """The same for a stream, where SDKs give up the reply at half of a surrogate pair."""
    written = input_json(arguments)
    return written if _is_readable(written) else orjson.dumps({RAW: arguments}).decode()


def arguments_of(given: dict[str, Any]) -> dict[str, Any] | str:
    """The arguments that became this input. A stream may have begun it as an object."""
    raw = given.get(RAW)
    if isinstance(raw, str) and raw.strip() and not _is_readable(raw):
        *_, last = given
        if len(given) == 1 or (last == RAW and raw.lstrip().startswith("{")):
            return raw
    try:
        orjson.dumps(given)
    except TypeError:  # half of a surrogate pair or a number without bounds, as the model wrote it
        return write_as_read(given)
    return given


def _is_object(text: str) -> bool:
    return is_json(text) and isinstance(json.loads(text), dict)


def _is_readable(text: str) -> bool:
    """Whether it is an object for SDKs, which read no halves of surrogate pairs."""
    return _is_object(text) and not has_half(text)
