"""From the body of an Anthropic messages request to the call it asks for.

The body is written as the chat request that says the same, and that is read like any other: one
conversation makes the same call, whichever door it comes through. Fields that only mean something
to Anthropic's own service are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from slime_router.api.anthropic.events import MessageStyle
from slime_router.api.anthropic.messages import read_conversation
from slime_router.api.anthropic.reply import THREAD_UNSUPPORTED
from slime_router.api.chat.aliases import thinking_switch
from slime_router.api.chat.fields import MAX_STOPS
from slime_router.api.chat.request import read_chat_request
from slime_router.api.chat.settings import SettingsReader
from slime_router.api.request import fresh_hex, missing, named_as, require
from slime_router.errors import BadRequest
from slime_router.types import GenerateCall
from slime_router.values import replace

_AS_IN_CHAT = (  # Anthropic's fields, hints of the session, and what the router itself adds
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stream",
    "metadata",
    "session_id",
    "prompt_cache_key",
    "user",
    "history",
    "chat_template_kwargs",
    "lora_path",
    "extra_key",
    "cache_salt",
    "seed",
    "rid",
    "priority",
    "session_params",
    "custom_params",
    "custom_logit_processor",
    "custom_labels",
    "routed_dp_rank",
    "data_parallel_rank",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
)
_THINKS = {  # None: up to the template
    "enabled": True,
    "disabled": False,
    "adaptive": None,
    "between_tools": None,
}
_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
_RUN_BY_AGENTS = ("bash_", "text_editor_", "memory_", "computer_", "browser_")  # types of tools
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """What a client asks for, and how it wants the reply."""

    calls: tuple[GenerateCall, ...]  # one
    style: MessageStyle
    stream: bool

    @property
    def call(self) -> GenerateCall:
        """The one call."""
        return self.calls[0]


def read_messages_request(
    body: Mapping[str, Any],
    request: web.Request,
    reader: SettingsReader,
    *,
    is_counted: bool = False,
) -> MessagesRequest:
    """Checks every field and makes the call; one that is only counted needs no `max_tokens`.

    With a `max_tokens` of 0 the worker computes the prompt, and samples nothing: it is cached then.

    Raises:
        BadRequest: with the path of the field at fault, such as `messages[3].content[0].type`.
    """
    limit = body.get("max_tokens")
    if limit is None and not is_counted:
        raise missing("max_tokens")
    if body.get("compaction") and not is_counted:
        message = "'compaction' is not served: let the agent write its own summary."
        raise BadRequest(message, param="compaction", code="not_supported")
    samples_nothing = type(limit) is int and not limit
    if samples_nothing:
        body = {**body, "max_tokens": None}
    chat = _as_chat(body)
    with named_as(_own_names(body)):
        asked = read_chat_request(chat, request, reader)
    reply_id = f"msg_{fresh_hex(32)}"
    rid = body.get("rid") or reply_id
    notes = [f"'{name}' is not enforced" for name in _unenforced(body)]
    notes += [f"'{name}' is not shown to the model" for name in _unshown(body)]
    call = asked.calls[0]
    call = replace(call, rid=rid, request_id=reply_id, notes=(*call.notes, *notes))
    if samples_nothing:
        call = replace(call, sampling=replace(call.sampling, max_tokens=0))
    hides = (body.get("thinking") or {}).get("display") == "omitted"
    style = MessageStyle(reply_id, asked.style.model, hides_thinking=hides)
    return MessagesRequest((call,), style, asked.stream)


def _unenforced(body: Mapping[str, Any]) -> Iterator[str]:
    """Fields of a body that was read which ask for what workers do not do."""
    for name, field in (("thinking", "budget_tokens"), ("output_config", "task_budget")):
        if (body.get(name) or {}).get(field) is not None:
            yield f"{name}.{field}"


def _unshown(body: Mapping[str, Any]) -> Iterator[str]:
    """The tools of a body that was read which agents run, and whose form only Anthropic knows."""
    for i, tool in enumerate(body.get("tools") or ()):
        if not _is_own(tool) and tool["type"].startswith(_RUN_BY_AGENTS):
            yield f"tools[{i}]"


def _own_names(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Chat's names of what is in a body that was read as a chat, and the client's."""
    own = (i for i, tool in enumerate(body.get("tools") or ()) if _is_own(tool))
    for k, i in enumerate(own):
        yield f"tools[{k}].function.parameters", f"tools[{i}].input_schema"
        yield f"tools[{k}].function", f"tools[{i}]"
    older = body.get("output_format") is not None
    yield "response_format.json_schema", "output_format" if older else "output_config.format"


def _as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_threads(body)
    chat = {name: body[name] for name in _AS_IN_CHAT if body.get(name) is not None}
    messages = read_conversation(body)
    chat["messages"] = messages
    chat["stop"] = _stops(body.get("stop_sequences"))
    chat["tools"] = _tools(body.get("tools"))
    chat.update(_tool_choice(body.get("tool_choice")))
    chat.update(_template_kwargs(body))
    chat.update(_output_config(body))
    last = messages[-1]
    if last["role"] == "assistant" and last["content"] and "tool_calls" not in last:
        chat["continue_final_message"] = True  # the client wrote the beginning of the reply
    return chat


