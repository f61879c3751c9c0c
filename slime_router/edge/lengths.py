"""How long the fields of a request may be that are kept or passed on: limits in one place.

What a client says (messages, prompts, token ids) may fill a body, and counts toward the budgets of
what is held. The rest are names and settings: they are kept with a turn, in keys and in replies,
and a long one is a mistake or an attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from types import MappingProxyType
from typing import Any

import numpy as np

from slime_router.errors import BadRequest
from slime_router.json_text import signs, sizes

NAME_LEN = 512
PATH_LEN = 4096
SETTINGS_LEN = 2**16
GRAMMAR_LEN = 2**20
# Each is looked at, one by one, and takes a dozen times the memory that it takes in the body.
MAX_CONTAINERS = 2**19
MAX_MEMBERS = 2**18  # of objects: each is read, copied and written some times, in 2 us
# Each is recognised and rendered, which takes some 20 us, all in one go: no agent has as many.
MAX_MESSAGES = 2**13
MAX_PARTS = 2**14  # of contents, and calls of tools, in all messages: they take up to 50 us
MAX_GENERATIONS = 2**14  # `n` is a number in a small body: it must not be able to fill the router
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[{:'))

# Bytes at most, of strings and of objects as JSON. `a.b` is a field of an object.
MAX_LENGTHS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "bootstrap_host",
                "cache_salt",
                "extra_key",
                "model",
                "previous_response_id",
                "request_id",
                "rid",
                "routing_key",
                "service_tier",
            ),
            NAME_LEN,
        ),
        **dict.fromkeys(("lora_path", "prompt_cache_key", "safety_identifier", "user"), PATH_LEN),
        "stop": SETTINGS_LEN,
        "stop_sequences": SETTINGS_LEN,
        **dict.fromkeys(
            (
                "chat_template_kwargs",
                "client_metadata",
                "context_management",
                "custom_labels",
                "custom_params",
                "include",
                "metadata",
                "output_config",
                "reasoning",
                "session_params",
                "stream_options",
                "text",
                "thinking",
                "tool_choice",
            ),
            SETTINGS_LEN,
        ),
        "custom_logit_processor": GRAMMAR_LEN,
        "response_format": GRAMMAR_LEN,
        "text.format": GRAMMAR_LEN,
    }
)
_CHECKED = frozenset({*MAX_LENGTHS, "messages"})
_SURELY_FIT = min(MAX_LENGTHS.values()) // 4  # characters: UTF-8 has at most four bytes for one


def check_generations(count: int) -> None:
    """A request may ask for this many generations.

    Raises:
        BadRequest: it may not; it names `n`.
    """
    if count > MAX_GENERATIONS:
        words = f"A request can ask for at most {MAX_GENERATIONS} generations."
        raise BadRequest(words, param="n")


def check_containers(raw: bytes) -> None:
    """Looks at a body before it is parsed.

    Raises:
        BadRequest: it has more than `MAX_CONTAINERS` arrays and objects, or than `MAX_MEMBERS`.
    """
    if signs(raw) <= MAX_MEMBERS:
        return
    containers, members = structure(raw)
    for count, limit, what in (
        (containers, MAX_CONTAINERS, "arrays and objects"),
        (members, MAX_MEMBERS, "members of objects"),
    ):
        if count > limit:
            message = f"The request body has more than {limit} {what}."
            raise BadRequest(message, code="invalid_json")


def structure(raw: bytes) -> tuple[int, int]:
    """How many arrays and objects a body of valid JSON has, and how many members of objects.

    It takes no step in Python for each.
    """
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    found = np.frombuffer(plain.translate(None, _NOT_STRUCTURE), np.uint8)
    is_quote = found == ord('"')
    is_sign = ~is_quote & ~np.bitwise_xor.accumulate(is_quote)
    members = int(np.count_nonzero(is_sign & (found == ord(":"))))
    return int(np.count_nonzero(is_sign)) - members, members


def check_lengths(body: Mapping[str, Any]) -> None:
    """Raises BadRequest, with the name of the field, if one is longer than `MAX_LENGTHS` says.

    Or if there are more than `MAX_MESSAGES`.
    """
    for name in filter(_CHECKED.__contains__, body):
        value = body[name]
        if name == "text":
            _check_text(value)
        elif name == "messages":
            if type(value) is list:
                check_messages(value, name)
        elif type(value) is not str or len(value) > _SURELY_FIT:
            _check(name, value)


def check_messages(messages: Sized, name: str) -> None:
    """Raises BadRequest if the field `name` has more than `MAX_MESSAGES`."""
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(
            f"'{name}' can have at most {MAX_MESSAGES} entries; it has {len(messages)}.",
            param=name,
            code="array_above_max_length",
        )


def check_parts(body: Mapping[str, Any]) -> None:
    """Raises BadRequest if the messages or items of a body have more than `MAX_PARTS` in all."""
    for name in ("messages", "input"):
        value = body.get(name)
        if type(value) is list and sum(map(_parts, value)) > MAX_PARTS:
            raise BadRequest(
                f"'{name}' can have at most {MAX_PARTS} parts and calls of tools.",
                param=name,
                code="array_above_max_length",
            )


def _parts(message: Any) -> int:
    if type(message) is not dict:
        return 0
    lists = (value for value in message.values() if type(value) is list)
    return sum(len(each) for each in lists if each and type(each[0]) is dict)


def _check_text(value: Any) -> None:
    """How a reply is to be written; in other APIs it is the prompt."""
    if type(value) is dict:
        _check("text", {k: v for k, v in value.items() if k != "format"})
        _check("text.format", value.get("format"))


def _check(name: str, value: Any) -> None:
    limit = MAX_LENGTHS[name]
    if value is not None and is_longer(value, limit):
        raise BadRequest(
            f"'{name}' can have at most {limit} bytes of JSON.",
            param=name,
            code="string_above_max_length",
        )


def is_longer(value: Any, limit: int) -> bool:
    """Whether a value has more bytes than `limit`, as JSON or a little less; takes no longer.

    In a list, each entry may have as many: a batch has one for each prompt.
    """
    if type(value) is list:
        return any(_exceeds(each, limit) for each in value)
    return _exceeds(value, limit)


def _exceeds(value: Any, limit: int) -> bool:
    left = limit
    for size in sizes(value):
        left -= size
        if left < 0:
            return True
    return False
