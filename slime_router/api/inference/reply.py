"""Chunks written as vLLM's token replies: ids, log-probabilities, and why they ended.

An abort is a reason like others, as with vLLM: whoever trains wants what was sampled until then.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import orjson

from slime_router.api import sse
from slime_router.api.chat.reply import LOWEST_LOGPROB, Tally
from slime_router.api.errors import openai_error_object
from slime_router.api.inference.request import TokenRequest
from slime_router.api.token_names import id_name
from slime_router.errors import RouterError
from slime_router.types import GenerateChunk


class TokenStream:
    """One streamed reply: each event has what is new."""

    text_event = None

    def __init__(self, asked: TokenRequest) -> None:
        self._asked = asked
        self._tally = Tally()

    def events(self, chunk: GenerateChunk) -> Iterable[bytes]:
        """The event of one chunk."""
        self._tally.count(chunk)
        if not chunk.output_ids and chunk.finish is None:
            return ()
        entries = _entries(chunk) if self._asked.has_logprobs else None
        choice = _choice(chunk.output_ids, entries, chunk, self._asked)
        return (sse.event({"request_id": self._asked.request_id, "choices": [choice]}),)

    def closing(self) -> Iterable[bytes]:
        """The usage, where it is asked for."""
        if self._asked.has_usage:
            head = {"request_id": self._asked.request_id, "choices": []}
            yield sse.event({**head, "usage": self._tally.usage()})

    def failure(self, exc: RouterError) -> bytes:
        """An error after the first byte."""
        return sse.event(openai_error_object(exc))


class TokenBody:
    """One reply in one piece."""

    def __init__(self, asked: TokenRequest) -> None:
        self._asked = asked
        self._tally = Tally()
        self._output_ids: list[int] = []
        self._entries: list[dict[str, Any]] = []
        self._last: GenerateChunk | None = None

    def add(self, chunk: GenerateChunk) -> None:
        """Takes a chunk."""
        self._tally.count(chunk)
        self._output_ids += chunk.output_ids
        if self._asked.has_logprobs:
            self._entries += _entries(chunk)
        self._last = chunk

    def body(self) -> bytes:
        """The JSON of the whole reply."""
        assert self._last is not None, "there is always a last chunk"
        entries = self._entries if self._asked.has_logprobs else None
        choice = _choice(self._output_ids, entries, self._last, self._asked)
        return orjson.dumps(
            {
                "request_id": self._asked.request_id,
                "choices": [choice],
                "prompt_logprobs": None,
                "kv_transfer_params": None,
                "usage": self._tally.usage(),
            }
        )


def _choice(
    ids: Sequence[int],
    entries: list[dict[str, Any]] | None,
    last: GenerateChunk,
    asked: TokenRequest,
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "token_ids": ids,
        "logprobs": None if entries is None else {"content": entries},
        "finish_reason": None if last.finish is None else last.finish.type,
        "stop_reason": None if last.finish is None else last.finish.matched,
    }
    if asked.has_experts and last.routed_experts is not None:
        choice["routed_experts"] = _experts(last)
    return choice


def _entries(chunk: GenerateChunk) -> list[dict[str, Any]]:
    """One for each id, named by it; the numbers are finite."""
    logprobs = chunk.logprobs if chunk.logprobs is not None else repeat(None)
    tops = chunk.top_logprobs if chunk.top_logprobs is not None else repeat([])
    return [
        {
            **_entry(token_id, logprob),
            "top_logprobs": [_entry(other, value) for value, other in top],
        }
        for token_id, logprob, top in zip(chunk.output_ids, logprobs, tops, strict=False)
    ]


def _entry(token_id: int, logprob: float | None) -> dict[str, Any]:
    known = LOWEST_LOGPROB if logprob is None else max(logprob, LOWEST_LOGPROB)
    return {"token": id_name(token_id), "logprob": known, "bytes": None}


def _experts(chunk: GenerateChunk) -> dict[str, Any]:
    """Base64 of little-endian int32; flat, as the worker does not say how many layers it has."""
    data = chunk.routed_experts or ""
    return {
        "data": data,
        "dtype": "int32",
        "shape": [len(b64decode(data)) // 4],
        "start": chunk.routed_experts_start,
    }