def _output_config(body: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the reply, which older SDKs send by itself, and the effort."""
    config = body.get("output_config")
    require(config is None or isinstance(config, dict), "output_config", "an object")
    config = config or {}
    chat: dict[str, Any] = {}
    for name, asked in (
        ("output_config.format", config.get("format")),
        ("output_format", body.get("output_format")),
    ):
        if asked is None:
            continue
        require(isinstance(asked, dict), name, "an object")
        if asked.get("type") != "json_schema":
            raise BadRequest(f"'{name}.type' must be 'json_schema'.", param=f"{name}.type")
        require(isinstance(asked.get("schema"), dict), f"{name}.schema", "an object")
        schema = {"name": "response", "schema": asked["schema"], "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if (effort := config.get("effort")) is not None:
        is_known = isinstance(effort, str) and effort in _EFFORTS
        require(is_known, "output_config.effort", f"one of {', '.join(_EFFORTS)}")
        chat["reasoning_effort"] = "max" if effort == "xhigh" else effort  # as SGLang has it
    return chat


def _refuse_threads(body: Mapping[str, Any]) -> None:
    """A request that continues a thread holds only what is new: ignoring it loses the rest."""
    if body.get("thread"):
        message = "'thread' is not supported: send all messages."
        raise BadRequest(message, param="thread", code=THREAD_UNSUPPORTED)


def _stops(stops: Any) -> list[str]:
    if stops is None:
        return []
    is_list = isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops)
    require(is_list, "stop_sequences", "a list of strings that are not empty")
    require(len(stops) <= MAX_STOPS, "stop_sequences", f"a list of at most {MAX_STOPS}")
    return list(stops)


def _tools(tools: Any) -> list[dict[str, Any]]:
    """The client's own tools; tools of other types run in Anthropic's service."""
    if tools is None:
        return []
    require(isinstance(tools, list), "tools", "a list of tools")
    converted = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    return [tool for tool in converted if tool is not None]


def _tool(tool: Any, path: str) -> dict[str, Any] | None:
    require(isinstance(tool, dict), path, "an object")
    kind = tool.get("type")
    require(kind is None or isinstance(kind, str), f"{path}.type", "a string")
    if not _is_own(tool):
        return None
    for name in ("name", "input_schema"):
        if tool.get(name) in (None, ""):
            raise missing(f"{path}.{name}")
    require(isinstance(tool["name"], str), f"{path}.name", "a string")
    require(isinstance(tool["input_schema"], dict), f"{path}.input_schema", "an object")
    for name, type_, what in (
        ("description", str, "a string"),
        ("strict", bool, "true or false"),
        ("defer_loading", bool, "true or false"),
    ):
        require(tool.get(name) is None or isinstance(tool[name], type_), f"{path}.{name}", what)
    function = {"name": tool["name"]}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = tool["input_schema"]
    if tool.get("strict"):  # templates print what is there
        function["strict"] = True
    chat = {"type": "function", "function": function}
    return {**chat, "defer_loading": True} if tool.get("defer_loading") else chat


def _is_own(tool: Mapping[str, Any]) -> bool:
    """Whether a tool is the client's."""
    return tool.get("type") in (None, "custom")


def _tool_choice(choice: Any) -> dict[str, Any]:
    """Chat's `tool_choice` and `parallel_tool_calls`."""
    if choice is None:
        return {}
    require(isinstance(choice, dict), "tool_choice", "an object")
    alone = choice.get("disable_parallel_tool_use")
    path = "tool_choice.disable_parallel_tool_use"
    require(alone is None or type(alone) is bool, path, "true or false")
    parallel = {"parallel_tool_calls": False} if alone else {}
    match choice:
        case {"type": "tool", "name": str(name)}:
            named = {"type": "function", "function": {"name": name}}
            return {"tool_choice": named, **parallel}
        case {"type": "auto" | "any" | "none" as kind}:
            return {"tool_choice": _CHOICES[kind], **parallel}
    raise BadRequest(
        "'tool_choice.type' must be 'auto', 'any', 'none', or 'tool' with a name.",
        param="tool_choice.type",
    )


def _template_kwargs(body: Mapping[str, Any]) -> dict[str, Any]:
    """Chat's `chat_template_kwargs`; what stands there already wins over `thinking`."""
    thinking = body.get("thinking")
    if thinking is None:
        return {}
    require(isinstance(thinking, dict), "thinking", "an object")
    kind = thinking.get("type")
    if not isinstance(kind, str) or kind not in _THINKS:
        raise BadRequest(
            f"'thinking.type' must be one of {', '.join(_THINKS)}.", param="thinking.type"
        )
    budget = thinking.get("budget_tokens")
    require(budget is None or type(budget) is int, "thinking.budget_tokens", "an integer")
    given = body.get("chat_template_kwargs") or {}
    if _THINKS[kind] is None or not isinstance(given, dict):
        return {}
    return {"chat_template_kwargs": {**thinking_switch(is_on=bool(_THINKS[kind])), **given}}
