"""The reply of one generation: everything that its chunks have given so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from slime_router.types import (
    Finish,
    GenerateChunk,
    Message,
    Prompt,
    Receipt,
    TokenIds,
    VersionSpan,
    WeightVersion,
    token_ids,
)


@dataclass(slots=True)
class ToolCall:
    """A tool call as far as it has come; `arguments` is JSON text."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def to_json(self) -> Message:
        """The call as it stands in a message."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(slots=True)
class Reply:
    """One entry in `logprobs` for each of `output_ids`, as long as `has_logprobs`."""

    prompt: Prompt | None = None  # of the first chunk
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    has_logprobs: bool = True
    calls: dict[int, ToolCall] = field(default_factory=dict)
    handles: list[str] = field(default_factory=list)  # ids of calls that no other turn has
    hidden_calls: int = 0
    receipt: Receipt | None = None  # where it says more than the prompt's
    finish: Finish | None = None
    experts: str | None = None  # base64 of int32; they come with the finish
    experts_start: int = 0
    version: WeightVersion | None = None  # of the tokens that came last
    _texts: list[str] = field(default_factory=list)
    _observed: list[tuple[WeightVersion | None, int]] = field(default_factory=list)  # from where on
    _exact: tuple[VersionSpan, ...] = ()  # as the worker says it
    _output: TokenIds | None = None

    def add(self, chunk: GenerateChunk) -> None:
        """Takes the next chunk in; none comes after the one with `finish`."""
        if self.prompt is None:
            self.prompt = chunk.prompt
        ids, logprobs = chunk.output_ids, chunk.logprobs
        if ids:
            if chunk.weight_version != self.version:
                self.version = chunk.weight_version
                self._observed.append((self.version, len(self.output_ids)))
            self.output_ids += ids
            if logprobs is None:
                self.has_logprobs = False
        if logprobs:
            self.logprobs += logprobs
        if chunk.text:
            self._texts.append(chunk.text)
        if chunk.tool_calls:
            self._add_calls(chunk)
        if chunk.hidden_calls:
            self.hidden_calls += chunk.hidden_calls
        if chunk.weight_versions:
            self._exact = chunk.weight_versions
        if chunk.finish is not None:
            self.finish = chunk.finish
            self.experts, self.experts_start = chunk.routed_experts, chunk.routed_experts_start

    @property
    def has_begun(self) -> bool:
        """Whether a chunk has come; the first one has the prompt."""
        return self.prompt is not None

    def _add_calls(self, chunk: GenerateChunk) -> None:
        for delta in chunk.tool_calls:
            call = self.calls.setdefault(delta.index, ToolCall())
            call.id += delta.id or ""
            call.name += delta.name or ""
            call.arguments += delta.arguments
            if delta.id and delta.has_random_id:
                self.handles.append(delta.id)

    @property
    def text(self) -> str:
        """The content that a client sees; no reasoning and no calls."""
        return "".join(self._texts)

    @property
    def output(self) -> TokenIds:
        """All output ids, shape `[tokens]`; one array for everybody once the reply has finished."""
        if self._output is None or len(self._output) != len(self.output_ids):
            self._output = token_ids(self.output_ids)
        return self._output

    @property
    def weight_versions(self) -> tuple[VersionSpan, ...]:
        """Which weights sampled the tokens, as far as the worker said it."""
        ends = [*(start for _, start in self._observed[1:]), len(self.output_ids)]
        return self._exact or tuple(
            VersionSpan(version, start, end)
            for (version, start), end in zip(self._observed, ends, strict=False)
            if version is not None
        )

    def message(self, prefix: str = "") -> Message:
        """The reply as a client has it, without its reasoning; `prefix` is what it wrote itself."""
        message: Message = {"role": "assistant", "content": prefix + self.text}
        if self.calls:
            message["tool_calls"] = [call.to_json() for call in self.calls.values()]
        return message

    def note(self, words: str) -> Receipt | None:
        """Adds a note to the receipt, and returns that; None before the first chunk."""
        if self.prompt is not None:
            receipt = self.receipt or self.prompt.receipt
            self.receipt = replace(receipt, notes=(*receipt.notes, words))
        return self.receipt
