"""Message identity: which recorded turn do these messages continue?

A conversation is named by a chain of digests, one link per message:

    key[0]     = digest(scope, tools, template arguments)
    key[i + 1] = digest(key[i], canonical(messages[i]))

A turn is filed under the key of its messages with its reply appended. Two requests with one key
have the same conversation, as far as a client can be trusted to repeat it:

    no difference:  content None, "" and []; a string and its parts; arguments as JSON text in any
                    spelling, or as an object; reasoning, unknown fields, the order of keys; line
                    ends before an assistant's content
    a difference:   case and white space of content; true and 1; "null" and null; the order of
                    lists and of calls; invalid JSON that is spelled otherwise; NFC and NFD

Identifiers of tool calls count only where the template prints them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import orjson

from slime_router.chat.messages import content_text, without_reasoning
from slime_router.types import Message, TemplateOptions

Key = bytes  # 16 bytes

_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _digest(*parts: bytes) -> Key:
    framed = b"".join(
        [piece for part in parts for piece in (len(part).to_bytes(8, "little"), part)]
    )
    return blake2b(framed, digest_size=16).digest()


def root_key(scope: str, options: TemplateOptions) -> Key:
    """The key of a conversation without messages."""
    tools = _canonical_json(list(options.tools)) if options.tools else b"[]"
    kwargs = _canonical_json(dict(options.kwargs)) if options.kwargs else b"{}"
    return _digest(scope.encode(), tools, kwargs)


def next_key(key: Key, message: Message, *, with_call_ids: bool) -> Key:
    """The key of a conversation with `message` appended."""
    return _digest(key, _canonical(message, with_call_ids=with_call_ids))


def chain_keys(root: Key, messages: Sequence[Message], *, with_call_ids: bool) -> list[Key]:
    """`len(messages) + 1` keys: of each prefix of the conversation, the empty one first."""
    keys = [root]
    for message in messages:
        keys.append(next_key(keys[-1], message, with_call_ids=with_call_ids))
    return keys


def reply_keys(key: Key, reply: Message, *, with_call_ids: bool) -> tuple[Key, ...]:
    """The keys under which a turn is found again: its reply as given, and without its thinking."""
    forms = [reply]
    content = content_text(reply.get("content"))
    visible = without_reasoning(content)
    if visible != content:
        forms.append({**reply, "content": visible})
    return tuple(next_key(key, form, with_call_ids=with_call_ids) for form in forms)


def _canonical(message: Message, *, with_call_ids: bool) -> bytes:
    role = str(message["role"]).lower()
    content = content_text(message.get("content"))
    if role == "assistant":
        content = content.lstrip("\n")  # some agents put a line end before it
    parts: list[Any] = [role, content]
    if role not in ("tool", "function"):  # agents add or drop the name of a tool's result
        parts.append(message.get("name") or "")
    if with_call_ids:
        parts.append(message.get("tool_call_id") or "")
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        parts += [
            str(call.get("id") or "") if with_call_ids else "",
            str(function.get("name") or ""),
            _canonical_arguments(function).decode("utf-8", "surrogatepass"),
        ]
    return orjson.dumps(parts)


def _canonical_arguments(function: Mapping[str, Any]) -> bytes:
    """Arguments as a value where they are a JSON object, else letter by letter."""
    if "arguments" not in function:
        return b"absent"
    arguments = function["arguments"]
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    try:
        if isinstance(arguments, str):
            arguments = json.loads(
                text := arguments,
                object_pairs_hook=_unique_keys,
                parse_float=Decimal,
                parse_int=Decimal,
                parse_constant=_no_constant,
            )
            if not isinstance(arguments, dict):
                return b"text " + text.encode("utf-8", "surrogatepass")
        return b"value " + _canonical_json(arguments)
    except (ValueError, ArithmeticError, RecursionError):  # no JSON, or beyond all bounds
        return b"text " + str(function["arguments"]).encode("utf-8", "surrogatepass")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _canonical_json(value: Any) -> bytes:
    """Equal bytes for equal values: keys sorted, numbers by value, true not 1."""
    return _SORTED.encode(_plain(value)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return "=" + value  # so that no value of a client reads as a number
    return _number(Decimal(str(value)))


def _number(value: Decimal) -> str:
    """One spelling for one number, exact at any size: 1, 1.0 and 1e0 are `1e0`."""
    if not value.is_finite():
        raise ValueError(f"{value} is not JSON")
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    if not stripped:
        return "0"
    return f"{'-' * sign}{stripped}e{exponent + len(text) - len(stripped)}"
