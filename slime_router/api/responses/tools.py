"""The tools of a Responses request: those in `tools`, and those that its input brings.

`additional_tools` is an item that Codex sends in place of `tools`; the model is shown both alike.
What a tool search has found stands in its output, where the model has read it, so the template is
not given it: it may be called, and the prompt goes on as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import orjson

from slime_router.api.chat.tools import read_tools
from slime_router.api.request import named_as, require
from slime_router.api.responses.custom_tools import as_function
from slime_router.errors import BadRequest
from slime_router.values import replace

Source: TypeAlias = Literal["tools", "additional_tools", "tool_search_output"]

SEARCH = "tool_search"
_FOUND: Source = "tool_search_output"
_FUNCTION_KEYS = ("name", "description", "parameters", "strict")
_FUNCTION = {"type": "function", "description": None, "parameters": None, "strict": None}
_RUN_BY_AGENTS = ("apply_patch", "computer", "computer_use_preview", "local_shell", "shell")
_SERVED = ("function", "custom", "namespace")  # of what a search finds


@dataclass(frozen=True, slots=True)
class ResponseTool:
    """One function, as a chat client would send it, and where the client wrote it."""

    chat: dict[str, Any]
    path: str
    name: str  # as the client wrote it
    namespace: str | None = None
    written: dict[str, Any] | None = None  # as the client wrote it, where it is not a function
    source: Source = "tools"

    @property
    def model_name(self) -> str:
        """What the model calls it."""
        return str(self.chat["function"]["name"])

    @property
    def is_custom(self) -> bool:
        """Whether its input is a text."""
        return self.written is not None and self.written["type"] == "custom"

    @property
    def is_search(self) -> bool:
        """Whether a call of it is a search for tools, by the client."""
        return self.written is not None and self.written["type"] == SEARCH

    @property
    def is_shown(self) -> bool:
        """Whether the template shows it to the model."""
        return self.source != _FOUND

    def qualified(self) -> ResponseTool:
        """The same, for the model by a name that says its namespace, as those of MCP servers do."""
        function = {**self.chat["function"], "name": f"{self.namespace}__{self.name}"}
        return replace(self, chat={**self.chat, "function": function})

    def echo(self) -> dict[str, Any]:
        """The tool as a response repeats it."""
        if self.written is not None:
            return self.written
        return {**_FUNCTION, **self.chat["function"], "name": self.name}


def response_tools(
    given: Any, items: Sequence[Mapping[str, Any]] = (), *, first: int = 0
) -> tuple[ResponseTool, ...]:
    """The functions in `tools` and in `items`; they stand flat there, or inside a namespace.

    What only OpenAI's own servers can run (web search and the like) is dropped: agents send it to
    every server. `input[0]` of the request is `items[first]`.

    Raises:
        BadRequest: with the path of the field at fault, such as `tools[2].name`.
    """
    require(isinstance(given, list | None), "tools", "a list of tools")
    tools = [tool for i, each in enumerate(given or ()) for tool in _functions(each, f"tools[{i}]")]
    names = {(tool.namespace, tool.name) for tool in tools}
    for tool in _of_items(items, first):
        if (tool.namespace, tool.name) not in names:
            names.add((tool.namespace, tool.name))
            tools.append(tool)
    return _distinct(tools)


def unshown(given: Any) -> Iterator[str]:
    """The paths of the tools that agents run, in a form that only OpenAI's models know."""
    for i, tool in enumerate(given or ()):
        if tool["type"] in _RUN_BY_AGENTS:
            yield f"tools[{i}]"


def decode_search(arguments: str) -> Any:
    """The arguments of a search as JSON has them; their text where they are not JSON, or half a
    pair of surrogates is in them.
    """
    try:
        value = json.loads(arguments or "{}", strict=False)
        orjson.dumps(value)
    except (ValueError, RecursionError, TypeError):
        return arguments
    return value


