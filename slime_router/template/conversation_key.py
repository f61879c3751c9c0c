"""Message identity: which recorded turn do these messages continue?

A conversation is named by a chain of digests, one link per message:

    key[0]     = digest(scope, tools, template arguments)
    key[i + 1] = digest(key[i], canonical(messages[i]))

A turn is filed under the key of its messages with its reply appended. Two requests with one key
have the same conversation, as far as a client can be trusted to repeat it:

    no difference:  content None, "" and []; a string and its parts; arguments as JSON text in any
                    spelling, or as an object; reasoning, unknown fields, the order of keys; of an
                    assistant also its name, white space around its content, CRLF for LF, its
                    text and its calls as two messages, its calls as several where their ids
                    name its turn, and white space around thinking that stands in its content
    a difference:   case and white space inside of content; true and 1; "null" and null; the order
                    of lists and of calls; invalid JSON that is spelled otherwise; NFC and NFD

Identifiers of tool calls count only where the template prints them. Where they name no turn,
calls are also looked for without what agents change in them: defaults, null where a field may be
left out, white space at the ends of lines, and the identifiers themselves.

Of several turns whose replies differ in white space alone, the one that is spelled as the client
has it is found: see `spelling`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import orjson

from slime_router.template.messages import (
    content_text,
    references,
    with_begun_arguments,
    without_call_ids,
    without_reasoning,
    without_repairs,
)
from slime_router.types import Message, TemplateOptions

Key = bytes  # 16 bytes

# What Python strips, and what JavaScript does: the mark that some texts begin with, too.
_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff"
_NO_TOOLS, _NO_KWARGS = b"[]", b"{}"
_KEY_LEN = (16).to_bytes(8, "little")
THINK, THOUGHT = "<think>", "</think>"
_RESULTS = ("tool", "function")
_NAMED_BY_AGENTS = ("assistant", *_RESULTS)  # who name them, or drop their names
_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _digest(*parts: bytes) -> Key:
    """A digest of all parts, each after its length."""
    framed = b"".join([_framed(part) for part in parts])
    return blake2b(framed, digest_size=16).digest()


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part


_BARE_ROOT = _digest(b"", _NO_TOOLS, _NO_KWARGS)


def _linked(key: Key, data: bytes) -> Key:
    """`_digest(key, data)`, at half its price: there is one for each message of each request."""
    return blake2b(_KEY_LEN + key + len(data).to_bytes(8, "little") + data, digest_size=16).digest()


def root_key(scope: str, options: TemplateOptions) -> Key:
    """The key of a conversation without messages."""
    if not (scope or options.tools or options.kwargs):
        return _BARE_ROOT
    tools = _canonical_json(list(options.tools)) if options.tools else _NO_TOOLS
    kwargs = _canonical_json(dict(options.kwargs)) if options.kwargs else _NO_KWARGS
    return _digest(scope.encode(), tools, kwargs)


def next_link(key: Key, spelling: Key, message: Message, *, with_call_ids: bool) -> tuple[Key, Key]:
    """The key and the spelling of a conversation with `message` appended.

    The spelling records what keys leave out of replies; it stays what it was where a reply adds
    nothing to it.
    """
    role = str(message["role"]).lower()
    is_text = type(message.get("content")) is str
    content: str = message["content"] if is_text else content_text(message.get("content"))
    if role == "assistant":
        told = _reply_text(content)
        if told is not content and told != content:
            spelling = _digest(spelling, content.encode("utf-8", "surrogatepass"))
        content = told
    if is_text and len(message) == 2 and not with_call_ids:  # the usual case
        counts = [role, content] if role in _NAMED_BY_AGENTS else [role, content, ""]
        return _linked(key, orjson.dumps(counts)), spelling
    return _linked(key, _canonical(message, role, content, with_call_ids=with_call_ids)), spelling


def joined(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with a reply's text and its calls in one, where a client made two of them."""
    if not any(_are_one(text, calls) for text, calls in pairwise(messages)):
        return messages
    whole: list[Message] = []
    for message in messages:
        if whole and _are_one(whole[-1], message):
            whole[-1] = {**message, "content": whole[-1].get("content")}
        else:
            whole.append(message)
    return tuple(whole)


