"""Turns a worker's JSON items of a generation into chunks. Pure: bytes in, values out.

For every stream, however the worker splits it and whether or not it repeats itself:
`concat(chunk.output_ids) == the ids that were sampled`, with a logprob for each if requested.
All tokens of a chunk have one weight version, unless the worker gives exact spans.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from slime_router.engine import answer
from slime_router.engine.answer import Item
from slime_router.engine.cumulative import (
    CumulativeCutter,
    has_spans,
    names_other,
    names_version,
    repeats_all,
)
from slime_router.engine.masks import LOGPROBS, MASK, NO_MASKS, MaskPlan, without_masks
from slime_router.engine.request import read_error
from slime_router.engine.scores import check_prompt
from slime_router.engine.sse import DONE
from slime_router.engine.top_logprobs import NO_TOPS, TopPlan
from slime_router.engine.wire.joined import together
from slime_router.engine.wire.plain_items import PlainItems, Tokens, grows
from slime_router.errors import MasksRefused, RouterError, WorkerFailed
from slime_router.types import GenerateChunk, TokenIds, WeightVersion

_NO_ITEMS = (b"", DONE)


class ChunkReader:
    """Turns the payloads of one answer into chunks of what is new.

    Workers either repeat all output in each item (cumulative) or send only what is new
    (incremental). The items show which: `completion_tokens` counts all output either way, so
    `len(output_ids)` equals either the count or its growth. For the first item both are true.

    A whole reply names its version only at its end. If the worker got new weights since the
    request, that one would be wrong without spans: `sampled_under` gives the version to believe.
    Anything else the router knows is older than what the worker reports.
    `masks` says whether the worker was asked what it samples from, `tops` the same of the likeliest
    tokens. `experts_start` is the position from which routed experts were requested, ids are in
    `[0, vocab_size)`, and there are at most `max_len` of them.
    `scored` is the prompt, where the logprobs of its tokens were asked for. `shows_items`: a client
    of chat gets a part of the last item, so each is read whole.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        with_logprobs: bool,
        max_len: int | None = None,
        scored: TokenIds | None = None,
        is_native: bool = False,
        shows_items: bool = False,
        is_stream: bool = True,
        sampled_under: Callable[[WeightVersion], WeightVersion] = lambda named: named,
        experts_start: int = 0,
        masks: MaskPlan = NO_MASKS,
        tops: TopPlan = NO_TOPS,
        worker_url: str = "",
        is_anothers: Callable[[object], bool] = lambda _: False,
    ) -> None:
        self.is_finished = False
        self.failure: RouterError | None = None  # after the chunks that were returned last
        self.weight_version: WeightVersion | None = None  # as the worker reported it last
        self._vocab_size = vocab_size
        self._max_len = sys.maxsize if max_len is None else max_len
        self._scored = scored
        self._is_stream = is_stream
        self._sampled_under = sampled_under
        self._experts_start = experts_start
        self._worker_url = worker_url
        self._is_anothers = is_anothers  # whether an id is that of another generation
        self._masks = masks
        self._uncaptured = masks.uncaptured
        self._with_logprobs = with_logprobs
        self._tops = tops
        self._is_native = is_native
        self._shows_items = is_native or shows_items
        self._is_cumulative: bool | None = None  # None until an item shows it
        self._ids: list[int] = []  # all that came
        self._entries: list[Any] = []  # the logprobs of the last item
        self._may_be_plain = is_stream and not self._shows_items and not tops.asked
        self._first: tuple[Item, Item, GenerateChunk] | None = None  # item, its meta_info, chunk
        self._plain_items: PlainItems | None = None  # once an item has shown what they look like
        self._cutter: CumulativeCutter | None = None  # of a stream that has shown it needs one
        self._is_incremental = False  # and its plain items can be read at once

    def feed(self, payloads: Sequence[bytes]) -> list[GenerateChunk]:
        """The chunks in `payloads`, what came in one read.

        They are one chunk, as far as they can be: it costs the layers above only one step. A client
        of /generate gets every item by itself, as the worker wrote it.

        Raises:
            WorkerRefused: the worker refuses the request inside its stream.
            WorkerFailed: an item cannot be read, or contradicts itself or earlier items. If there
                are chunks before it, these are returned, and it is kept as `failure`.
        """
        if self._is_incremental and (plain := self.plain(payloads)) is not None:
            return [plain]
        chunks: list[GenerateChunk] = []
        try:
            for index, payload in enumerate(payloads):
                if self.is_finished or self.failure is not None:
                    break
                if payload in _NO_ITEMS:
                    continue
                if self._is_cumulative and not self._shows_items:
                    rest = [each for each in payloads[index:] if each not in _NO_ITEMS]
                    self._read_newest(rest, chunks)
                    break
                item = answer.load_item(payload)
                plain = self._plain(item) if self._is_incremental else None
                chunks.append(self._chunk(item, payload) if plain is None else plain)
                if self._cutter is not None:  # this item has shown that the next ones repeat it
                    self._cutter.cut(payload)
        except RouterError as exc:
            if not chunks:
                raise
            self.failure = exc
            self._plain_items = None
        return chunks if len(chunks) < 2 or self._shows_items else together(chunks)

    def plain(self, payloads: Sequence[bytes]) -> GenerateChunk | None:
        """The chunk of plain items in the middle of a stream; None, and nothing is read, else."""
        known_len = len(self._ids)
        chunk: GenerateChunk | None = None
        try:
            if self._is_incremental or (self._is_cumulative is None and self._first is not None):
                chunk = self._new_run([*map(orjson.loads, payloads)])
            elif self._is_cumulative and payloads and not self._may_hide_weights(payloads):
                chunk = self._new_part(payloads[-1])
        except (ValueError, WorkerFailed):  # it is read, or refused, step by step
            chunk = None
        if chunk is None:
            del self._ids[known_len:]
        return chunk

    def _new_run(self, items: Sequence[Any]) -> GenerateChunk | None:
        """The chunk of plain items that hold what is new; None where some are not."""
        if set(map(type, items)) != {dict}:
            return None
        if not self._is_incremental and self._first is not None:  # the second may show that it is
            if self._masks.asks or not grows(items[0], len(self._ids)):
                return None
            self._note_plain(*self._first)
        if self._masks.asks:
            chunks = [chunk for chunk in map(self._plain, items) if chunk is not None]
            return together(chunks)[0] if len(chunks) == len(items) else None
        known = self._plain_items
        tokens = None if known is None else known.run(items, len(self._ids))
        if tokens is None:
            return None
        self._is_incremental, self._is_cumulative = True, False
        self._ids += tokens[0]
        return self.chunk_of(*tokens)

    def tokens(self, payload: bytes) -> Tokens | None:
        """The tokens of a plain item, an object; None, and nothing is read, for any other.

        Nor are tokens read here that come with what they were sampled from.
        """
        plain_items, cutter = self._plain_items, self._cutter
        if plain_items is None or self._masks.asks:
            return None
        try:
            item = orjson.loads(payload if cutter is None else cutter.cut(payload) or b"{}")
        except ValueError:  # it is read, or refused, step by step
            return None
        tokens = plain_items.tokens(item, len(self._ids))
        if tokens is None or not tokens[0]:
            return None
        self._ids += tokens[0]
        return tokens

    def take_back(self, count: int) -> None:
        """The last tokens, which were plain, are to be read again."""
        del self._ids[len(self._ids) - count :]

    def _read_newest(self, payloads: Sequence[bytes], chunks: list[GenerateChunk]) -> None:
        """Each item repeats the ones before: read only the last, as parsing is expensive."""
        hides_weights = self._may_hide_weights(payloads)
        chunk = self._new_part(payloads[-1])
        if chunk is not None and not hides_weights:
            chunks.append(chunk)
            return
        if chunk is not None:
            self.take_back(len(chunk.output_ids))
        newest = answer.load_item(payloads[-1])
        before = payloads[:0] if repeats_all(newest) else payloads[-2:-1]
        is_newer = names_other(newest, self.weight_version)
        if not has_spans(newest) and (hides_weights or is_newer):
            before = payloads[:-1]  # only these show which tokens other weights sampled
        chunks.extend(self._chunk(answer.load_item(payload), payload) for payload in before)
        chunks.append(self._chunk(newest, payloads[-1]))

    def _may_hide_weights(self, payloads: Sequence[bytes]) -> bool:
        """Whether items before the newest may name other weights than those that are known."""
        return len(payloads) > 1 and not all(
            names_version(payload, self.weight_version, self._cutter.ids_end if self._cutter else 0)
            for payload in payloads[:-1]
        )

    def _new_part(self, payload: bytes) -> GenerateChunk | None:
        """The chunk of a cumulative item, parsing only its new entries.

        None for anything but a plain item in the middle of a stream.
        """
        new = self._cutter.cut(payload) if self._cutter is not None else None
        return None if new is None else self._plain(answer.load_item(new))

    def _plain(self, item: Item) -> GenerateChunk | None:
        """The chunk of a plain item; None for any other."""
        known = self._plain_items
        tokens = None if known is None else known.tokens(item, len(self._ids))
        if tokens is None:
            return None
        chunk = self.chunk_of(*tokens)
        ids, meta = tokens[0], item["meta_info"]
        if self._masks.asks and (masks := meta.get(MASK)) is not None:
            chunk = chunk._replace(
                masks=answer.masks(masks, ids, self._vocab_size),
                mask_logprobs=answer.mask_logprobs(meta.get(LOGPROBS), ids),
                uncaptured="",
            )
        self._ids += ids
        return chunk

    def chunk_of(self, ids: list[int], logprobs: list[float] | None) -> GenerateChunk:
        """The chunk of the tokens of a plain item, which is known to be one."""
        assert self._plain_items is not None, "it was found plain by these"
        # Made for each token: with the names of its fields it takes three times as long.
        return tuple.__new__(GenerateChunk, (ids, logprobs, *self._plain_items.rest))

    def _note_plain(self, item: Item, meta: Item, chunk: GenerateChunk) -> None:
        """Learns from an item that was read step by step what the next plain one looks like."""
        self._plain_items = PlainItems(
            item,
            meta,
            chunk,
            uncaptured=self._uncaptured,
            vocab_size=self._vocab_size,
            max_len=self._max_len,
            with_logprobs=self._with_logprobs,
            asks_masks=self._masks.asks,
        )

    def _chunk(self, item: Item, payload: bytes) -> GenerateChunk:
        if (error := item.get("error")) is not None:
            status = answer.error_status(error, is_stream=self._is_stream)
            raise read_error(status, payload)
        chunk = self._read_item(item)
        finish = chunk.finish
        if finish is not None and finish.status_code:
            # An abort with a status is a refusal (queue full, bad grammar), not a pause.
            words = orjson.dumps({"error": {"message": finish.message or "Aborted"}})
            refusal = read_error(finish.status_code, words)
            is_own = isinstance(refusal, MasksRefused) and not self._masks.is_clients
            if is_own and chunk.output_ids:  # sampled before, and as good as those before them
                self.failure = refusal
                self._plain_items = None
                return _going_on(chunk)
            if is_own or not self._is_native:
                raise refusal
        if finish is not None:
            if self._scored is not None and finish.type != "abort":
                check_prompt(item["meta_info"], self._scored, self._tops.asked, self._vocab_size)
            self.is_finished = True
            self._plain_items = None
        return chunk

    def _read_item(self, item: Item) -> GenerateChunk:
        meta = answer.check_shape(item)
        if not self._ids and self._is_anothers(meta.get("id")):
            raise WorkerFailed("The worker sends the output of another request.")
        entries = meta.get("output_token_logprobs") or []
        ids = item.get("output_ids")
        if ids is None:  # older workers
            ids = answer.ids_of(meta.get("output_token_logprobs"))
        if type(ids) is not list or type(entries) is not list:
            raise WorkerFailed("The worker's output is not a list of tokens.")
        # A refused grammar comes with a token that was never sampled, so it has no logprob.
        reason = meta.get("finish_reason")
        is_refusal = not entries and isinstance(reason, dict) and reason.get("status_code")
        is_refusal = is_refusal and meta.get("output_token_logprobs") is not None
        total = answer.count(meta, "completion_tokens")
        new_len = 0 if is_refusal else self._count(len(ids), total)
        if is_refusal:  # what it says of that token is about nothing
            meta = {name: value for name, value in meta.items() if name != "weight_versions"}
        if new_len and self._is_cumulative and ids[:-new_len] != self._ids:
            raise WorkerFailed("The worker changed output that it had sent before.")
        if self._with_logprobs and new_len and entries and len(entries) != len(ids):
            raise WorkerFailed(f"The worker sent {len(entries)} logprobs for {len(ids)} tokens.")
        masks = meta.get(MASK) if self._masks.asks and new_len else None
        if masks:
            answer.check_len(masks, ids, "sampling masks")
        if self._shows_items:
            self._check_passed_on(item, meta, ids, entries, new_len)
        newest = slice(len(ids) - new_len, None)
        return self._build(meta, ids[newest], entries[newest] if entries else entries, item)

    def _check_passed_on(
        self, item: Item, meta: Item, ids: list[int], entries: list[Any], new_len: int
    ) -> None:
        """A client gets the whole item, so what was sent before is checked as well."""
        answer.check_writable(item, meta)
        if not new_len:
            answer.check_ids(ids, self._vocab_size)
        elif self._is_cumulative:  # 8.0 equals 8, and is not an id: what was checked stays
            ids[: len(self._ids)] = self._ids
        known = entries[: len(entries) - new_len] if self._with_logprobs else []
        if known == self._entries:
            entries[: len(known)] = self._entries
        elif self._is_cumulative:
            answer.logprobs(known, ids[: len(known)])
        self._entries = entries

    def _build(self, meta: Item, ids: list[int], entries: list[Any], item: Item) -> GenerateChunk:
        answer.check_ids(ids, self._vocab_size)
        self._ids += ids
        masks = meta.get(MASK) if self._masks.asks and ids else None
        spans = answer.version_spans(meta.get("weight_versions"), len(self._ids))
        version = self.weight_version = answer.version(meta.get("weight_version"))
        if version is not None and not self._is_stream and not spans:
            version = self._sampled_under(version)
        prompt_tokens = answer.count(meta, "prompt_tokens")
        cached_tokens = answer.count(meta, "cached_tokens")
        chunk = GenerateChunk(
            output_ids=ids,
            logprobs=answer.logprobs(entries, ids) if self._with_logprobs else None,
            top_logprobs=self._tops.read(meta, ids, self._vocab_size),
            finish=answer.finish(meta.get("finish_reason")),
            prompt_tokens=prompt_tokens or 0,
            cached_tokens=cached_tokens or 0,
            weight_version=version,
            weight_versions=spans,
            routed_experts=answer.base64_text(meta, "routed_experts"),
            routed_experts_start=self._experts_start,
            indexer_topk=answer.base64_text(meta, "indexer_topk"),
            masks=masks and answer.masks(answer.last(masks, len(ids)), ids, self._vocab_size),
            mask_logprobs=masks
            and answer.mask_logprobs(answer.last(meta.get(LOGPROBS), len(ids)), ids),
            uncaptured="" if masks else self._uncaptured,
            item=self._tops.shown_of(
                item if self._masks.is_clients or not self._masks.asks else without_masks(item)
            ),
            worker_url=self._worker_url,
            speculation=answer.speculation(meta) if "spec_verify_ct" in meta else None,
        )
        if self._is_incremental or self._cutter is not None:
            self._note_plain(item, meta, chunk)
        elif self._may_be_plain and ids:
            self._first = item, meta, chunk
        return chunk

    def _count(self, ids_len: int, total: int | None) -> int:
        """How many of an item's ids are new; also learns whether the stream is cumulative."""
        before = len(self._ids)
        if total is None:
            if before and ids_len and self._is_cumulative is None:
                raise WorkerFailed("The worker's stream does not say how long its output is.")
            total = ids_len if not before or self._is_cumulative else before + ids_len
        new_len = total - before
        if new_len < 0:
            raise WorkerFailed("The worker's output became shorter.")
        if new_len == 0:  # an abort in the queue repeats its last id in either kind of stream
            return 0
        if total > self._max_len:
            raise WorkerFailed(
                f"The worker sent {total} tokens, and was asked for {self._max_len}."
            )
        if ids_len not in (total, new_len):
            raise WorkerFailed(f"The worker sent {ids_len} ids of {total}, {before} known before.")
        if before:
            is_cumulative = ids_len == total
            if self._is_cumulative not in (None, is_cumulative):
                raise WorkerFailed("The worker's stream changed between whole and new output.")
            if self._may_be_plain and self._is_cumulative is None:
                self._is_incremental = not is_cumulative
                self._cutter = CumulativeCutter() if is_cumulative else None
            self._is_cumulative = is_cumulative
        return new_len


def _going_on(chunk: GenerateChunk) -> GenerateChunk:
    """A last chunk as if others followed."""
    item = chunk.item or {}
    meta = {**item.get("meta_info", {}), "finish_reason": None}
    return chunk._replace(finish=None, item={**item, "meta_info": meta})