def _of_items(items: Sequence[Mapping[str, Any]], first: int) -> Iterator[ResponseTool]:
    for i, item in enumerate(items, -first):
        source = item["type"]
        if source not in ("additional_tools", _FOUND):
            continue
        given, path = item.get("tools"), f"input[{i}].tools"
        if given is None:
            continue
        require(isinstance(given, list), path, "a list of tools")
        for k, each in enumerate(given):
            if source != _FOUND or (isinstance(each, dict) and each.get("type") in _SERVED):
                found = _functions(each, f"{path}[{k}]")
                yield from (replace(tool, source=source) for tool in found)


def _distinct(tools: Iterable[ResponseTool]) -> tuple[ResponseTool, ...]:
    """The tools; those that share a name with one elsewhere get longer names."""
    tools, homes = tuple(tools), dict[str, set[str | None]]()
    for tool in tools:
        homes.setdefault(tool.name, set()).add(tool.namespace)
    return tuple(
        tool.qualified() if tool.namespace and len(homes[tool.name]) > 1 else tool for tool in tools
    )


def chat_choice(choice: Any, tools: tuple[ResponseTool, ...]) -> Any:
    """`tool_choice` as a chat client would write it; what has no such form is left as it is.

    Raises:
        BadRequest: it names a tool that is in several namespaces, or not in the one it says.
    """
    match choice:
        case {"type": "function" | "custom", "name": str()}:
            return {"type": "function", "function": {"name": _chosen(choice, tools)}}
        case {"type": "allowed_tools", "mode": mode, "tools": list(allowed)}:
            known = [_allowed(each, tools) for each in allowed if _is_ours(each)]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": known}}
    return choice


def _is_ours(allowed: Any) -> bool:
    return not isinstance(allowed, dict) or allowed.get("type") in ("function", "custom")


def _allowed(allowed: Any, tools: tuple[ResponseTool, ...]) -> Any:
    match allowed:
        case {"name": str()}:
            return {**allowed, "name": _chosen(allowed, tools)}
    return allowed


def _chosen(choice: Mapping[str, Any], tools: tuple[ResponseTool, ...]) -> str:
    """The model's name of the tool that the client means."""
    name, namespace = choice["name"], choice.get("namespace")
    require(isinstance(namespace, str | None), "tool_choice.namespace", "a string")
    homes = {tool.namespace: tool.model_name for tool in tools if tool.name == name}
    if namespace in homes:
        return homes[namespace]
    if namespace is not None:
        raise BadRequest(
            f"Tool '{name}' not found in the namespace '{namespace}'.", param="tool_choice"
        )
    if len(homes) > 1:
        places = ", ".join(map(str, homes))
        raise BadRequest(
            f"Tool '{name}' is in several namespaces ({places}): 'namespace' says which.",
            param="tool_choice",
        )
    return next(iter(homes.values()), str(name))


def _functions(tool: Any, path: str, namespace: str | None = None) -> Iterator[ResponseTool]:
    require(isinstance(tool, dict), path, "an object")
    require(isinstance(tool.get("type"), str), f"{path}.type", "a string")
    if tool["type"] == "function":
        chat = _chat_tool(tool, path)
        yield ResponseTool(chat, path, tool["name"], namespace)
    elif tool["type"] == "custom":
        chat = _chat_tool(as_function(tool, path), path)
        yield ResponseTool(chat, path, tool["name"], namespace, tool)
    elif tool["type"] == SEARCH and tool.get("execution") == "client":
        described = {name: tool.get(name) for name in ("description", "parameters")}
        chat = _chat_tool({"name": SEARCH, **described}, path)
        yield ResponseTool(chat, path, SEARCH, namespace, tool)
    elif tool["type"] == "namespace" and namespace is None:
        nested = tool.get("tools") or []
        require(isinstance(nested, list), f"{path}.tools", "a list of tools")
        for k, each in enumerate(nested):
            yield from _functions(each, f"{path}.tools[{k}]", str(tool.get("name") or ""))


def _chat_tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    """In the client's own key order, because templates print it; nulls say nothing."""
    function = {k: v for k, v in tool.items() if k in _FUNCTION_KEYS and v is not None}
    chat = {"type": "function", "function": function}
    with named_as([("tools[0].function", path)]):
        read_tools({"tools": [chat]})
    return chat
