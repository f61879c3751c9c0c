"""One generation out of parts that several workers sampled, or one worker before and after a pause.

A part ends where its worker died or aborted it. The next part's prompt is the prompt and all that
was sampled; its chunks are told as those of one generation. Nothing is repeated, nothing is lost:
`concat(chunk.output_ids)` is what was sampled, part after part. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    Sampling,
    VersionSpan,
    token_ids,
)
from slime_router.workers.wire import Item, is_constrained, text_rules

_OUTPUT_LISTS = (  # of meta_info, an entry for each output token
    "output_token_logprobs",
    "output_top_logprobs",
    "output_token_ids_logprobs",
)
_INPUT_LISTS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")
_ALL_TEXT = Sampling(keep_stop=True, skip_special_tokens=False)


class TextReader(Protocol):
    """Turns output ids into the text that a worker shows of them, bit by bit."""

    def push(self, ids: Sequence[int], finish: Finish | None) -> str:
        """The text that `ids` add; at the end (`finish`) all that is left."""
        ...


OpenText: TypeAlias = Callable[[Sampling], TextReader]  # by the rules for stops in a Sampling


class Stitch:
    """The parts of one generation so far, and the call for the next.

    Every chunk goes through `take`, which may end it earlier, and then through `told`.
    `is_cumulative` says whether a native stream's items are likely to repeat what the ones before
    said; the first items that show it decide.
    """

    def __init__(
        self, call: GenerateCall, open_text: OpenText, *, is_cumulative: bool | None = None
    ) -> None:
        self.output_ids: list[int] = []  # all that was sampled
        self._call = call
        self._open_text = open_text
        self._is_native = call.native is not None
        self._parts = 0
        self._begin = 0  # of the part that runs now
        self._spans: list[VersionSpan] = []  # of the parts before it
        self._observed: list[VersionSpan] = []  # of this part, as its chunks came
        self._cached_tokens: int | None = None  # of the prompt, as the first worker said it
        self._seam: _Seam | None = None  # where a stop string may span the cut
        self._items = _Items(call, open_text, is_cumulative)

    def __repr__(self) -> str:
        return f"<Stitch {self._parts} parts, {len(self.output_ids)} tokens>"

    @property
    def is_cumulative(self) -> bool | None:
        """Whether native items repeat what the ones before said; None where they did not show."""
        return self._items.is_cumulative

    @property
    def can_go_on(self) -> bool:
        """Whether another worker can sample what is missing: no grammar begins in the middle."""
        return not self.output_ids or not is_constrained(self._call)

    def next_call(self) -> GenerateCall:
        """The call for the next part; each has a rid of its own, the first one the client's."""
        self._spans += self._observed
        self._observed = []
        self._begin = len(self.output_ids)
        self._parts += 1
        if self._parts == 1:
            return self._call
        if self._begin:
            self._seam = _Seam.open(text_rules(self._call).stop, self.output_ids, self._open_text)
        return replace(
            self._call, rid=f"{self._call.rid}~{self._parts}", sampled=token_ids(self.output_ids)
        )

    def start_over(self) -> None:
        """Forgets what was sampled; the client was told none of it."""
        self.output_ids.clear()
        self._spans.clear()
        self._observed.clear()
        self._cached_tokens = None
        self._items = _Items(self._call, self._open_text, self._items.is_cumulative)

    def take(self, chunk: GenerateChunk) -> None:
        """Counts in a chunk of the part that runs.

        It may be cut short and get a finish: a stop string can begin in one part and end in
        another, which no worker sees.
        """
        came_len = len(chunk.output_ids)
        if self._seam is not None and not self._seam.cross(chunk):
            self._seam = None
        if self._is_native and chunk.item is not None:
            self._items.note(chunk, came_len, len(self.output_ids), self._begin)
        self._note_versions(chunk)
        self.output_ids += chunk.output_ids
        if self._cached_tokens is None and came_len:
            self._cached_tokens = chunk.cached_tokens

    def told(self, chunk: GenerateChunk, *, goes_on: bool = False) -> Sequence[GenerateChunk]:
        """The taken chunk as one of the whole generation: what the client is told of it now.

        `goes_on`: it was the last of its part, and another part will follow.
        """
        if goes_on:
            chunk.finish = None
            chunk.weight_versions = ()
            if not chunk.output_ids:
                return ()
        elif self._parts == 1:
            if self._is_native:
                self._items.told_as_it_came(chunk)
            return (chunk,)
        if self._begin:
            self._tell_as_one(chunk)
        if self._is_native and chunk.item is not None:
            return self._items.told(chunk, self.output_ids)
        return (chunk,)

    def aborted(self) -> Sequence[GenerateChunk]:
        """The end of a generation that was aborted while no worker had it, as a worker says it."""
        words = "Aborted" if self.output_ids else "Abort in waiting queue"
        chunk = GenerateChunk(output_ids=[], finish=Finish("abort", message=words))
        chunk.prompt = self._call.prompt
        chunk.item = self._items.last
        self._tell_as_one(chunk)
        if self._is_native and chunk.item is not None:
            return self._items.told(chunk, self.output_ids)
        return (chunk,)

    def _note_versions(self, chunk: GenerateChunk) -> None:
        start = len(self.output_ids)
        end = start + len(chunk.output_ids)
        if chunk.weight_versions:
            self._observed = [
                VersionSpan(
                    span.version, span.start + self._begin, min(span.end + self._begin, end)
                )
                for span in chunk.weight_versions
                if span.start + self._begin < end
            ]
        elif chunk.weight_version is not None and end > start:
            _extend(self._observed, VersionSpan(chunk.weight_version, start, end))

    def _tell_as_one(self, chunk: GenerateChunk) -> None:
        assert self._call.prompt is not None
        chunk.prompt_tokens = len(self._call.prompt.ids)
        chunk.cached_tokens = self._cached_tokens or 0
        if chunk.finish is not None:
            spans: list[VersionSpan] = []
            for span in (*self._spans, *self._observed):
                _extend(spans, span)
            chunk.weight_versions = tuple(spans)


