"""The items of a Responses request become the messages of a chat request.

What one reply gave as several items (reasoning, text, calls) is one assistant message again, so
that a conversation reads the same through either door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from slime_router.api.request import missing, require, wrong_type
from slime_router.api.responses.custom_tools import encode_input
from slime_router.api.responses.service_items import (
    IGNORED,
    is_service_item,
    read_service_item,
    unsupported,
)
from slime_router.errors import BadRequest
from slime_router.template.heard import Written
from slime_router.types import Message

Item: TypeAlias = dict[str, Any]
FindItem: TypeAlias = Callable[[str, str], Item]  # by id and the path that names it
# What the model calls a tool, by its namespace and its name, where that is not its name.
ModelNames: TypeAlias = Mapping[tuple[str, str], str]

NO_NAMES: ModelNames = MappingProxyType({})
TURN_PREFIX = "turn_"  # of the handles in `encrypted_content`; what others encrypted is ignored

_ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_SEAL = "gAAAA"  # begins what OpenAI has encrypted
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def read_input(given: Any, find_item: FindItem) -> tuple[Item, ...]:
    """The items in `input`, each an object with a `type`; references are looked up.

    Those that came before are as they were read then.

    Raises:
        BadRequest: with the path of the field at fault, such as `input[3].role`.
        NotFound: a reference leads nowhere.
    """
    if isinstance(given, str):
        return ({"type": "message", "role": "user", "content": given},)
    known: tuple[Item, ...] = ()
    if isinstance(given, Written):
        known, given = () if given.past is None else given.past.entries, given.new
    require(isinstance(given, list), "input", "a string or a list of items")
    new = (_typed(item, f"input[{i}]", find_item) for i, item in enumerate(given, len(known)))
    return (*known, *new)


def is_reference(item: Item) -> bool:
    """Whether an item stands for another one, which it names."""
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "role" not in item and "id" in item)


def to_talk(items: Sequence[Item], *, first: int = 0, names: ModelNames = NO_NAMES) -> Talk:
    """The equivalent chat messages; `input[0]` of the request is `items[first]`.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    talk = Talk(names)
    for i, item in enumerate(items):
        talk.add(item, f"input[{i - first}]")
    return talk


class Talk:
    """Messages as far as the items have been read."""

    def __init__(self, names: ModelNames = NO_NAMES) -> None:
        self.messages: list[Message] = []
        self._names = names
        self._reply: Message | None = None  # the assistant message that may still grow
        self._last = ""  # the type of the item before

    @property
    def is_closed(self) -> bool:
        """Whether no item that follows can become a part of the last message."""
        return self._reply is None

    def add(self, item: Item, path: str) -> None:
        """Read another item; `path` is its place in the request. Raises BadRequest."""
        kind = item["type"]
        if kind == "reasoning":
            self._reason(item, path)
        elif kind in ("function_call", "custom_tool_call"):
            reply = self._growing(item, may_grow=True)
            reply.setdefault("tool_calls", []).append(_call(item, path, self._names))
        elif kind in _OUTPUTS:
            self._say({"role": "tool", **_result(item, path)})
        elif kind == "message":
            self._message(item, path)
        elif kind == "agent_message":  # Codex: from one agent to another
            said = _content(item.get("content") or "", f"{path}.content")
            self._say({"role": "user", "content": said})
        elif not isinstance(kind, str):
            raise unsupported(kind, path)
        elif is_service_item(kind):
            self._service(item, path)
        elif kind not in IGNORED:
            raise unsupported(kind, path)
        self._last = kind

    def _service(self, item: Item, path: str) -> None:
        read = read_service_item(item, path)
        if read.name is not None:
            function = {"name": read.name, "arguments": read.arguments}
            call = {"id": read.call_id, "type": "function", "function": function}
            self._growing(item, may_grow=True).setdefault("tool_calls", []).append(call)
        if read.result is not None:
            self._say({"role": "tool", "tool_call_id": read.call_id, "content": read.result})

    def _message(self, item: Item, path: str) -> None:
        role = _role(item, path)
        content = item.get("content")
        if role != "assistant":
            self._say({"role": role, "content": _content(content, f"{path}.content")})
            return
        text = "".join(_texts(content, f"{path}.content"))
        reply = self._growing(item, may_grow=self._last != "message" or self._is_blank())
        reply["content"] = (reply["content"] or "") + text

    def _reason(self, item: Item, path: str) -> None:
        shown = item.get("content") or item.get("summary") or []
        text = "".join(_texts(shown, f"{path}.content"))
        reply = self._growing(item, may_grow=self._last == "reasoning" or self._is_blank())
        reply["reasoning_content"] = reply.get("reasoning_content", "") + text

    def _is_blank(self) -> bool:
        """Whether the open reply is white space so far: GLM writes some before it thinks."""
        reply = self._reply
        if reply is None or not reply["content"]:
            return False
        return not (reply["content"].strip() or reply.keys() & {"reasoning_content", "tool_calls"})

    def _growing(self, item: Item, *, may_grow: bool) -> Message:
        """The item's assistant message; an item that names a turn belongs to that turn."""
        turn, reply = _turn(item), self._reply
        known = reply.get("turn") if reply is not None else None
        belongs = may_grow if None in (turn, known) else turn == known
        if reply is None or not belongs:
            reply = {"role": "assistant", "content": None}
            self.messages.append(reply)
            self._reply = reply
        if turn is not None:
            reply["turn"] = turn
        return reply

    def _say(self, message: Message) -> None:
        self._reply = None
        self.messages.append(message)


