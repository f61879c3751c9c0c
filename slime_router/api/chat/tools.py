"""The tools of a chat request and which of them the model may call.

They are checked and handed on as the client wrote them, in its own key order and with no defaults
added, because templates print them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slime_router.api.chat.grammar import check_schema
from slime_router.api.request import missing, require, wrong_type
from slime_router.errors import BadRequest
from slime_router.values import value


def read_tools(body: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The tools in `tools`; `null` and `[]` mean no tools.

    Raises:
        BadRequest: with the path of the field at fault, such as `tools[0].function.name`.
    """
    tools = body.get("tools")
    if tools is None:
        return ()
    require(type(tools) is list, "tools", "a list of tools")
    for i, tool in enumerate(tools):
        _check_tool(tool, f"tools[{i}]")
    return tuple(map(_deferred_within, tools))


@value(frozen=True, slots=True)
class ToolChoice:
    """Which tools the template shows, and which of them the model may, or must, call."""

    shown: tuple[dict[str, Any], ...]
    callable: tuple[dict[str, Any], ...]
    is_forced: bool = False
    named: str | None = None


def tool_choice(
    tools: tuple[dict[str, Any], ...], choice: Any, *, can_force: bool = False
) -> ToolChoice:
    """What `tool_choice` makes of `tools`; the template shows none for "none", as SGLang does it.

    `can_force` says that there is a parser, which reads a forced call back from the text.

    Raises:
        BadRequest: `tool_choice` has no such form, or must force a call and cannot.
    """
    match choice:
        case None | "auto":
            return ToolChoice(tools, tools)
        case "none":
            return ToolChoice((), ())
        case "required":
            _check_can_force(tools, tools, can_force)
            return ToolChoice(tools, tools, is_forced=True)
        case {"type": "function", "function": {"name": str(name)}}:
            picked = _picked(tools, [name])
            _check_can_force(tools, picked, can_force)
            return ToolChoice(tools, picked, is_forced=True, named=name)
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(allowed)}}:
            picked = _picked(tools, [_allowed_name(tool) for tool in allowed])
            if mode == "required":
                _check_can_force(tools, picked, can_force)
            if mode in ("auto", "required"):
                return ToolChoice(picked, picked, is_forced=mode == "required")
    kind = choice.get("type") if isinstance(choice, dict) else None
    raise BadRequest(
        "'tool_choice' must be 'none', 'auto', 'required', a named function or allowed tools."
        + custom_hint(kind),
        param="tool_choice",
    )


def custom_hint(kind: object) -> str:
    """What a refusal says besides where the tool, call or choice is a `custom` one."""
    return " Custom tools, whose input is a text, need /v1/responses." if kind == "custom" else ""


def named_function(owner: dict[str, Any], path: str) -> dict[str, Any]:
    """The `function` object of a tool or a tool call; it has a name.

    Raises:
        BadRequest: it has not.
    """
    function = owner.get("function")
    if function is None:
        raise missing(f"{path}.function")
    if not isinstance(function, dict):
        raise wrong_type(f"{path}.function", "an object")
    name = function.get("name")
    if name is None or name == "":
        raise missing(f"{path}.function.name")
    require(isinstance(name, str), f"{path}.function.name", "a string")
    return function


def _picked(tools: tuple[dict[str, Any], ...], names: list[str]) -> tuple[dict[str, Any], ...]:
    known = {tool["function"]["name"] for tool in tools}
    for name in names:
        if name not in known:
            raise BadRequest(f"Tool '{name}' not found in tools list.", param="tool_choice")
    return tuple(tool for tool in tools if tool["function"]["name"] in names)


def _allowed_name(tool: Any) -> str:
    match tool:
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return name
    raise wrong_type("tool_choice.allowed_tools.tools", "a list of named functions")


def _check_can_force(
    tools: tuple[dict[str, Any], ...], picked: tuple[dict[str, Any], ...], can_force: bool
) -> None:
    """A forced call of those `picked` must have an end, and a parser that reads it back."""
    if not picked:
        raise BadRequest(
            "Tools cannot be empty if tool choice is set to required.", param="tool_choice"
        )
    if not can_force:
        raise BadRequest(
            "This 'tool_choice' needs a tool-call parser, and none is configured.",
            param="tool_choice",
        )
    for tool in picked:
        if tool["function"].get("strict"):  # otherwise its call may hold any JSON
            path = f"tools[{tools.index(tool)}].function.parameters"
            check_schema(tool["function"].get("parameters"), path)


def _deferred_within(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool with `defer_loading` in its function, where templates look, as SGLang puts it."""
    is_deferred, function = tool.get("defer_loading"), tool["function"]
    if is_deferred is None or function.get("defer_loading") is not None:
        return tool
    return {**tool, "function": {**function, "defer_loading": is_deferred}}


def _check_tool(tool: Any, path: str) -> None:
    require(isinstance(tool, dict), path, "an object")
    if tool.get("type") is None:
        raise missing(f"{path}.type")
    if tool["type"] != "function":
        raise BadRequest(
            "A tool's type must be 'function'." + custom_hint(tool["type"]),
            param=f"{path}.type",
        )
    is_deferred = tool.get("defer_loading")
    require(
        is_deferred is None or type(is_deferred) is bool, f"{path}.defer_loading", "true or false"
    )
    function = named_function(tool, path)
    for name, kind, what in (
        ("description", str, "a string"),
        ("parameters", dict, "an object"),
        ("strict", bool, "true or false"),
    ):
        value = function.get(name)
        require(value is None or isinstance(value, kind), f"{path}.function.{name}", what)
