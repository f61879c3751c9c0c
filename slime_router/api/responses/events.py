"""A reply as the events of a Responses stream, before they are written.

The response is created; its items come one after the other, each with its beginning, its deltas
and its end; the response ends with all of them. Reasoning carries the turn's id in the field that
a client must return untouched, so the turn can be recognised whatever else is rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from slime_router.api.chat.reply import Tally
from slime_router.api.responses.custom_tools import decode_input, input_so_far
from slime_router.api.responses.item_ids import item_id
from slime_router.api.responses.tools import decode_search
from slime_router.errors import RouterError
from slime_router.types import Finish, GenerateChunk, ToolDelta

Event: TypeAlias = dict[str, Any]
Entry: TypeAlias = dict[str, Any]  # of a sampled token: its text, bytes and logprob
Kind: TypeAlias = Literal[
    "reasoning", "message", "function_call", "custom_tool_call", "tool_search_call"
]
Keep: TypeAlias = Callable[[dict[str, Any], str], None]  # a response that ended, and its turn

_ID_PREFIXES = {
    "reasoning": "rs",
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "tool_search_call": "tsc",
}
_DELTAS = {
    "reasoning": "response.reasoning_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}


@dataclass(frozen=True, slots=True)
class ResponseStyle:
    """What stays the same throughout a reply."""

    id: str
    created: int  # in seconds since 1970
    clock: Callable[[], float]  # likewise
    echo: Mapping[str, Any]  # the request's own fields, which a response repeats
    namespaces: Mapping[str, str]  # of the functions that are in one, by the model's names
    names: Mapping[str, str]  # the client's, where the model has others
    customs: frozenset[str] = frozenset()  # names of the tools that take free text
    searches: frozenset[str] = frozenset()  # names of the client's searches for tools
    is_prewarm: bool = False  # nothing is sampled
    entries: Callable[[GenerateChunk], list[Entry]] | None = None  # its logprobs, where asked for


@dataclass(slots=True)
class _Item:
    """One output item so far."""

    kind: Kind
    index: int
    id: str
    fields: dict[str, Any]
    texts: list[str] = field(default_factory=list)
    logprobs: list[Entry] = field(default_factory=list)
    given: str = ""  # of a custom tool's input

    @property
    def is_call(self) -> bool:
        """Whether it is a call: those have no parts."""
        return self.kind not in ("reasoning", "message")

    def part(self) -> dict[str, Any]:
        """The only content part so far; calls have no parts."""
        text = "".join(self.texts)
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return _part(text, self.logprobs)

    def written(self, status: str, turn: str) -> dict[str, Any]:
        """The item as JSON; while it is in progress its content is empty."""
        text, has_begun = "".join(self.texts), status != "in_progress"
        if self.kind == "custom_tool_call":
            return {"id": self.id, "type": self.kind, **self.fields, "input": self.given}
        item = {"id": self.id, "type": self.kind, "status": status, **self.fields}
        if self.kind == "tool_search_call":
            return {**item, "arguments": decode_search(text) if has_begun else {}}
        if self.kind == "function_call":
            return {**item, "arguments": text}
        if self.kind == "message":
            return {**item, "role": "assistant", "content": [self.part()] if has_begun else []}
        shown = [self.part()] if has_begun else []
        handle = {"encrypted_content": turn} if has_begun and turn else {}
        return {**item, "summary": [], "content": shown, **handle}


class ResponseEvents:
    """The events of one response."""

    def __init__(self, style: ResponseStyle, keep: Keep) -> None:
        self._style = style
        self._keep = keep
        self._tally = Tally()
        self._count = 0  # events
        self._turn = ""
        self._open: _Item | None = None
        self._calls: set[int] = set()
        self._later: list[tuple[Kind, str]] = []  # said after calls, which must not be torn apart
        self._output: list[dict[str, Any]] = []
        self._due: list[Entry] = []  # of tokens that no message has reported yet

    def of_chunk(self, chunk: GenerateChunk) -> list[Event]:
        """The events of the next chunk. Raises RouterError if the worker gave up."""
        self._tally.add(chunk)
        if self._style.entries is not None:
            self._due += self._style.entries(chunk)
        events: list[Event] = []
        if not self._count:
            self._turn = chunk.prompt.receipt.turn if chunk.prompt is not None else ""
            events += self._created()
        if chunk.reasoning:
            events += self._say("reasoning", chunk.reasoning)
        if chunk.text:
            events += self._say("message", chunk.text)
        for call in chunk.tool_calls:
            events += self._call(call)
        if chunk.finish is not None:
            events += self._end(chunk.finish)
        return events

    def of_text(self, text: str, tokens: int) -> list[Event]:
        """The events of a chunk that differs from the one before only in its tokens, a text."""
        self._tally.completion += tokens
        return self._say("message", text) if text else []

    def failure(self, exc: RouterError, error: Mapping[str, Any]) -> list[Event]:
        """The end of a stream that failed; `error` is what the client gets."""
        events = [] if self._count else self._created()  # clients refuse any other first event
        is_busy = exc.status == 429
        code = "rate_limit_exceeded" if is_busy else "server_error"
        failed = self._response("failed", error={"code": code, "message": exc.message})
        told = {name: error[name] for name in ("message", "param", "code")}
        events += [self._event("response.failed", response=failed)]
        return [*events, self._event("error", **told)]

    def _created(self) -> list[Event]:
        begun = self._response("in_progress")
        names = ("response.created", "response.in_progress")
        return [self._event(name, response=begun) for name in names]

    def _say(self, kind: Kind, text: str) -> list[Event]:
        if self._calls:
            self._later.append((kind, text))
            return []
        events = []
        if self._open is None or self._open.kind != kind:
            events += self._begin(kind, {})
        return [*events, *self._delta(text)]

    def _call(self, call: ToolDelta) -> list[Event]:
        events: list[Event] = []
        if call.index not in self._calls:
            self._calls.add(call.index)
            name = call.name or ""
            fields = {"call_id": call.id, "name": self._style.names.get(name, call.name)}
            namespace = self._style.namespaces.get(name)
            if namespace is not None:
                fields["namespace"] = namespace
            kind: Kind = "custom_tool_call" if name in self._style.customs else "function_call"
            if name in self._style.searches:
                kind, fields = "tool_search_call", {"call_id": call.id, "execution": "client"}
            events += self._begin(kind, fields)
        return [*events, *self._delta(call.arguments)] if call.arguments else events

    def _begin(self, kind: Kind, fields: dict[str, Any]) -> list[Event]:
        events = self._close("completed")
        index = len(self._output)
        name = item_id(_ID_PREFIXES[kind], self._style.id, index)
        item = self._open = _Item(kind, index, name, fields)
        begun = item.written("in_progress", "")
        events.append(
            self._event("response.output_item.added", output_index=item.index, item=begun)
        )
        if not item.is_call:
            events.append(self._of(item, "response.content_part.added", part=item.part()))
        return events

    def _delta(self, text: str) -> list[Event]:
        item = self._open
        assert item is not None
        item.texts.append(text)
        if item.kind == "tool_search_call":  # it has no events of its own
            return []
        if item.kind == "custom_tool_call":
            return self._give(item, input_so_far("".join(item.texts)))
        extra: dict[str, Any] = {}
        if item.kind == "message":
            extra = {"logprobs": self._tell_due(item)}
        return [self._of(item, f"{_DELTAS[item.kind]}.delta", delta=text, **extra)]

    def _give(self, item: _Item, text: str) -> list[Event]:
        """The delta that makes a custom tool's input `text`, which begins with what was given."""
        if not text.startswith(item.given) or text == item.given:
            return []
        delta, item.given = text[len(item.given) :], text
        return [self._of(item, f"{_DELTAS[item.kind]}.delta", delta=delta)]

    def _tell_due(self, item: _Item) -> list[Entry]:
        """The logprobs not reported yet, those of hidden tokens included, as in chat."""
        due, self._due = self._due, []
        item.logprobs += due
        return due

    def _close(self, status: str) -> list[Event]:
        item, self._open = self._open, None
        if item is None:
            return []
        text, name = "".join(item.texts), f"{_DELTAS.get(item.kind)}.done"
        events: list[Event] = []
        if item.kind == "custom_tool_call":
            events += self._give(item, decode_input(text))
            events.append(self._of(item, name, input=item.given))
        elif item.kind == "function_call":
            called = item.fields["name"]
            events.append(self._of(item, name, arguments=text, name=called))
        elif item.kind == "reasoning":
            events.append(self._of(item, name, text=text))
        elif item.kind == "message":
            self._tell_due(item)
            events.append(self._of(item, name, text=text, logprobs=item.logprobs))
        if not item.is_call:
            events.append(self._of(item, "response.content_part.done", part=item.part()))
        written = item.written(status, self._turn)
        self._output.append(written)
        events.append(
            self._event("response.output_item.done", output_index=item.index, item=written)
        )
        return events

    def _end(self, finish: Finish) -> list[Event]:
        is_prewarm = self._style.is_prewarm
        status = "incomplete" if finish.type == "length" and not is_prewarm else "completed"
        events: list[Event] = []
        if self._later:
            events += self._close("completed")
            self._calls.clear()
            for kind, text in self._later:
                events += self._say(kind, text)
        is_empty = not self._output and self._open is None
        if is_empty and not is_prewarm:  # an empty reply is a message anyway
            events += self._begin("message", {})
        events += self._close(status)
        extra: dict[str, Any] = {"usage": self._usage()}
        if status == "incomplete":
            extra["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            extra["completed_at"] = int(self._style.clock())
        response = self._response(status, **extra)
        self._keep(response, self._turn)
        return [*events, self._event(f"response.{status}", response=response)]

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": self._style.id,
            "object": "response",
            "created_at": self._style.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            **self._style.echo,
            "output": list(self._output),
            "usage": None,
            **fields,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._tally.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }

    def _of(self, item: _Item, event_type: str, **fields: Any) -> Event:
        """An event inside an item; calls have no parts."""
        place = {} if item.is_call else {"content_index": 0}
        return self._event(event_type, item_id=item.id, output_index=item.index, **place, **fields)

    def _event(self, event_type: str, **fields: Any) -> Event:
        event = {"type": event_type, "sequence_number": self._count, **fields}
        self._count += 1
        return event


def _part(text: str, logprobs: list[Entry]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*logprobs]}