def _typed(item: Any, path: str, find_item: FindItem) -> Item:
    require(isinstance(item, dict), path, "an object")
    kind = item.get("type")
    if is_reference(item):
        require(isinstance(item.get("id"), str), f"{path}.id", "a string")
        return find_item(item["id"], f"{path}.id")
    if kind is None and "role" not in item:
        raise missing(f"{path}.type")
    return item if kind is not None else {**item, "type": "message"}


def _turn(item: Item) -> str | None:
    """The turn that sampled the item, where the item says so."""
    handle = item.get("turn") or item.get("encrypted_content")
    return handle if isinstance(handle, str) and handle.startswith(TURN_PREFIX) else None


def _role(item: Item, path: str) -> str:
    role = item.get("role")
    if role is None:
        raise missing(f"{path}.role")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise BadRequest(f"'role' must be one of {', '.join(_ROLES)}.", param=f"{path}.role")
    return role.lower()


def _call(item: Item, path: str, names: ModelNames) -> dict[str, Any]:
    """A call as a chat client sends it back; tools that are not functions take one argument."""
    if item["type"] == "custom_tool_call":
        arguments: Any = encode_input(_optional_text(item, "input", path))
    else:
        arguments = item.get("arguments", "")
        is_known = arguments is None or isinstance(arguments, str | dict)
        require(is_known, f"{path}.arguments", "a string or an object")
    name, namespace = _text(item, "name", path), item.get("namespace")
    if isinstance(namespace, str):
        name = names.get((namespace, name), name)
    function = {"name": name, "arguments": arguments}
    return {"id": _text(item, "call_id", path), "type": "function", "function": function}


def _optional_text(item: Item, name: str, path: str) -> str:
    value = item.get(name)
    require(value is None or isinstance(value, str), f"{path}.{name}", "a string")
    return value or ""


def _result(item: Item, path: str) -> Message:
    output = _content(item.get("output"), f"{path}.output")
    if item.get("call_id") is None:  # OpenAI's types let it be missing, as chat does here
        return {"content": output}
    return {"tool_call_id": _text(item, "call_id", path), "content": output}


def _text(item: Item, name: str, path: str) -> str:
    value = item.get(name)
    if value is None or value == "":
        raise missing(f"{path}.{name}")
    require(isinstance(value, str), f"{path}.{name}", "a string")
    return str(value)


def _content(content: Any, path: str) -> str | list[dict[str, str]]:
    """A string for what is one text, else its parts."""
    texts = _texts(content, path)
    if len(texts) == 1:
        return texts[0]
    return [{"type": "text", "text": text} for text in texts]


def _texts(content: Any, path: str) -> list[str]:
    if content is None:
        raise missing(path)
    if isinstance(content, str):
        return [content]
    require(isinstance(content, list), path, "a string or a list of parts")
    places = ((part, f"{path}[{j}]") for j, part in enumerate(content))
    return [_part(part, place) for part, place in places if not _is_sealed(part)]


def _is_sealed(part: Any) -> bool:
    """Whether OpenAI has encrypted it: nobody else can read that."""
    text = part.get("encrypted_content") if isinstance(part, dict) else None
    return isinstance(text, str) and text.startswith(_SEAL)


def _part(part: Any, path: str) -> str:
    match part:
        case {"type": str(kind), "text": str(text)} if kind in _TEXT_PARTS:
            return text
        case {"type": "encrypted_content", "encrypted_content": str(text)}:
            return text  # Codex calls it that, whoever the model is
        case {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": str(kind)} if kind in _TEXT_PARTS:
            raise (
                missing(f"{path}.text")
                if part.get("text") is None
                else wrong_type(f"{path}.text", "a string")
            )
        case {"type": kind} if kind is not None:
            raise BadRequest(
                f"'{str(kind)[:40]}' is not supported for this model; parts must be text.",
                param=f"{path}.type",
            )
        case {}:
            raise missing(f"{path}.type")
    raise wrong_type(path, "an object")