class _Seam:
    """Looks for stop strings that begin before the cut and end behind it."""

    def __init__(self, stops: Sequence[str], reader: TextReader, text: str, reach: int) -> None:
        self._stops = stops
        self._reader = reader
        self._text = text
        self._left = reach  # tokens, of a byte at least each

    @classmethod
    def open(
        cls, stops: Sequence[str], output_ids: Sequence[int], open_text: OpenText
    ) -> _Seam | None:
        reach = max((len(stop.encode()) for stop in stops), default=0)
        if not reach:
            return None
        reader = open_text(_ALL_TEXT)
        return cls(stops, reader, reader.push(output_ids[-reach:], None), reach)

    def cross(self, chunk: GenerateChunk) -> bool:
        """Ends the chunk where a stop string does; whether the next one must be looked at, too."""
        for count, token_id in enumerate(chunk.output_ids, 1):
            self._text += self._reader.push([token_id], None)
            found = next((stop for stop in self._stops if stop in self._text), None)
            if found is not None:
                self._end(chunk, count, found)
                return False
            self._left -= 1
            if not self._left:
                return False
        return chunk.finish is None

    @staticmethod
    def _end(chunk: GenerateChunk, count: int, stop: str) -> None:
        finish = chunk.finish
        is_last = count == len(chunk.output_ids)
        if is_last and finish is not None and isinstance(finish.matched, int):
            return  # a stop token comes before a stop string
        chunk.output_ids = chunk.output_ids[:count]
        chunk.logprobs = chunk.logprobs and chunk.logprobs[:count]
        chunk.top_logprobs = chunk.top_logprobs and chunk.top_logprobs[:count]
        chunk.finish = Finish("stop", stop)


