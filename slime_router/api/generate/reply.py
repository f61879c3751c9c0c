"""Chunks written as SGLang's `/generate` items.

An item is passed on as the worker wrote it, aborts included: RL pipelines rely on every field.
Only logprobs that the router asked for and the client did not are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from slime_router.api import sse
from slime_router.api.errors import native_error_object
from slime_router.errors import RouterError
from slime_router.replies.reply import Reply
from slime_router.types import Finish, GenerateCall, GenerateChunk

_LOGPROB_KEYS = frozenset(
    {
        "input_token_logprobs",
        "output_token_logprobs",
        "output_token_logprobs_length",
        "input_top_logprobs",
        "output_top_logprobs",
        "input_token_ids_logprobs",
        "output_token_ids_logprobs",
    }
)


class _Writer:
    """Writes the item of each chunk of one generation."""

    def __init__(self, call: GenerateCall, tag: str) -> None:
        self._rid = call.rid.removeprefix(tag)
        self._shows_logprobs = bool(call.asked.get("return_logprob"))
        self._reply: Reply | None = None  # of a plug-in

    def item(self, chunk: GenerateChunk) -> dict[str, Any]:
        item = chunk.item
        if item is None:
            return self._own_item(chunk)
        meta = item.get("meta_info")
        if not isinstance(meta, dict):
            return item
        if self._shows_logprobs or meta.keys().isdisjoint(_LOGPROB_KEYS):
            shown = {**meta}
        else:
            shown = {key: value for key, value in meta.items() if key not in _LOGPROB_KEYS}
        if "id" in shown:
            shown["id"] = self._rid  # a worker has another name for it
        return {**item, "meta_info": shown}

    def _own_item(self, chunk: GenerateChunk) -> dict[str, Any]:
        """No worker answered, but a plug-in, or an abort came before one was asked.

        An item like a worker's, all of it so far: trainers read it as one.
        """
        if self._reply is None:
            self._reply = Reply()
        reply = self._reply
        reply.add(chunk)
        count = len(reply.output_ids)
        meta: dict[str, Any] = {
            "id": self._rid,
            "finish_reason": _finish_reason(chunk.finish, count),
            "prompt_tokens": chunk.prompt_tokens,
            "completion_tokens": count,
            "cached_tokens": chunk.cached_tokens,
        }
        if chunk.weight_version is not None:
            meta["weight_version"] = chunk.weight_version
        if self._shows_logprobs and reply.has_logprobs:
            sampled = zip(reply.logprobs, reply.output_ids, strict=True)
            meta["output_token_logprobs"] = [[value, token, None] for value, token in sampled]
            meta["output_token_logprobs_length"] = count
        return {"text": reply.text, "output_ids": reply.output_ids, "meta_info": meta}


class ItemStream:
    """One streamed reply; with several generations, each item carries the index of its own."""

    text_event = None

    def __init__(self, calls: Sequence[GenerateCall], *, is_array: bool, tag: str = "") -> None:
        self._writers = [_Writer(call, tag) for call in calls]
        self._is_array = is_array

    def events(self, chunk: GenerateChunk) -> Iterable[bytes]:
        """The event of one chunk."""
        item = self._writers[chunk.sample].item(chunk)
        return (sse.event({**item, "index": chunk.sample} if self._is_array else item),)

    def closing(self) -> Iterable[bytes]:
        """Nothing stands before `[DONE]`."""
        return ()

    def failure(self, exc: RouterError) -> bytes:
        """An error after the first byte."""
        return sse.event(native_error_object(exc))


class ItemBody:
    """One reply in one piece: the last item of each generation, which is the whole of it."""

    def __init__(self, calls: Sequence[GenerateCall], *, is_array: bool, tag: str = "") -> None:
        self._writers = [_Writer(call, tag) for call in calls]
        self._items: list[dict[str, Any]] = [{} for _ in calls]
        self._is_array = is_array

    def add(self, chunk: GenerateChunk) -> None:
        """Takes a chunk."""
        self._items[chunk.sample] = self._writers[chunk.sample].item(chunk)

    def body(self) -> bytes:
        """The JSON of the whole reply."""
        return orjson.dumps(self._items if self._is_array else self._items[0])


def _finish_reason(finish: Finish | None, output_len: int) -> dict[str, Any] | None:
    if finish is None:
        return None
    match finish.type:
        case "length":
            return {"type": "length", "length": output_len}
        case "stop":
            return {"type": "stop", "matched": finish.matched}
        case "abort":
            return {
                "type": "abort",
                "message": finish.message,
                "status_code": finish.status_code,
            }
