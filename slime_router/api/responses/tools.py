"""The tools of a Responses request as a chat request has them.

Functions stand flat here, or inside a namespace. What only OpenAI's own servers can run (web search
and the like) is dropped: agents send it to every server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slime_router.api.chat.tools import read_tools
from slime_router.api.faults import require
from slime_router.errors import BadRequest

_FUNCTION_KEYS = ("name", "description", "parameters", "strict")


@dataclass(frozen=True, slots=True)
class ResponseTool:
    """One function, as a chat client would send it, and the namespace that it stood in."""

    chat: dict[str, Any]
    namespace: str | None = None

    @property
    def name(self) -> str:
        """The function's."""
        return str(self.chat["function"]["name"])

    def echo(self) -> dict[str, Any]:
        """The tool as a response repeats it."""
        return {"type": "function", "parameters": None, "strict": None, **self.chat["function"]}


def response_tools(given: Any) -> tuple[ResponseTool, ...]:
    """The functions in `tools`.

    Raises:
        BadRequest: with the path of the field at fault, such as `tools[2].name`.
    """
    if given is None:
        return ()
    require(isinstance(given, list), "tools", "a list of tools")
    return tuple(tool for i, each in enumerate(given) for tool in _functions(each, f"tools[{i}]"))


def chat_choice(choice: Any) -> Any:
    """`tool_choice` as a chat client would write it; what has no such form is left as it is."""
    match choice:
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": list(tools)}:
            known = [t for t in tools if not isinstance(t, dict) or t.get("type") == "function"]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": known}}
    return choice


def _functions(tool: Any, path: str, namespace: str | None = None) -> Iterator[ResponseTool]:
    require(isinstance(tool, dict), path, "an object")
    require(isinstance(tool.get("type"), str), f"{path}.type", "a string")
    if tool["type"] == "function":
        yield ResponseTool(_chat_tool(tool, path), namespace)
    elif tool["type"] == "namespace" and namespace is None:
        nested = tool.get("tools") or []
        require(isinstance(nested, list), f"{path}.tools", "a list of tools")
        for k, each in enumerate(nested):
            yield from _functions(each, f"{path}.tools[{k}]", str(tool.get("name") or ""))


def _chat_tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    """In the client's own key order, because templates print it; nulls say nothing."""
    function = {k: v for k, v in tool.items() if k in _FUNCTION_KEYS and v is not None}
    chat = {"type": "function", "function": function}
    try:
        read_tools({"tools": [chat]})
    except BadRequest as exc:
        exc.param = (exc.param or "").replace("tools[0].function", path)
        exc.message = exc.message.replace("tools[0].function", path)
        raise
    return chat
