"""From the body of a Responses request to the call that the chat door would make of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from slime_router.api.chat.messages import checked
from slime_router.api.chat.reply import logprob_entries
from slime_router.api.chat.request import read_chat_request
from slime_router.api.chat.settings import SettingsReader
from slime_router.api.media.pictures import Pictured
from slime_router.api.request import fresh_hex, missing, named_as, require
from slime_router.api.responses.items import NO_NAMES, Item, ModelNames, read_input, to_talk
from slime_router.api.responses.reply import ResponseStyle
from slime_router.api.responses.store import ResponseStore, Stored
from slime_router.api.responses.tools import ResponseTool, chat_choice, response_tools, unshown
from slime_router.api.token_ids import TokenNames
from slime_router.auth.caller import Caller, caller
from slime_router.edge.lengths import check_messages
from slime_router.errors import BadRequest
from slime_router.template.heard import Written
from slime_router.types import GenerateCall, GenerateChunk, Message
from slime_router.values import replace

_NOT_OF_CHAT = frozenset(  # read here, named like a chat field but different, or not supported
    {
        "input",
        "input_ids",
        "logprobs",
        "n",
        "prompt_token_ids",
        "reasoning_effort",
        "response_format",
        "return_indexer_topk",
        "return_meta_info",
        "return_sampling_mask",
        "stream_options",
        "top_logprobs",
    }
)
_LOGPROBS = "message.output_text.logprobs"  # in `include`
_ECHOED = (
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "user",
)
_SUMMARIES = ("auto", "concise", "detailed")
_VERBOSITIES = ("low", "medium", "high")
_UNASKED = {  # how workers sample where nothing is asked for
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """What a client asks for, and what of it is kept where the reply is to be stored."""

    calls: tuple[GenerateCall, ...]  # one
    style: ResponseStyle
    stream: bool
    store: bool
    asked: tuple[Item, ...]
    previous: Stored | None
    owner: str  # of what is stored

    @property
    def call(self) -> GenerateCall:
        """The one call."""
        return self.calls[0]


def read_responses_request(
    body: dict[str, Any],
    request: web.Request,
    reader: SettingsReader,
    kept: ResponseStore,
    token_names: Callable[[bool | None], TokenNames],
    take_pictures: Callable[[Mapping[str, Any]], Pictured | None],
) -> ResponsesRequest:
    """Checks every field and makes the call; `token_names` are used beside log-probabilities.

    `take_pictures` takes those of the request, and of the responses that it continues; see
    `PictureDoor.taken`.

    Raises:
        BadRequest: with the path of the field at fault, in the words of this API or of chat.
        NotFound: an item that is referred to is not stored.
    """
    _check(body)
    previous, by = None, caller(request)
    if body.get("previous_response_id") is not None:
        previous = kept.previous(body["previous_response_id"], by)
    asked = _asked(body, kept, previous, by)
    before = [] if previous is None else previous.conversation()
    tools = response_tools(body.get("tools"), [*before, *asked], first=len(before))
    names = {
        (tool.namespace, tool.name): tool.model_name
        for tool in tools
        if tool.namespace and tool.model_name != tool.name
    }
    pictured = take_pictures({**body, "input": [*before, *asked]})
    marked = None if pictured is None else pictured["input"]
    chat = _chat_body(body, conversation_of(body, asked, previous, names, marked), tools)
    shown = [tool for tool in tools if tool.is_shown]
    with named_as((f"tools[{k}].function", tool.path) for k, tool in enumerate(shown)):
        made = read_chat_request(chat, request, reader)
    style = ResponseStyle(
        id=f"resp_{fresh_hex(48)}",
        created=int(time.time()),
        clock=time.time,
        echo={"model": made.style.model, **_echo(body, tools)},
        namespaces={tool.model_name: tool.namespace for tool in tools if tool.namespace},
        names={model_name: name for (_, name), model_name in names.items()},
        customs=frozenset(tool.model_name for tool in tools if tool.is_custom),
        searches=frozenset(tool.model_name for tool in tools if tool.is_search),
        is_prewarm=_prewarms(body),
        entries=_entries(token_names(made.style.tokens_as_ids)) if chat["logprobs"] else None,
    )
    rid = body.get("rid") or style.id
    call = _finding(made.calls[0], tools, chat)
    notes = (f"'{path}' is not shown to the model" for path in unshown(body.get("tools")))
    call = replace(call, rid=rid, request_id=style.id, notes=(*call.notes, *notes))
    if pictured is not None:
        call = pictured.on(call)
    if style.is_prewarm:
        call = replace(call, sampling=replace(call.sampling, max_tokens=0))
    stores = body.get("store") is not False
    return ResponsesRequest((call,), style, made.stream, stores, asked, previous, by.owner)


def _finding(
    call: GenerateCall, tools: Sequence[ResponseTool], chat: Mapping[str, Any]
) -> GenerateCall:
    """The call, whose model may also call what its searches have found."""
    found = tuple(tool.chat for tool in tools if not tool.is_shown)
    if not found or call.reply.is_forced or chat["tool_choice"] == "none":
        return call
    return replace(call, reply=replace(call.reply, tools=(*call.reply.tools, *found)))


def _prewarms(body: Mapping[str, Any]) -> bool:
    """Whether the prompt is only to be computed, so that a worker has it in its cache."""
    asked = (body.get("prompt_cache_options") or {}).get("prewarm")
    require(isinstance(asked, bool | None), "prompt_cache_options.prewarm", "true or false")
    return bool(asked)


def _entries(names: TokenNames) -> Callable[[GenerateChunk], list[dict[str, Any]]]:
    return partial(logprob_entries, names=names)


def _check(body: dict[str, Any]) -> None:
    for name, kind, what in (
        ("instructions", str, "a string"),
        ("previous_response_id", str, "a string"),
        ("store", bool, "true or false"),
        ("background", bool, "true or false"),
        ("text", dict, "an object"),
        ("reasoning", dict, "an object"),
        ("include", list, "a list of strings"),
        ("metadata", dict, "an object"),
        ("service_tier", str, "a string"),
        ("stream_options", dict, "an object"),
        ("prompt_cache_options", dict, "an object"),
        ("prompt_cache_key", str, "a string"),
        ("safety_identifier", str, "a string"),
        ("user", str, "a string"),
    ):
        value = body.get(name)
        require(value is None or isinstance(value, kind), name, what)
    for i, each in enumerate(body.get("include") or ()):
        require(isinstance(each, str), f"include[{i}]", "a string")
    _check_within(body)
    truncation, calls = body.get("truncation"), body.get("max_tool_calls")
    require(truncation in (None, "auto", "disabled"), "truncation", "'auto' or 'disabled'")
    is_count = calls is None or (type(calls) is int and calls > 0)
    require(is_count, "max_tool_calls", "a positive integer")
    for name in ("background", "conversation", "prompt"):
        if body.get(name):
            raise BadRequest(f"'{name}' is not supported.", param=name, code="unsupported_value")


def _check_within(body: Mapping[str, Any]) -> None:
    """What a response repeats of objects in its request."""
    for name, field, known in (
        ("reasoning", "summary", _SUMMARIES),
        ("reasoning", "generate_summary", _SUMMARIES),
        ("text", "verbosity", _VERBOSITIES),
    ):
        value = (body.get(name) or {}).get(field)
        is_known = value is None or (isinstance(value, str) and value in known)
        require(is_known, f"{name}.{field}", f"one of {', '.join(known)}")


def _asked(
    body: dict[str, Any], kept: ResponseStore, previous: Stored | None, by: Caller
) -> tuple[Item, ...]:
    if body.get("input") is None:
        if previous is None:
            raise missing("input")
        return ()
    if isinstance(body["input"], list):
        check_messages(body["input"], "input")
    return read_input(body["input"], partial(kept.item, by=by))


def conversation_of(
    body: Mapping[str, Any],
    asked: tuple[Item, ...],
    previous: Stored | None,
    names: ModelNames = NO_NAMES,
    marked: Sequence[Item] | None = None,
) -> Sequence[Message]:
    """The chat messages of `instructions` and of all items; `names` are those of their calls.

    `marked` are all items with marks in place of their pictures, where there are any.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    instructions = body.get("instructions")  # of this request only, not those of the previous one
    head = [{"role": "system", "content": instructions}] if instructions else []
    before = previous.conversation() if previous is not None else []
    written = body.get("input")
    messages: Sequence[Message]
    if isinstance(written, Written) and not before:
        talk = to_talk(asked[written.first_new :], first=-written.first_new, names=names)
        new = checked(talk.messages, len(written.known))
        messages = written.remade(head, new, asked, is_closed=talk.is_closed)
        is_empty = len(messages) == len(head)
    else:
        if isinstance(written, Written):
            written.let_go()  # what they become depends on the items before them
        check_messages([*before, *asked], "input")
        items = [*before, *asked] if marked is None else marked
        said = to_talk(items, first=len(before), names=names).messages
        messages, is_empty = [*head, *said], not said
    if is_empty:
        raise BadRequest("'input' cannot be empty.", param="input")
    return messages