def gathered(messages: Sequence[Message], turns: Mapping[int, str]) -> Sequence[Message]:
    """The messages with the calls of a reply in one, where a client has given each a message of its
    own, with its result after it or not. `turns` has the turn of those with calls, by place.
    """
    whole: list[Message] = []
    begun, turn = -1, None  # the reply whose calls may go on
    for place, message in enumerate(messages):
        goes_on = turn is not None and turn == turns.get(place)
        if goes_on and not content_text(message.get("content")).strip():
            calls = [*whole[begun]["tool_calls"], *message["tool_calls"]]
            whole[begun] = {**whole[begun], "tool_calls": calls}
            continue
        if place in turns:
            begun, turn = len(whole), turns[place]
        elif message["role"] not in _RESULTS:
            turn = None
        whole.append(message)
    return messages if len(whole) == len(messages) else tuple(whole)


def _are_one(text: Message, calls: Message) -> bool:
    """Whether the first holds the text alone, and the second the calls, of one reply."""
    if not calls.get("tool_calls") or text.get("tool_calls"):
        return False
    is_reply = text["role"] == "assistant" == calls["role"]
    return is_reply and not content_text(calls.get("content")).strip()


def _reply_text(content: str) -> str:
    """A reply without what agents add to it or take from it in transit.

    White space around its thinking is such a thing, and the mark before that, which a prompt may
    have had already.
    """
    told = content.replace("\r\n", "\n").strip(_SPACE)
    thought, mark, said = told.rpartition(THOUGHT)
    if not mark:
        return told
    thought = thought.removeprefix(THINK).strip(_SPACE)
    return f"{thought}{mark}{said.lstrip(_SPACE)}" if thought else said.lstrip(_SPACE)


def reply_links(
    key: Key,
    spelling: Key,
    reply: Message,
    *,
    with_call_ids: bool,
    reasoning: str = "",
    tools: Sequence[dict[str, Any]] = (),
) -> tuple[tuple[Key, ...], Key]:
    """The keys under which a turn is found again: its reply as given, and without its thinking.

    Where the thinking was separated from it, also with both in one text, as some clients keep them;
    where a call was cut, also with the object that its arguments begin; and without what agents
    change in calls. Beside them, the spelling of the conversation with the reply as given; that of
    a reply which was cut is like no other.
    """
    content = content_text(reply.get("content"))
    if THOUGHT not in content and not (reasoning or reply.get("tool_calls")):  # the usual case
        found, spelled = next_link(key, spelling, reply, with_call_ids=with_call_ids)
        return (found,), spelled
    forms = [reply]
    visible = without_reasoning(content)
    if visible != content:
        forms.append({**reply, "content": visible})
    if reasoning.strip():
        forms.append({**reply, "content": f"{THINK}{reasoning}{THOUGHT}{content}"})
    begun: list[Message] = []
    if reply.get("tool_calls"):
        begun = with_begun_arguments(reply)
        forms += begun
        if (told := without_repairs(reply, tools)) is not reply:
            forms.append(told)
        if with_call_ids:
            forms += [without_call_ids(form) for form in forms]
    links = [next_link(key, spelling, form, with_call_ids=with_call_ids) for form in forms]
    spelled = _digest(links[0][1], b"cut") if begun else links[0][1]
    return tuple(found for found, _ in links), spelled


def _canonical(message: Message, role: str, content: str, *, with_call_ids: bool) -> bytes:
    """What counts of a message whose role and text, in the form that counts, are these."""
    parts: list[Any] = [role, content]
    if role not in _NAMED_BY_AGENTS:
        parts.append(message.get("name") or "")
    if with_call_ids:
        parts.append(message.get("tool_call_id") or "")
    if found := references(message.get("content")):
        parts.append({"refers": found})
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
