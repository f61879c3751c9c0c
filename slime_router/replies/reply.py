"""The reply of one generation: everything that its chunks have given so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slime_router.template.conversation_key import THINK, THOUGHT
from slime_router.types import (
    Finish,
    GenerateChunk,
    Message,
    Prompt,
    Receipt,
    Speculation,
    TokenIds,
    VersionSpan,
    WeightVersion,
    token_ids,
)
from slime_router.values import replace


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


class Versions:
    """Which weights sampled the tokens of a reply, as far as its workers said it.

    A reply has one part, or several where other workers went on with it. Of each part its worker
    names the version with every chunk, or gives exact spans, counted from the start of the part.
    """

    __slots__ = ("_begin", "_earlier", "_exact", "_runs", "last")

    def __init__(self) -> None:
        self.last: WeightVersion | None = None  # of the tokens that came last
        self._earlier: tuple[VersionSpan, ...] = ()  # of the parts before
        self._begin = 0  # of the current part
        self._runs: list[tuple[WeightVersion | None, int]] = []  # version, and from where on
        self._exact: tuple[VersionSpan, ...] = ()

    def add(self, chunk: GenerateChunk, start: int) -> None:
        """Takes in the chunk whose first token is at `start`.

        One without spans whose version is `last` changes nothing: no need to call this.
        """
        if chunk.weight_version != self.last and chunk.output_ids:
            self.last = chunk.weight_version
            self._runs.append((self.last, start))
        if chunk.weight_versions:
            self._exact = chunk.weight_versions

    def begin_part(self, start: int) -> None:
        """Another worker goes on at `start`."""
        self._earlier = self.spans(start)
        self._begin, self.last, self._runs, self._exact = start, None, [], ()

    def spans(self, end: int) -> tuple[VersionSpan, ...]:
        """The spans of `end` tokens, in order, none of them empty; unnamed weights have none."""
        if not self._exact and not self._earlier and len(self._runs) == 1:  # mostly
            [(version, start)] = self._runs
            if version is None or start >= end:
                return ()
            return (VersionSpan(version, start, end),)
        found = list(self._earlier)
        for version, start, stop in self._of_part(end):
            if version is None or start >= stop:
                continue
            last = found[-1] if found else None
            if last is not None and (last.version, last.end) == (version, start):
                found[-1] = VersionSpan(version, last.start, stop)
            else:
                found.append(VersionSpan(version, start, stop))
        return tuple(found)

    def _of_part(self, end: int) -> Iterator[tuple[WeightVersion | None, int, int]]:
        if self._exact:
            begin = self._begin
            for span in self._exact:
                yield span.version, begin + span.start, min(begin + span.end, end)
            return
        ends = [*(start for _, start in self._runs[1:]), end]
        for (version, start), stop in zip(self._runs, ends, strict=False):
            yield version, start, stop


class Masks:
    """What the tokens of a reply were sampled from, as it comes; some may have no mask.

    `lengths` has one entry per token, `ids` those of all masks, `logprobs` each token's own.
    """

    __slots__ = ("ids", "lengths", "logprobs")

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.ids: list[int] = []
        self.logprobs: list[float] = []

    def add(self, start: int, masks: Sequence[Sequence[int]], logprobs: Sequence[float]) -> None:
        """Add the masks from token `start` on; earlier tokens without one get an empty mask."""
        self.fill(start)
        for mask in masks:
            self.lengths.append(len(mask))
            self.ids += mask
        self.logprobs += logprobs

    def fill(self, count: int) -> None:
        """Empty masks for those of the first `count` tokens that have none."""
        missing = count - len(self.lengths)
        self.lengths += [0] * missing
        self.logprobs += [float("nan")] * missing


class Tops:
    """The likeliest tokens at each token of a reply, as they come; some may have none."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens: list[Sequence[tuple[float, int]]] = []

    def add(self, start: int, tokens: Sequence[Sequence[tuple[float, int]]]) -> None:
        """Add the likeliest tokens from `start` on; earlier tokens without any get none."""
        self.fill(start)
        self.tokens += tokens

    def fill(self, count: int) -> None:
        """None for those of the first `count` tokens that have not got any."""
        self.tokens += [()] * (count - len(self.tokens))


