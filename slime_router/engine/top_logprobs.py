"""The likeliest tokens at each position: how many a worker is asked for, how it says them. Pure.

SGLang nests them as `[logprob, id, text]` by position, or lays them out in two flat arrays
(`return_flat_raw_output_top_logprobs`), which are much shorter. Flat ones come with a whole reply
only; a worker that has not heard of them nests.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slime_router.choices import Capture
from slime_router.engine import answer
from slime_router.engine.answer import MAX_LOGPROB, Item
from slime_router.errors import WorkerFailed
from slime_router.types import GenerateCall, NativeCall

MAX_KEPT: Final = 128  # what a prefill worker hands over to a decode worker ends there

_NESTED = ("output_top_logprobs", "input_top_logprobs")
_FLAT = {
    "return_flat_raw_output_top_logprobs": True,
    "return_flat_raw_top_logprobs_b64": True,
}
_ASKS_FLAT = ("return_flat_raw_output_top_logprobs", "return_flat_raw_top_logprobs")

Likeliest = list[list[tuple[float, int]]]  # by position


@dataclass(frozen=True, slots=True)
class TopPlan:
    """How many likeliest tokens a worker is asked for at each position.

    `asked` of them are read from its answer; 0: nobody here reads any. The client has asked for
    `shown`, and sees no more of them in the worker's items; None: it gets those as they are.
    `fields` are what the body of the request has for it, at top level.
    """

    asked: int = 0
    shown: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def read(self, meta: Item, ids: list[int], vocab_size: int) -> Likeliest | None:
        """The likeliest tokens at each of `ids`, the newest tokens of an answer; finite ones only.

        Raises:
            WorkerFailed: they are missing, of other tokens, or not log-probabilities.
        """
        if not self.asked:
            return None
        if ids and "output_top_logprobs_shape" in meta:
            return _unrolled(meta, len(ids), vocab_size)
        nested = meta.get("output_top_logprobs")
        newest = nested[-len(ids) :] if type(nested) is list and ids else []
        return answer.top_logprobs(newest, ids, vocab_size)

    def shown_of(self, item: Item) -> Item:
        """A worker's item as it would be if only the client had asked."""
        meta = item.get("meta_info")
        if self.shown is None or self.asked == self.shown or not isinstance(meta, dict):
            return item
        if not self.shown:
            starts = ("output_top_logprobs", "input_top_logprobs")
            rest = {name: value for name, value in meta.items() if not name.startswith(starts)}
        else:
            rest = {
                **meta,
                **{name: _cut(meta[name], self.shown) for name in _NESTED & meta.keys()},
            }
        return {**item, "meta_info": rest}


NO_TOPS = TopPlan()


def top_plan(call: GenerateCall, capture: Capture) -> TopPlan:
    """The plan for a call. What a session keeps is asked for beside what the client asks."""
    kept = 0 if capture == "off" else call.kept_tops
    is_native = isinstance(call, NativeCall)
    wanted = (call.asked.get("top_logprobs_num") or 0) if is_native else call.top_logprobs
    if not kept:
        if is_native or not wanted:  # a client of /generate reads its own
            return NO_TOPS
        return TopPlan(asked=wanted, fields={"top_logprobs_num": wanted})
    if is_native and wanted and any(call.asked.get(name) for name in _ASKS_FLAT):
        return TopPlan(asked=wanted)  # it reads them in its own way
    asked = max(kept, wanted)
    flat = {} if call.stream or wanted else _FLAT
    return TopPlan(asked, wanted, {"top_logprobs_num": asked, **flat})


def _unrolled(meta: Item, count: int, vocab_size: int) -> Likeliest:
    """What two flat arrays say of `count` positions; the first ones may be left out."""
    logprobs = _array(meta, "val", "float32", "<f4")
    ids = _array(meta, "idx", "int32", "<i4")
    shape, skipped = meta["output_top_logprobs_shape"], meta.get("output_top_logprobs_null_prefix")
    is_shape = type(shape) is list and [*map(type, shape)] == [int, int] and min(shape) >= 0
    if not is_shape or type(skipped) is not int or shape[0] + skipped != count:
        raise WorkerFailed(f"The worker's top logprobs are not those of {count} tokens.")
    if len(ids) != len(logprobs) or len(ids) != shape[0] * shape[1]:
        raise WorkerFailed("The worker's top logprobs have another shape than they say.")
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise WorkerFailed(f"The worker's top logprobs are beyond a vocabulary of {vocab_size}.")
    if (logprobs > MAX_LOGPROB).any() and np.isfinite(logprobs[logprobs > MAX_LOGPROB]).any():
        raise WorkerFailed("The worker sent top logprobs that are no log-probabilities.")
    rows = zip(logprobs.reshape(shape), ids.reshape(shape), strict=True)
    told = [
        list(zip(values[known].tolist(), tokens[known].tolist(), strict=True))
        for values, tokens in rows
        for known in [np.isfinite(values)]
    ]
    return [[] for _ in range(skipped)] + told


def _array(meta: Item, name: str, kind: str, dtype: str) -> NDArray[Any]:
    text = meta.get(f"output_top_logprobs_{name}_flat_b64")
    if type(text) is not str or meta.get(f"output_top_logprobs_{name}_flat_b64_dtype") != kind:
        raise WorkerFailed("The worker's flat top logprobs are not what was asked for.")
    try:
        return np.frombuffer(b64decode(text, validate=True), dtype)
    except ValueError as exc:
        raise WorkerFailed("The worker's flat top logprobs are not base64.") from exc


def _cut(rows: Any, count: int) -> Any:
    if type(rows) is not list:
        return rows
    return [row[:count] if type(row) is list else row for row in rows]
