"""One generation out of parts that several workers sampled, or one worker before and after a pause.

A part ends where its worker died or aborted it. The next part's prompt is the prompt and all that
was sampled; its chunks are told as those of one generation. Nothing is repeated, nothing is lost:
`concat(chunk.output_ids)` is what was sampled, part after part. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    Sampling,
    VersionSpan,
    token_ids,
)
from slime_router.workers.wire import Item, is_constrained, text_rules

# What the worker shows of output ids, by the rules in a Sampling; a Finish makes it the whole.
ReadText: TypeAlias = Callable[[Sampling, Sequence[int], Finish | None], str]

_LISTS = (  # of meta_info, an entry for each output token
    "output_token_logprobs",
    "output_top_logprobs",
    "output_token_ids_logprobs",
)
_ALL_TEXT = Sampling(keep_stop=True, skip_special_tokens=False)


class Stitch:
    """The parts of one generation so far, and the call for the next.

    `is_cumulative`: whether each item of a native stream repeats what the ones before said, as
    far as is known; the items of this stream tell better.
    """

    def __init__(
        self, call: GenerateCall, read_text: ReadText, *, is_cumulative: bool = True
    ) -> None:
        self._call = call
        self._read_text = read_text
        self._parts = 0
        self._ids: list[int] = []
        self._begin = 0  # of the part that runs now
        self._spans: list[VersionSpan] = []  # of the parts before it
        self._observed: list[VersionSpan] = []  # of this part, as its chunks came
        self._cached_tokens: int | None = None
        self._lists: dict[str, list[Any]] = {}
        self._is_cumulative = is_cumulative

    def __repr__(self) -> str:
        return f"<Stitch {self._parts} parts, {len(self._ids)} tokens>"

    @property
    def output_ids(self) -> list[int]:
        """All that was sampled."""
        return self._ids

    @property
    def is_cumulative(self) -> bool:
        """Whether items repeat what the ones before said."""
        return self._is_cumulative

    @property
    def can_go_on(self) -> bool:
        """Whether another worker can sample what is missing."""
        return not self._ids or not is_constrained(self._call)

    def next_call(self) -> GenerateCall:
        """The call for the next part; each has a rid of its own, the first one the client's."""
        self._spans += self._observed
        self._observed = []
        self._begin = len(self._ids)
        self._parts += 1
        if self._parts == 1:
            return self._call
        return replace(
            self._call,
            rid=f"{self._call.rid}~{self._parts}",
            sampled=token_ids(self._ids),
        )

    def start_over(self) -> None:
        """Forgets what was sampled; the client was told none of it."""
        self._ids, self._spans, self._observed = [], [], []
        self._lists.clear()

    def take(self, chunk: GenerateChunk) -> GenerateChunk:
        """A chunk of the part that runs, as one of the whole generation.

        It may get a finish: a stop string can begin in one part and end in another, which no
        worker sees.
        """
        is_later = self._begin > 0
        came_len = len(chunk.output_ids)
        if is_later and chunk.finish is None:
            self._find_stop(chunk)
        if self._call.native is not None:
            self._note_lists(chunk, came_len - len(chunk.output_ids))
        self._note_versions(chunk)
        self._ids += chunk.output_ids
        if self._cached_tokens is None:
            self._cached_tokens = chunk.cached_tokens
        if is_later:
            self._tell_as_one(chunk)
        if self._parts > 1 and chunk.item is not None and self._call.native is not None:
            chunk.item = self._item(chunk, chunk.item)
        return chunk

    def without_end(self, chunk: GenerateChunk) -> GenerateChunk:
        """The taken last chunk of a part that another will follow."""
        chunk.finish = None
        chunk.weight_versions = ()
        if chunk.item is not None:
            meta = {**chunk.item["meta_info"], "finish_reason": None}
            chunk.item = {**chunk.item, "meta_info": meta}
        return chunk

    def _find_stop(self, chunk: GenerateChunk) -> None:
        rules = text_rules(self._call)
        reach = max((len(stop.encode()) for stop in rules.stop), default=0)
        if len(self._ids) - self._begin >= reach:
            return
        before = self._ids[self._begin - reach if self._begin > reach else 0 :]
        for count in range(1, len(chunk.output_ids) + 1):
            text = self._read_text(_ALL_TEXT, [*before, *chunk.output_ids[:count]], None)
            found = next((stop for stop in rules.stop if stop in text), None)
            if found is not None:
                chunk.output_ids = chunk.output_ids[:count]
                chunk.logprobs = chunk.logprobs and chunk.logprobs[:count]
                chunk.top_logprobs = chunk.top_logprobs and chunk.top_logprobs[:count]
                chunk.finish = Finish("stop", found)
                return

    def _note_versions(self, chunk: GenerateChunk) -> None:
        start = len(self._ids)
        if chunk.weight_versions:
            self._observed = [
                VersionSpan(span.version, span.start + self._begin, span.end + self._begin)
                for span in chunk.weight_versions
            ]
        elif chunk.weight_version is not None and chunk.output_ids:
            end, last = start + len(chunk.output_ids), None
            if self._observed:
                last = self._observed[-1]
            if last is not None and (last.version, last.end) == (chunk.weight_version, start):
                self._observed[-1] = VersionSpan(last.version, last.start, end)
            else:
                self._observed.append(VersionSpan(chunk.weight_version, start, end))

    def _note_lists(self, chunk: GenerateChunk, cut_len: int) -> None:
        """Keeps the entries of the chunk's tokens; those of `cut_len` more stand behind them."""
        item = chunk.item or {}
        new_len = len(chunk.output_ids)
        if len(self._ids) > self._begin and new_len:  # in a part's first item both are the same
            self._is_cumulative = len(item.get("output_ids") or ()) > new_len + cut_len
        for name in _LISTS:
            entries = item.get("meta_info", {}).get(name)
            if entries and new_len:
                end = len(entries) - cut_len
                self._lists.setdefault(name, []).extend(entries[end - new_len : end])

    def _tell_as_one(self, chunk: GenerateChunk) -> None:
        assert self._call.prompt is not None
        chunk.prompt_tokens = len(self._call.prompt.ids)
        chunk.cached_tokens = self._cached_tokens or 0
        if chunk.finish is not None:
            chunk.weight_versions = (*self._spans, *self._observed)

    def _item(self, chunk: GenerateChunk, item: Item) -> Item:
        """The worker's item with the whole output, or with what is new of it."""
        new_len = len(chunk.output_ids)
        rules = text_rules(self._call)
        text = self._read_text(rules, self._ids, chunk.finish)
        begin = 0 if self._is_cumulative else len(self._ids) - new_len
        shown = self._read_text(rules, self._ids[:begin], None) if begin else ""
        meta = {
            **item["meta_info"],
            "id": self._call.rid,
            "completion_tokens": len(self._ids),
            "prompt_tokens": chunk.prompt_tokens,
            "cached_tokens": chunk.cached_tokens,
            **{name: entries[begin:] for name, entries in self._lists.items()},
        }
        if "output_token_logprobs_length" in meta:
            meta["output_token_logprobs_length"] = len(self._ids)
        if chunk.weight_versions:
            meta["weight_versions"] = [
                {"version": span.version, "start": span.start, "end": span.end}
                for span in chunk.weight_versions
            ]
        if chunk.finish is not None and meta.get("finish_reason") is None:
            meta["finish_reason"] = {"type": "stop", "matched": chunk.finish.matched}
        return {
            **item,
            "text": text[len(shown) :],
            "output_ids": self._ids[begin:],
            "meta_info": meta,
        }