class Reply:
    """One entry in `logprobs` for each of `output_ids`, as long as `has_logprobs`."""

    def __init__(self) -> None:  # written out: that of a dataclass takes twice as long
        self.prompt: Prompt | None = None  # of the first chunk
        self.output_ids: list[int] = []
        self.logprobs: list[float | None] = []
        self.has_logprobs = True
        self.calls: dict[int, ToolCall] = {}
        self.handles: list[str] = []  # ids of calls that no other turn has
        self.hidden_calls = 0
        self.receipt: Receipt | None = None  # where it says more than the prompt's
        self.unheld = ""  # why its tokens may not be held
        self.pictures: tuple[tuple[int, str], ...] = ()  # of the prompt: where, and which
        self.finish: Finish | None = None
        self.experts: str | None = None  # base64 of int32; they come with the finish
        self.experts_start = 0
        self.indexer: str | None = None  # likewise, what an indexer chose
        self.masks: Masks | None = None  # what the tokens were sampled from, once a worker says it
        self.tops: Tops | None = None  # likewise
        # Why some that were sampled from a part of the vocabulary have no mask.
        self.uncaptured = ""
        self.speculation: Speculation | None = None  # comes with the finish
        self.versions = Versions()
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._output: TokenIds | None = None

    def add(self, chunk: GenerateChunk) -> None:
        """Takes the next chunk in; none comes after the one with `finish`."""
        if self.prompt is None:
            self.prompt = chunk.prompt
        ids, logprobs = chunk.output_ids, chunk.logprobs
        if chunk.weight_version != self.versions.last or chunk.weight_versions:
            self.versions.add(chunk, len(self.output_ids))
        if chunk.masks is not None and chunk.mask_logprobs is not None:
            self.masks = self.masks or Masks()
            self.masks.add(len(self.output_ids), chunk.masks, chunk.mask_logprobs)
        if chunk.top_logprobs is not None:
            self.tops = self.tops or Tops()
            self.tops.add(len(self.output_ids), chunk.top_logprobs)
        if ids:
            self.output_ids += ids
            if chunk.uncaptured:
                self.uncaptured = chunk.uncaptured
            if logprobs is None:
                self.has_logprobs = False
        if logprobs:
            self.logprobs += logprobs
        if chunk.text:
            self._texts.append(chunk.text)
        if chunk.reasoning:
            self._thoughts.append(chunk.reasoning)
        if chunk.tool_calls:
            self._add_calls(chunk)
        if chunk.hidden_calls:
            self.hidden_calls += chunk.hidden_calls
        if chunk.finish is not None:
            self.finish = chunk.finish
            self.experts, self.experts_start = chunk.routed_experts, chunk.routed_experts_start
            self.indexer = chunk.indexer_topk
            self.speculation = chunk.speculation

    def add_text(self, ids: list[int], logprobs: list[float] | None, text: str) -> None:
        """Takes in a chunk that differs from the one before only in its tokens and their text."""
        self.output_ids += ids
        if logprobs is not None:
            self.logprobs += logprobs
        else:
            self.has_logprobs = False
        if text:
            self._texts.append(text)

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
    def reasoning(self) -> str:
        """What was separated from the content as reasoning."""
        return "".join(self._thoughts)

    @property
    def output(self) -> TokenIds:
        """All output ids, shape `[tokens]`; one array for everybody once the reply has finished."""
        if self._output is None or len(self._output) != len(self.output_ids):
            self._output = token_ids(self.output_ids)
        return self._output

    @property
    def weight_versions(self) -> tuple[VersionSpan, ...]:
        """Which weights sampled the tokens, as far as the worker said it."""
        return self.versions.spans(len(self.output_ids))

    def message(self, prefix: str = "") -> Message:
        """The reply as a client has it, without its reasoning; `prefix` is what it wrote itself.

        Where that has opened a thought, the reasoning goes on in it.
        """
        if self.reasoning and prefix.rfind(THINK) > prefix.rfind(THOUGHT):
            prefix += self.reasoning + (THOUGHT if self.text or self.calls else "")
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
