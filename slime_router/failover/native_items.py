"""The items of a native generation (`/generate`): several parts, presented as one.

Items of the first part are passed on unchanged. From the first cut on, each is rewritten: its text,
ids and lists cover all output or only what is new, just as the worker's own items did. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from slime_router.engine.answer import Item
from slime_router.engine.request import text_rules
from slime_router.types import Finish, GenerateCall, GenerateChunk, Sampling

_OUTPUT_LISTS = (  # of meta_info, with one entry per output token
    "output_token_logprobs",
    "output_top_logprobs",
    "output_token_ids_logprobs",
    "output_token_sampling_mask",
    "output_token_sampling_logprobs",
)
_LENGTHS = ("output_token_logprobs_length", "output_token_sampling_mask_length")
_INPUT_LISTS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")


class TextReader(Protocol):
    """Incrementally turns output ids into the text that a worker would show for them."""

    def push(self, ids: Sequence[int], finish: Finish | None) -> str:
        """The text that `ids` add; at the end (`finish`), everything left."""
        ...


OpenText: TypeAlias = Callable[[Sampling], TextReader]  # by the text rules in a Sampling


class Items:
    """Writes the client's items of one generation, one by one.

    `expects_cumulative`: whether the items of a stream are likely to repeat earlier output; the
    first items that show it decide.
    """

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
        self._sampled_len = 0  # tokens of earlier parts, which the worker got as prompt
        self._emitted_ids = 0
        self._emitted_len = 0  # characters, if items do not repeat earlier output
        self._reader: TextReader | None = None  # None in the first part: the worker's text is used
        self._text = ""  # everything the reader has returned
        self._held: list[tuple[GenerateChunk, int, int]] = []  # with the ends of ids and text

    def note(self, chunk: GenerateChunk, came_len: int, known_len: int, begin: int) -> None:
        """Keeps the item's data on its new tokens, which follow `known_len` others.

        The worker sent `came_len` new tokens, some of which a stop string may have cut off; its
        part starts at token `begin`.
        """
        assert chunk.item is not None
        item = self.last = chunk.item
        self._sampled_len = begin
        new_len = len(chunk.output_ids)
        if self.is_cumulative is None and came_len and known_len > begin:
            self.is_cumulative = len(item.get("output_ids") or ()) > came_len
        meta = item["meta_info"]
        for name in _OUTPUT_LISTS:
            entries = meta.get(name)
            if entries and new_len:
                end = len(entries) - (came_len - new_len)
                self._lists.setdefault(name, []).extend(entries[end - new_len : end])

    def emit_unchanged(self, chunk: GenerateChunk) -> None:
        """Passes the worker's own item to the client."""
        shown = len((chunk.item or {}).get("text") or "")
        self._emitted_len = shown + (self._emitted_len if self.is_cumulative is False else 0)
        self._emitted_ids += len(chunk.output_ids)

    def emit(self, chunk: GenerateChunk, output_ids: Sequence[int]) -> Sequence[GenerateChunk]:
        """The chunk with an item of the whole generation, `output_ids`.

        Held back until the next chunk if it is still unknown whether items repeat earlier output.
        """
        if self._reader is None:
            self._reader = self._open_text(text_rules(self._call))
            known = output_ids[: len(output_ids) - len(chunk.output_ids)]
            self._text = self._reader.push(known, None)
        self._text += self._reader.push(chunk.output_ids, chunk.finish)
        self._held.append((chunk, len(output_ids), len(self._text)))
        if self.is_cumulative is None and self._emitted_ids:
            if self._expects_cumulative is None and chunk.finish is None:
                return ()
            self.is_cumulative = self._expects_cumulative is not False
        ready, self._held = self._held, []
        return [
            waiting._replace(item=self._item(waiting, output_ids[:ids_end], self._text[:text_end]))
            for waiting, ids_end, text_end in ready
        ]

    def _item(self, chunk: GenerateChunk, ids: Sequence[int], text: str) -> Item:
        """The worker's item with all output so far, or only the new part of it."""
        ids_begin, text_begin = self._emitted_ids, self._emitted_len
        if self.is_cumulative:
            ids_begin = text_begin = 0
        self._emitted_ids, self._emitted_len = len(ids), max(self._emitted_len, len(text))
        item = chunk.item
        assert item is not None
        fields: Item = {
            "output_ids": ids[ids_begin:],
            "meta_info": self._meta(item["meta_info"], chunk, ids_begin, len(ids)),
        }
        if "text" in item:
            fields["text"] = text[text_begin:]
        return {**item, **fields}

    def _meta(self, meta: Item, chunk: GenerateChunk, begin: int, end: int) -> Item:
        fields = {
            **{name: value for name, value in meta.items() if name != "weight_versions"},
            "id": self._call.rid,
            "finish_reason": finish_reason(meta.get("finish_reason"), chunk.finish, end),
            "completion_tokens": end,
            **{name: entries[begin:end] for name, entries in self._lists.items()},
        }
        if chunk.prompt_tokens:
            fields |= {"prompt_tokens": chunk.prompt_tokens, "cached_tokens": chunk.cached_tokens}
        fields |= dict.fromkeys((name for name in _LENGTHS if name in meta), end)
        if chunk.weight_versions:
            fields["weight_versions"] = [
                {"version": span.version, "start": span.start, "end": span.end}
                for span in chunk.weight_versions
            ]
        for name in _INPUT_LISTS:  # the worker got what was sampled before as prompt
            if self._sampled_len and meta.get(name):
                fields[name] = meta[name][: -self._sampled_len]
        return fields


def finish_reason(said: Item | None, finish: Finish | None, output_len: int) -> Item | None:
    """The worker's own reason, if it saw the whole generation."""
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
