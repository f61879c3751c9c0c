"""Chunks written as OpenAI chat completions: one body, or a stream of events.

A stream's events are, for each choice: its role, its deltas, its finish; then one event with the
usage where the client asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import orjson

from slime_router.api import sse
from slime_router.api.errors import abort_error, openai_error_object
from slime_router.api.token_ids import TokenNames
from slime_router.errors import RouterError
from slime_router.json_text import one_line
from slime_router.replies.reply import Reply
from slime_router.types import Finish, GenerateChunk, Message, Prompt, ToolDelta, WeightVersion
from slime_router.values import value

LOWEST_LOGPROB = -9999.0  # JSON has no infinity
_TEXT_EVENT = b'%b{"index":%d,"delta":{"content":%b},"finish_reason":null}]}\n\n'


@value(frozen=True, slots=True, kw_only=True)
class ChatStyle:
    """What the reply contains besides the text."""

    model: str
    logprobs: bool = False
    tokens_as_ids: bool | None = None  # None: as the server is set
    token_ids: bool = False
    prompt_token_ids: bool = False
    meta_info: bool = False
    routed_experts: bool = False
    input_ids: bool = False  # in SGLang's own part of the reply, as are the next
    output_ids: bool = False
    usage: bool = False
    running_usage: bool = False
    two_reasonings: bool = False  # also under the name that vLLM and OpenRouter use

    def reasoning(self, text: str | None) -> dict[str, Any]:
        """The keys under which `text` is the reasoning of a message or a delta."""
        if self.two_reasonings:
            return {"reasoning_content": text, "reasoning": text}
        return {"reasoning_content": text}


class Tally:
    """Counts the tokens of a reply: the prompt once, the output of all choices."""

    def __init__(self) -> None:
        self._prompt = 0
        self._cached = 0
        self.completion = 0  # tokens that were sampled
        self._reasoning = 0

    def add(self, chunk: GenerateChunk) -> None:
        """Counts the chunk. Raises RouterError where it says that the worker gave up."""
        self.count(chunk)
        if chunk.finish is not None and chunk.finish.type == "abort":
            raise abort_error(chunk.finish, has_begun=self.completion > 0)

    def count(self, chunk: GenerateChunk) -> None:
        """Counts the chunk, also one that says that the worker gave up."""
        if (
            chunk.prompt is not None
            or chunk.prompt_tokens > self._prompt
            or self._cached < chunk.cached_tokens
        ):
            self.begin(chunk)
        self.completion += len(chunk.output_ids)
        self._reasoning += chunk.reasoning_tokens

    def begin(self, chunk: GenerateChunk) -> None:
        """Counts the prompt alone."""
        prompt_len = len(chunk.prompt.ids) if chunk.prompt is not None else 0
        self._prompt = max(self._prompt, chunk.prompt_tokens, prompt_len)
        self._cached = max(self._cached, chunk.cached_tokens)

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self.completion,
            "total_tokens": self._prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
            "completion_tokens_details": {"reasoning_tokens": self._reasoning},
        }


class ChatStream:
    """One streamed chat completion; `created` in seconds of Unix time."""

    def __init__(self, style: ChatStyle, reply_id: str, created: int, names: TokenNames) -> None:
        self._style = style
        self._id = reply_id
        self._names = names
        self._tally = Tally()
        self._begun: set[int] = set()
        self._calling: set[int] = set()  # choices with a tool call
        self._head = {
            "id": reply_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": style.model,
        }
        self._prompt: Prompt | None = None
        self._ids: dict[int, list[int]] = {}  # by choice, where they are asked for
        self._is_plain = not (style.logprobs or style.token_ids or style.running_usage)
        is_text = self._is_plain and not style.output_ids
        self.text_event = self._text_event if is_text else None
        self._text_head = sse.event({**self._head, "choices": []})[: -len(b"]}\n\n")]

    def events(self, chunk: GenerateChunk) -> Iterable[bytes]:
        """The events of one chunk. Raises RouterError where the worker gave up."""
        index = chunk.sample
        events = []
        if index not in self._begun:
            self._begun.add(index)
            self._prompt = self._prompt or chunk.prompt
            self._tally.begin(chunk)  # a running usage counts no token before its event
            events.append(self._role(index, chunk.prompt))
        self._tally.add(chunk)
        if self._style.output_ids:
            self._ids.setdefault(index, []).extend(chunk.output_ids)
        if self._is_plain:
            if chunk.reasoning:
                events.append(self._piece(index, self._style.reasoning(chunk.reasoning)))
            if chunk.text:  # most events are just this, so only the text is encoded
                text = one_line(orjson.dumps(chunk.text))
                events.append(_TEXT_EVENT % (self._text_head, index, text))
        elif chunk.text or chunk.reasoning or chunk.output_ids:
            events.append(self._delta(index, chunk))
        for call in chunk.tool_calls:
            self._calling.add(index)
            events.append(self._piece(index, {"tool_calls": [_call_delta(call)]}))
        if chunk.finish is not None:
            events.append(self._finish(index, chunk, chunk.finish))
        return events

    def _text_event(self, text: str, tokens: int) -> bytes:
        """Of a single choice."""
        self._tally.completion += tokens
        if not text:
            return b""
        return _TEXT_EVENT % (self._text_head, 0, one_line(orjson.dumps(text)))

    def closing(self) -> Iterable[bytes]:
        """All ids, and the usage, where they are asked for."""
        outputs = [self._ids[index] for index in sorted(self._ids)]
        if extension := _extension(self._style, prompt=self._prompt, outputs=outputs):
            yield sse.event({**self._head, "choices": [], **extension})
        if self._style.usage:
            yield sse.event({**self._head, "choices": [], "usage": self._tally.usage()})

    def failure(self, exc: RouterError) -> bytes:
        """An error after the first byte."""
        return sse.event(openai_error_object(exc))

    def _piece(self, index: int, delta: dict[str, Any]) -> bytes:
        return self._event({"index": index, "delta": delta, "finish_reason": None}, {})

    def _role(self, index: int, prompt: Prompt | None) -> bytes:
        delta = {"role": "assistant", "content": "", **self._style.reasoning(None)}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        extra = {}
        if self._style.prompt_token_ids and prompt is not None:
            extra["prompt_token_ids"] = prompt.ids.tolist()
        return self._event(choice, extra)

    def _delta(self, index: int, chunk: GenerateChunk) -> bytes:
        delta = self._style.reasoning(chunk.reasoning) if chunk.reasoning else {}
        if chunk.text or not chunk.reasoning:
            delta["content"] = chunk.text
        choice: dict[str, Any] = {"index": index, "delta": delta}
        if self._style.logprobs:
            entries = logprob_entries(chunk, self._names)
            choice["logprobs"] = {"content": entries, "refusal": None}
        choice["finish_reason"] = None
        if self._style.token_ids:
            choice["token_ids"] = chunk.output_ids
        return self._event(choice, {})

    def _finish(self, index: int, chunk: GenerateChunk, finish: Finish) -> bytes:
        choice: dict[str, Any] = {
            "index": index,
            "delta": {},
            "logprobs": None,
            **_ending(finish, index in self._calling),
        }
        if self._style.meta_info:
            choice["meta_info"] = _meta_info(chunk.item, self._id)
        return self._event(choice, _extension(self._style, experts=chunk.routed_experts))

    def _event(self, choice: dict[str, Any], extra: dict[str, Any]) -> bytes:
        payload = {**self._head, "choices": [choice], **extra}
        if self._style.running_usage:
            payload["usage"] = self._tally.usage()
        return sse.event(payload)


class _Choice:
    """One choice so far: its reply, and what only this API shows of it.

    Mostly a choice is one chunk, which says all of it: then that is read as it is.
    """

    __slots__ = ("_only", "_reply", "item", "logprobs", "weight_version")

    def __init__(self) -> None:
        self._only: GenerateChunk | None = None
        self._reply: Reply | None = None
        self.logprobs: list[dict[str, Any]] = []
        self.item: dict[str, Any] | None = None  # the worker's last one
        self.weight_version: WeightVersion | None = None

    def add(self, chunk: GenerateChunk) -> None:
        """Takes the next chunk in."""
        if chunk.weight_version is not None:
            self.weight_version = chunk.weight_version
        if chunk.finish is not None:
            self.item = chunk.item
        if self._reply is None:
            if self._only is None and not chunk.tool_calls:
                self._only = chunk
                return
            self._reply = Reply()
            if self._only is not None:
                self._reply.add(self._only)
        self._reply.add(chunk)

    @property
    def said(self) -> Reply | GenerateChunk:
        """What has come: texts, output ids, finish and prompt."""
        return self._reply or self._only or Reply()

    @property
    def calls(self) -> list[Message]:
        """The tool calls in it."""
        return [] if self._reply is None else [c.to_json() for c in self._reply.calls.values()]

    @property
    def experts(self) -> str | None:
        """The routed experts of its tokens, as the worker wrote them."""
        if self._reply is not None:
            return self._reply.experts
        return None if self._only is None else self._only.routed_experts


class ChatBody:
    """One chat completion in one piece: the events of the stream, folded together."""

    def __init__(
        self, style: ChatStyle, reply_id: str, created: int, names: TokenNames, n: int
    ) -> None:
        self._style = style
        self._id = reply_id
        self._created = created
        self._names = names
        self._tally = Tally()
        self._choices = [_Choice() for _ in range(n)]

    def add(self, chunk: GenerateChunk) -> None:
        """Takes a chunk. Raises RouterError where the worker gave up."""
        self._tally.add(chunk)
        choice = self._choices[chunk.sample]
        choice.add(chunk)
        if self._style.logprobs:
            choice.logprobs += logprob_entries(chunk, self._names)

    def body(self) -> bytes:
        """The JSON of the whole reply."""
        first = self._choices[0]
        payload: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._style.model,
            "system_fingerprint": None,
            "service_tier": None,
            "choices": [self._choice(i, choice) for i, choice in enumerate(self._choices)],
            "usage": self._tally.usage(),
            "metadata": _metadata(first.weight_version),
            **_extension(
                self._style,
                experts=first.experts,
                prompt=first.said.prompt,
                outputs=[choice.said.output_ids for choice in self._choices],
            ),
        }
        if self._style.prompt_token_ids and (prompt := first.said.prompt) is not None:
            payload["prompt_token_ids"] = prompt.ids.tolist()
        return orjson.dumps(payload)

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        reply, calls = choice.said, choice.calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": reply.text,
            **self._style.reasoning(reply.reasoning or None),
            "refusal": None,
        }
        if calls:
            if not self._style.meta_info:  # who asks for that reads SGLang's replies: "" there
                message["content"] = message["content"] or None
            message["tool_calls"] = calls
        written: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": None,
            **_ending(reply.finish, bool(calls)),
        }
        if self._style.logprobs:
            written["logprobs"] = {"content": choice.logprobs, "refusal": None}
        if self._style.prompt_token_ids and reply.prompt is not None:
            written["prompt_token_ids"] = reply.prompt.ids.tolist()
        if self._style.token_ids:  # vLLM's name and SGLang's
            written["token_ids"] = written["response_token_ids"] = reply.output_ids
        if self._style.meta_info:
            written["meta_info"] = _meta_info(choice.item, self._id)
        return written


def _ending(finish: Finish | None, has_calls: bool) -> dict[str, Any]:
    """Why a choice ended: if it stopped after tool calls, it ended because of them."""
    if finish is None:
        return {"finish_reason": None, "matched_stop": None}
    if finish.type == "stop" and has_calls:
        return {"finish_reason": "tool_calls", "matched_stop": None}
    return {"finish_reason": finish.type, "matched_stop": finish.matched}


def _call_delta(call: ToolDelta) -> dict[str, Any]:
    """A piece of a call: an index always, id and name on the first only."""
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def logprob_entries(chunk: GenerateChunk, names: TokenNames) -> list[dict[str, Any]]:
    """OpenAI's logprob objects, one for each output id."""
    logprobs = chunk.logprobs if chunk.logprobs is not None else repeat(None)
    tops = chunk.top_logprobs if chunk.top_logprobs is not None else repeat([])
    return [
        {
            **_token(names, token_id, logprob),
            "top_logprobs": [_token(names, other, value) for value, other in top],
        }
        for token_id, logprob, top in zip(chunk.output_ids, logprobs, tops, strict=False)
    ]