class _Items:
    """A native generation's items: what `/generate` says of several parts as if it were one."""

    def __init__(
        self, call: GenerateCall, open_text: OpenText, expects_cumulative: bool | None
    ) -> None:
        # A whole reply has one item, with everything.
        self.is_cumulative: bool | None = None if call.stream else True
        self.last: Item | None = None
        self._call = call
        self._open_text = open_text
        self._expects_cumulative = expects_cumulative
        self._lists: dict[str, list[Any]] = {}  # of all output tokens
        self._sampled_len = 0  # tokens of the parts before, which the worker had as prompt
        self._told_ids = 0
        self._told_len = 0  # characters, where items do not repeat themselves
        self._reader: TextReader | None = None  # None in the first part: the worker's text is told
        self._text = ""  # all that the reader has read
        self._held: list[tuple[GenerateChunk, int, int]] = []  # with the ends of ids and text

    def note(self, chunk: GenerateChunk, came_len: int, known_len: int, begin: int) -> None:
        """Keeps what the item says of its new tokens, behind `known_len` others.

        The worker sent `came_len` of them, of which a stop string may have cut some off; its part
        begins with token `begin`.
        """
        item = self.last = chunk.item or {}
        self._sampled_len = begin
        new_len = len(chunk.output_ids)
        if self.is_cumulative is None and came_len and known_len > begin:
            self.is_cumulative = len(item.get("output_ids") or ()) > came_len
        meta = item.get("meta_info") or {}
        for name in _OUTPUT_LISTS:
            entries = meta.get(name)
            if entries and new_len:
                end = len(entries) - (came_len - new_len)
                self._lists.setdefault(name, []).extend(entries[end - new_len : end])

    def told_as_it_came(self, chunk: GenerateChunk) -> None:
        """The client is handed the worker's own item."""
        shown = len((chunk.item or {}).get("text") or "")
        self._told_len = shown + (self._told_len if self.is_cumulative is False else 0)
        self._told_ids += len(chunk.output_ids)

    def told(self, chunk: GenerateChunk, output_ids: Sequence[int]) -> Sequence[GenerateChunk]:
        """The chunk with an item of the whole generation, `output_ids`.

        Held back for one more where nothing shows yet whether items repeat the ones before.
        """
        if self._reader is None:
            self._reader = self._open_text(text_rules(self._call))
            known = output_ids[: len(output_ids) - len(chunk.output_ids)]
            self._text = self._reader.push(known, None)
        self._text += self._reader.push(chunk.output_ids, chunk.finish)
        self._held.append((chunk, len(output_ids), len(self._text)))
        if self.is_cumulative is None and self._told_ids:
            if self._expects_cumulative is None and chunk.finish is None:
                return ()
            self.is_cumulative = self._expects_cumulative is not False
        ready, self._held = self._held, []
        for waiting, ids_end, text_end in ready:
            waiting.item = self._item(waiting, output_ids[:ids_end], self._text[:text_end])
        return [waiting for waiting, _, _ in ready]

    def _item(self, chunk: GenerateChunk, ids: Sequence[int], text: str) -> Item:
        """The worker's item with the output so far, or with what is new of it."""
        ids_begin, text_begin = self._told_ids, self._told_len
        if self.is_cumulative:
            ids_begin = text_begin = 0
        self._told_ids, self._told_len = len(ids), max(self._told_len, len(text))
        item = chunk.item or {}
        told: Item = {
            "output_ids": ids[ids_begin:],
            "meta_info": self._meta(item.get("meta_info") or {}, chunk, ids_begin, len(ids)),
        }
        if "text" in item:
            told["text"] = text[text_begin:]
        return {**item, **told}

    def _meta(self, meta: Item, chunk: GenerateChunk, begin: int, end: int) -> Item:
        told = {
            **{name: value for name, value in meta.items() if name != "weight_versions"},
            "id": self._call.rid,
            "finish_reason": _finish_reason(meta.get("finish_reason"), chunk.finish, end),
            "completion_tokens": end,
            **{name: entries[begin:end] for name, entries in self._lists.items()},
        }
        if chunk.prompt_tokens:
            told |= {"prompt_tokens": chunk.prompt_tokens, "cached_tokens": chunk.cached_tokens}
        if "output_token_logprobs_length" in meta:
            told["output_token_logprobs_length"] = end
        if chunk.weight_versions:
            told["weight_versions"] = [
                {"version": span.version, "start": span.start, "end": span.end}
                for span in chunk.weight_versions
            ]
        for name in _INPUT_LISTS:  # the worker had what was sampled before as prompt
            if self._sampled_len and meta.get(name):
                told[name] = meta[name][: -self._sampled_len]
        return told


def _finish_reason(said: Item | None, finish: Finish | None, output_len: int) -> Item | None:
    """What the worker said, where it knew the whole."""
    if finish is None:
        return None
    if said is not None and said.get("type") == finish.type:
        if finish.type == "length":
            return {**said, "length": output_len}
        if finish.matched in (None, said.get("matched")):
            return said
    if finish.type == "abort":
        return {"type": "abort", "message": finish.message, "status_code": None, "err_type": None}
    return {"type": finish.type, "matched": finish.matched}


def _extend(spans: list[VersionSpan], span: VersionSpan) -> None:
    """Appends a span; one that goes on with the version of the last is part of it."""
    last = spans[-1] if spans else None
    if last is not None and (last.version, last.end) == (span.version, span.start):
        spans[-1] = VersionSpan(last.version, last.start, span.end)
    else:
        spans.append(span)
