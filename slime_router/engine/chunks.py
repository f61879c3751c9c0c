"""Turns a worker's JSON items of a generation into chunks. Pure: bytes in, values out.

For every stream, however the worker splits it and whether or not it repeats itself:
`concat(chunk.output_ids) == the ids that were sampled`, with a logprob for each if requested.
All tokens of a chunk have one weight version, unless the worker gives exact spans.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from slime_router.engine.cumulative import CumulativeCutter
from slime_router.engine.request import Item, read_error
from slime_router.engine.sse import DONE
from slime_router.errors import RouterError, WorkerFailed
from slime_router.types import Finish, GenerateChunk, VersionSpan, WeightVersion


class ChunkReader:
    """Turns the payloads of one answer into chunks of what is new.

    Workers either repeat all output in each item (cumulative) or send only what is new
    (incremental). The items show which: `completion_tokens` counts all output either way, so
    `len(output_ids)` equals either the count or its growth. For the first item both are true.

    A whole reply names its version only at its end. If the worker got new weights since the
    request, `version_before` gives the version it had then: without spans, the one in the reply
    would be wrong. Anything else the router knows is older than what the worker reports.
    `experts_start` is the position from which routed experts were requested.
    """

    def __init__(
        self,
        *,
        with_logprobs: bool,
        top_logprobs: int = 0,
        is_native: bool = False,
        is_stream: bool = True,
        version_before: Callable[[], WeightVersion | None] = lambda: None,
        experts_start: int = 0,
    ) -> None:
        self.is_finished = False
        self.weight_version: WeightVersion | None = None  # as the worker reported it last
        self._is_stream = is_stream
        self._version_before = version_before
        self._experts_start = experts_start
        self._with_logprobs = with_logprobs
        self._with_top_logprobs = top_logprobs > 0
        self._is_native = is_native
        self._is_cumulative: bool | None = None  # None until an item shows it
        self._output_len = 0
        self._last_id: int | None = None
        is_cut = is_stream and not is_native and not top_logprobs
        self._cutter = CumulativeCutter() if is_cut else None

    def read(self, payloads: Sequence[bytes]) -> Iterator[GenerateChunk]:
        """The chunks in `payloads`, each parsed only when it is requested.

        Raises:
            WorkerRefused: the worker refuses the request inside its stream.
            WorkerFailed: an item cannot be read, or contradicts itself or earlier items.
        """
        waiting = [payload for payload in payloads if payload and payload != DONE]
        for index, payload in enumerate(waiting):
            if self.is_finished:
                return
            if self._is_cumulative and not self._is_native:
                yield from self._read_newest(waiting[index:])
                return
            if self._cutter is not None and self._is_cumulative is not False:
                self._cutter.cut(payload)  # parsed whole, but remembered for the next one
            yield self._chunk(_load(payload), payload)

    def read_together(self, payloads: Sequence[bytes]) -> Iterator[GenerateChunk]:
        """The same as one chunk: what came in one read costs the layers above only one step.

        Raises:
            RouterError: as `read` does, after the chunk of what could be read before it.
        """
        whole: GenerateChunk | None = None
        try:
            for chunk in self.read(payloads):
                if whole is not None and _is_other_version(whole, chunk):
                    yield whole
                    whole = None
                whole = chunk if whole is None else _joined(whole, chunk)
        except RouterError:
            if whole is not None:
                yield whole
            raise
        if whole is not None:
            yield whole

    def _read_newest(self, payloads: Sequence[bytes]) -> Iterator[GenerateChunk]:
        """Each item repeats the ones before: read only the last, as parsing is expensive."""
        chunk = self._new_part(payloads[-1])
        if chunk is not None:
            yield chunk
            return
        newest = _load(payloads[-1])
        before = payloads[:0] if _repeats_all(newest) else payloads[-2:-1]
        if self._is_under_new_weights(newest):
            before = payloads[:-1]  # only these show which tokens the old weights sampled
        for payload in before:
            yield self._chunk(_load(payload), payload)
        yield self._chunk(newest, payloads[-1])

    def _is_under_new_weights(self, item: Item) -> bool:
        meta = item.get("meta_info")
        if not isinstance(meta, dict) or meta.get("weight_versions"):
            return False
        return bool(meta.get("weight_version") != self.weight_version)

    def _new_part(self, payload: bytes) -> GenerateChunk | None:
        """The chunk of a cumulative item, parsing only its new entries.

        None for anything but a plain item in the middle of a stream.
        """
        new = self._cutter.cut(payload) if self._cutter is not None else None
        item = _load(new) if new is not None else {}
        meta, ids = item.get("meta_info"), item.get("output_ids")
        if not isinstance(meta, dict) or not isinstance(ids, list) or meta.get("finish_reason"):
            return None
        entries = meta.get("output_token_logprobs")
        total = self._output_len + len(ids)
        if meta.get("completion_tokens") != total or len(entries or ids) != len(ids):
            return None
        if self._is_under_new_weights(item):
            return None
        self._output_len = total
        self._last_id = ids[-1] if ids else self._last_id
        return self._build(meta, ids, entries or [])

    def _chunk(self, item: Item, payload: bytes) -> GenerateChunk:
        if "error" in item:
            raise read_error(_error_status(item["error"]), payload)
        try:
            chunk = self._read_item(item)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as exc:
            raise WorkerFailed("The worker's answer cannot be read.") from exc
        finish = chunk.finish
        if finish is not None and finish.status_code and not self._is_native:
            # An abort with a status is a refusal (queue full, bad grammar), not a pause.
            words = orjson.dumps({"error": {"message": finish.message or "Aborted"}})
            raise read_error(finish.status_code, words)
        self.is_finished = finish is not None
        return chunk

    def _read_item(self, item: Item) -> GenerateChunk:
        meta = item["meta_info"]
        entries = meta.get("output_token_logprobs")
        ids = item.get("output_ids")
        if ids is None:  # older workers
            ids = [entry[1] for entry in entries]
        # A refused grammar comes with a token that was never sampled, so it has no logprob.
        is_refusal = entries == [] and (meta.get("finish_reason") or {}).get("status_code")
        new_len = 0 if is_refusal else self._count(len(ids), meta.get("completion_tokens"))
        new_ids: list[int] = _last(ids, new_len)
        if new_ids:
            if self._is_cumulative and ids[-new_len - 1] != self._last_id:
                raise WorkerFailed("The worker changed output that it had sent before.")
            self._last_id = new_ids[-1]
        has_logprobs = self._with_logprobs and new_len > 0
        if has_logprobs and entries is not None and len(entries) != len(ids):
            raise WorkerFailed(f"The worker sent {len(entries)} logprobs for {len(ids)} tokens.")
        chunk = self._build(meta, new_ids, _last(entries, new_len))
        chunk.item = item
        return chunk

    def _build(self, meta: Item, ids: list[int], entries: list[Any]) -> GenerateChunk:
        tops = meta.get("output_top_logprobs") if self._with_top_logprobs else None
        spans = _weight_versions(meta.get("weight_versions"))
        version = self.weight_version = meta.get("weight_version")
        if version is not None and not self._is_stream and not spans:
            before = self._version_before()
            version = version if before is None else before
        return GenerateChunk(
            output_ids=ids,
            logprobs=_logprobs(entries, ids) if self._with_logprobs else None,
            top_logprobs=(
                _top_logprobs(_last(tops, len(ids)), len(ids)) if self._with_top_logprobs else None
            ),
            finish=_finish(meta.get("finish_reason")),
            prompt_tokens=meta.get("prompt_tokens") or 0,
            cached_tokens=meta.get("cached_tokens") or 0,
            weight_version=version,
            weight_versions=spans,
            routed_experts=meta.get("routed_experts"),
            routed_experts_start=self._experts_start,
        )

    def _count(self, ids_len: int, total: int | None) -> int:
        """How many of an item's ids are new; also learns whether the stream is cumulative."""
        before = self._output_len
        if total is None:
            if before and ids_len and self._is_cumulative is None:
                raise WorkerFailed("The worker's stream does not say how long its output is.")
            total = ids_len if not before or self._is_cumulative else before + ids_len
        new_len = total - before
        if new_len < 0:
            raise WorkerFailed("The worker's output became shorter.")
        if new_len == 0:  # an abort in the queue repeats its last id in either kind of stream
            return 0
        if ids_len not in (total, new_len):
            raise WorkerFailed(f"The worker sent {ids_len} ids of {total}, {before} known before.")
        if before:
            is_cumulative = ids_len == total
            if self._is_cumulative not in (None, is_cumulative):
                raise WorkerFailed("The worker's stream changed between whole and new output.")
            self._is_cumulative = is_cumulative
        self._output_len = total
        return new_len


