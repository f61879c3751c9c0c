"""The plain items of a stream: nothing but new tokens, like the items before them. Pure.

Most items of a stream are such, so one is checked in one go, against what those before it said.
All others are read step by step (`engine/chunks.py`), and refused if they must be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

from slime_router.engine.answer import MAX_LOGPROB, MIN_LOGPROB, Item
from slime_router.engine.masks import MASK
from slime_router.types import GenerateChunk

# What a plain item says as the one before did, if it says it; and what none says.
_STEADY = (
    "prompt_tokens", "cached_tokens", "weight_version", "weight_versions", "finish_reason",
    "routed_experts", "indexer_topk",
)  # fmt: skip
_NEVER_PLAIN = ("finish_reason", "weight_versions", "routed_experts")

Tokens: TypeAlias = tuple[list[int], list[float] | None]  # ids, and a logprob for each


class PlainItems:
    """What the plain items of one stream look like, as an item that was read step by step shows.

    `chunk` is the one that was made of it; `uncaptured` is why tokens without a mask have none.
    `rest` is what the chunks of plain items say without ids and logprobs, in the order of its
    fields: the same object for as long as it stays the same.
    """

    __slots__ = (
        "_keys", "_max_len", "_meta_keys", "_steady", "_usual", "_vocab_size", "_with_logprobs",
        "rest",
    )  # fmt: skip

    def __init__(
        self,
        item: Item,
        meta: Item,
        chunk: GenerateChunk,
        *,
        uncaptured: str,
        vocab_size: int,
        max_len: int,
        with_logprobs: bool,
        asks_masks: bool,
    ) -> None:
        names = [name for name in _STEADY if name in meta]
        if not asks_masks and MASK in meta:
            names.append(MASK)
        self._vocab_size = vocab_size
        self._max_len = max_len
        self._with_logprobs = with_logprobs
        self._keys, self._meta_keys = tuple(item), tuple(meta)
        if "error" in item or "completion_tokens" not in meta or any(map(meta.get, _NEVER_PLAIN)):
            self._keys = ()
        self._steady: Callable[[Item], Any] = itemgetter(*names) if names else len
        self._usual = self._steady(meta)
        like = GenerateChunk(
            (),
            prompt_tokens=chunk.prompt_tokens,
            cached_tokens=chunk.cached_tokens,
            weight_version=chunk.weight_version,
            routed_experts_start=chunk.routed_experts_start,
            uncaptured=uncaptured,
            worker_url=chunk.worker_url,
        )
        self.rest: tuple[Any, ...] = like[2:]

    def run(self, items: Sequence[Item], known_len: int) -> Tokens | None:
        """The same as `tokens` for items that came together: those of all, in order."""
        if len(items) == 1:
            return self.tokens(items[0], known_len)
        ids: list[int] = []
        logprobs: list[float] | None = [] if self._with_logprobs else None
        for item in items:
            tokens = self.tokens(item, known_len + len(ids))
            if tokens is None:
                return None
            ids += tokens[0]
            if logprobs is not None:
                logprobs += tokens[1] or ()
        return ids, logprobs

    def tokens(self, item: Item, known_len: int) -> Tokens | None:
        """The new tokens of an item after `known_len` others; None for any that is not plain."""
        meta, ids = item.get("meta_info"), item.get("output_ids")
        if type(meta) is not dict or type(ids) is not list or tuple(item) != self._keys:
            return None
        if tuple(meta) != self._meta_keys or self._steady(meta) != self._usual:
            return None
        total = meta["completion_tokens"]
        if type(total) is not int or total != known_len + len(ids) or total > self._max_len:
            return None
        if type(item.get("text", "")) is not str:
            return None
        entries: Any = meta.get("output_token_logprobs")
        vocab_size = self._vocab_size
        if not self._with_logprobs:
            if entries or not all(type(each) is int and 0 <= each < vocab_size for each in ids):
                return None
            return ids, None
        logprobs: list[float] = []
        try:
            for (logprob, named, _), token in zip(entries, ids, strict=True):
                if type(token) is not int or named != token or not 0 <= token < vocab_size:
                    return None
                if type(logprob) is not float or not MIN_LOGPROB <= logprob <= MAX_LOGPROB:
                    return None
                logprobs.append(logprob)
        except (TypeError, ValueError):  # of other lengths or kinds
            return None
        return ids, logprobs


def grows(item: Item, known_len: int) -> bool:
    """Whether an item counts its own ids and `known_len` others, so that it repeats none of these.

    The first item of a stream repeats none, whatever those after it do.
    """
    meta, ids = item.get("meta_info"), item.get("output_ids")
    if not known_len or type(meta) is not dict or type(ids) is not list or not ids:
        return False
    return bool(meta.get("completion_tokens") == known_len + len(ids))