def _chat_body(
    body: dict[str, Any], messages: Sequence[Message], tools: tuple[ResponseTool, ...]
) -> dict[str, Any]:
    """The chat request that asks for the same; fields that no API knows go through."""
    plain = {name: value for name, value in body.items() if name not in _NOT_OF_CHAT}
    return {
        **plain,
        "messages": messages,
        "tools": [tool.chat for tool in tools if tool.is_shown],
        "tool_choice": chat_choice(body.get("tool_choice"), tools),
        "max_completion_tokens": body.get("max_output_tokens"),
        "reasoning_effort": (body.get("reasoning") or {}).get("effort"),
        "response_format": (body.get("text") or {}).get("format"),
        "logprobs": _LOGPROBS in (body.get("include") or ()) or bool(body.get("top_logprobs")),
        "top_logprobs": body.get("top_logprobs"),
    }


def _echo(body: dict[str, Any], tools: tuple[ResponseTool, ...]) -> dict[str, Any]:
    """What a response says of its request: every field that Open Responses requires."""
    metadata = body.get("metadata") or {}
    text = body.get("text") or {}
    choice = body.get("tool_choice")
    parallel = body.get("parallel_tool_calls")
    return {
        **{name: body.get(name) for name in _ECHOED},
        **{
            name: plain if body.get(name) is None else body[name]
            for name, plain in _UNASKED.items()
        },
        "service_tier": "default",  # the one that served it: there is no other
        "background": False,
        "instructions": body.get("instructions"),
        "metadata": {k: v for k, v in metadata.items() if isinstance(v, str)},
        "parallel_tool_calls": parallel is not False,
        "reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})},
        "store": body.get("store") is not False,
        "text": {**text, "format": _format_of(text)},
        "tool_choice": "auto" if choice is None else choice,
        "tools": [tool.echo() for tool in tools if tool.source == "tools"],
        "top_logprobs": body.get("top_logprobs") or 0,
        "truncation": "disabled",
    }


def _format_of(text: Mapping[str, Any]) -> dict[str, Any]:
    asked = text.get("format") or {"type": "text"}
    is_schema = asked["type"] == "json_schema"
    return {"description": None, "strict": False, **asked} if is_schema else asked
