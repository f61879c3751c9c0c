"""Items of tools that OpenAI's service or its agents know by themselves, in the history.

They have no definition among the request's tools. A model is shown them as what they are: a call,
with the arguments that the item holds, and a result where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from slime_router.api.request import missing, require
from slime_router.errors import BadRequest

Item: TypeAlias = dict[str, Any]

IGNORED = frozenset(  # encrypted by another service: nobody here can read it; or read elsewhere
    {"compaction", "compaction_summary", "context_compaction", "additional_tools"}
)

_CALLS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # the tool's name; what its arguments are
    "apply_patch_call": ("apply_patch", ("operation",)),
    "code_interpreter_call": ("code_interpreter", ("code",)),
    "computer_call": ("computer", ("action", "actions")),
    "file_search_call": ("file_search", ("queries",)),
    "image_generation_call": ("image_generation", ("revised_prompt", "size", "quality")),
    "local_shell_call": ("local_shell", ("action",)),
    "mcp_approval_request": ("", ("arguments",)),
    "mcp_call": ("", ("arguments",)),
    "mcp_list_tools": ("mcp_list_tools", ("server_label",)),
    "program": ("program", ("code",)),
    "shell_call": ("shell", ("action",)),
    "tool_search_call": ("tool_search", ("arguments",)),
    "web_search_call": ("web_search", ("action",)),
}
_RESULTS: Mapping[str, str] = {  # of calls whose items hold them, and of items that are results
    "apply_patch_call_output": "output",
    "code_interpreter_call": "outputs",
    "file_search_call": "results",
    "local_shell_call_output": "output",
    "mcp_approval_response": "approve",
    "mcp_call": "output",
    "mcp_list_tools": "tools",
    "program_output": "result",
    "shell_call_output": "output",
    "tool_search_output": "tools",
}
_ALONE = frozenset(  # nothing refers to these, so that agents leave their ids out
    {
        *("code_interpreter_call", "file_search_call", "image_generation_call", "mcp_call"),
        *("mcp_list_tools", "tool_search_call", "tool_search_output", "web_search_call"),
    }
)
_IDS = ("call_id", "approval_request_id", "id")


@dataclass(frozen=True, slots=True)
class ServiceItem:
    """What an item says: a call, its result, or both."""

    call_id: str
    name: str | None  # of the tool that is called
    arguments: str  # JSON
    result: str | None


def is_service_item(kind: str) -> bool:
    """Whether `read_service_item` knows this type."""
    return kind in _CALLS or kind in _RESULTS


def read_service_item(item: Item, path: str) -> ServiceItem:
    """The item as a call and its result.

    Raises:
        BadRequest: it has no id, or shows what this model cannot see.
    """
    kind = item["type"]
    given = next((item[name] for name in _IDS if item.get(name)), None)
    if given is None and kind in _ALONE:
        given = kind
    if given is None:
        raise missing(f"{path}.{'id' if kind not in _RESULTS else 'call_id'}")
    require(isinstance(given, str), f"{path}.id", "a string")
    name, arguments = None, "{}"
    if kind in _CALLS:
        name = _CALLS[kind][0] or _name(item, path)
        arguments = _arguments(item, _CALLS[kind][1])
    result = _result(item, kind) if kind in _RESULTS else None
    return ServiceItem(str(given), name, arguments, result)


def _name(item: Item, path: str) -> str:
    name = item.get("name")
    if not name:
        raise missing(f"{path}.name")
    require(isinstance(name, str), f"{path}.name", "a string")
    return str(name)


def _arguments(item: Item, names: tuple[str, ...]) -> str:
    """One object is the arguments by itself; JSON text is left as it is."""
    given = {name: item[name] for name in names if item.get(name) is not None}
    if len(names) == 1 and len(given) == 1:
        [value] = given.values()
        if isinstance(value, str) and value.lstrip().startswith("{"):
            return value
        if isinstance(value, dict):
            return orjson.dumps(value).decode()
    return orjson.dumps(given).decode()


def _result(item: Item, kind: str) -> str | None:
    value = item.get(_RESULTS[kind])
    if kind == "mcp_approval_response":
        return "approved" if value is True else "denied"
    if value is None and item.get("error") is not None:
        value = item["error"]
    if value is None:
        return None if kind in _CALLS else ""
    return value if isinstance(value, str) else _shown(value)


def _shown(value: Any) -> str:
    """Texts as they are, line by line; everything else as JSON."""
    if isinstance(value, list):
        return "\n".join(each if isinstance(each, str) else _shown(each) for each in value)
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            return str(value["text"])
        if isinstance(value.get("logs"), str):
            return str(value["logs"])
    return orjson.dumps(value).decode()


def unsupported(kind: Any, path: str) -> BadRequest:
    """The refusal of an item that nobody here can show."""
    return BadRequest(f"Items of type '{str(kind)[:40]}' are not supported.", param=f"{path}.type")