def _joined(first: GenerateChunk, then: GenerateChunk) -> GenerateChunk:
    """Two chunks as one: their tokens concatenated, everything else from the later one."""
    then.output_ids = first.output_ids + then.output_ids
    if first.logprobs is not None and then.logprobs is not None:
        then.logprobs = first.logprobs + then.logprobs
    if first.top_logprobs is not None and then.top_logprobs is not None:
        then.top_logprobs = first.top_logprobs + then.top_logprobs
    then.routed_experts = then.routed_experts or first.routed_experts
    return then


def _is_other_version(first: GenerateChunk, then: GenerateChunk) -> bool:
    return first.weight_version != then.weight_version and not then.weight_versions


def _load(payload: bytes) -> Item:
    try:
        item = orjson.loads(payload)
    except ValueError:
        item = _load_lenient(payload)
    if not isinstance(item, dict):
        raise WorkerFailed("The worker's answer is not one JSON object.")
    return item


def _load_lenient(payload: bytes) -> Any:
    """Python's own parser, for workers that write `NaN` and `-Infinity`."""
    try:
        return json.loads(payload)
    except ValueError as exc:
        raise WorkerFailed("The worker's answer is not JSON.") from exc


def _repeats_all(item: Item) -> bool:
    meta = item.get("meta_info")
    ids = item.get("output_ids")
    if not isinstance(meta, dict):
        return False
    return ids is None or len(ids) == meta.get("completion_tokens", len(ids))