def _token(names: TokenNames, token_id: int, logprob: float | None) -> dict[str, Any]:
    """The token's true bytes; they need not be whole characters, so its text may be lossy."""
    is_known = logprob is not None and logprob > LOWEST_LOGPROB
    return {
        "token": names.text(token_id),
        "bytes": list(names.bytes_of(token_id)),
        "logprob": logprob if is_known else LOWEST_LOGPROB,
    }


def _metadata(version: WeightVersion | None) -> dict[str, str]:
    """OpenAI's metadata, whose values are strings."""
    return {} if version is None else {"weight_version": str(version)}


def _meta_info(item: dict[str, Any] | None, reply_id: str) -> Any:
    """The worker's own, which knows the reply by another name."""
    meta = None if item is None else item.get("meta_info")
    return {**meta, "id": reply_id} if isinstance(meta, dict) and "id" in meta else meta


def _extension(
    style: ChatStyle,
    *,
    experts: str | None = None,
    prompt: Prompt | None = None,
    outputs: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """SGLang's own part of a chat reply, as far as it is asked for; `outputs` by choice."""
    part: dict[str, Any] = {}
    if experts is not None and style.routed_experts:
        part["routed_experts"] = experts
    if prompt is not None and style.input_ids:
        part["input_ids"] = prompt.ids.tolist()
    if outputs and style.output_ids:
        part["output_ids"] = outputs
    return {"sglext": part} if part else {}