def _error_status(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and code >= 400 else 400


def _weight_versions(spans: list[Item] | None) -> tuple[VersionSpan, ...]:
    if not spans:
        return ()
    return tuple(VersionSpan(span["version"], span["start"], span["end"]) for span in spans)


def _last(values: list[Any] | None, count: int) -> list[Any]:
    return values[-count:] if values and count else []


def _logprobs(entries: list[Any], ids: list[int]) -> list[float | None]:
    if not entries:
        return [None] * len(ids)
    if [entry[1] for entry in entries] != ids:
        raise WorkerFailed("The worker's logprobs belong to other tokens than its output.")
    return [_finite(entry[0]) for entry in entries]


def _finite(logprob: float | None) -> float | None:
    return float(logprob) if logprob is not None and math.isfinite(logprob) else None


def _top_logprobs(tokens: list[Any], count: int) -> list[list[tuple[float, int]]]:
    if len(tokens) != count:
        raise WorkerFailed(f"The worker sent top logprobs of {len(tokens)} tokens for {count}.")
    return [
        [
            (float(logprob), token)
            for logprob, token, *_ in top or ()
            if _finite(logprob) is not None
        ]
        for top in tokens
    ]


def _finish(reason: Item | None) -> Finish | None:
    if reason is None:
        return None
    if reason["type"] not in ("stop", "length", "abort"):
        raise WorkerFailed(f"The worker ended with an unknown reason, {reason['type']!r}.")
    matched = reason.get("matched")
    return Finish(
        type=reason["type"],
        matched=matched if isinstance(matched, int | str) else None,
        message=reason.get("message"),
        status_code=reason.get("status_code"),
    )
