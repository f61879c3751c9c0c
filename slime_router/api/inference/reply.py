"""Chunks written as vLLM's token replies: ids, log-probabilities, and why they ended.

An abort is a reason like others, as with vLLM: whoever trains wants what was sampled until then.
"""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import orjson

from slime_router.api import sse
from slime_router.api.chat.reply import Tally
from slime_router.api.completions.reply import known_logprob, logprobs_of_prompt
from slime_router.api.errors import openai_error_object
from slime_router.api.inference.request import TokenRequest
from slime_router.api.token_ids import id_name
from slime_router.errors import RouterError
from slime_router.types import GenerateChunk


class _TokenReply:
    """What both forms of a reply write from; `experts_shape` is `EndpointContext`'s."""

    def __init__(self, asked: TokenRequest, experts_shape: tuple[int, int] | None) -> None:
        self._asked = asked
        self._experts_shape = experts_shape
        self._tally = Tally()

    def _choice(
        self, ids: Sequence[int], entries: list[dict[str, Any]] | None, last: GenerateChunk
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": last.sample,
            "token_ids": ids,
            "logprobs": None if entries is None else {"content": entries},
            "finish_reason": None if last.finish is None else last.finish.type,
            "stop_reason": None if last.finish is None else last.finish.matched,
        }
        if self._asked.has_experts and last.routed_experts is not None:
            choice["routed_experts"] = _experts(last, self._experts_shape)
        return choice


class TokenStream(_TokenReply):
    """One streamed reply: each event has what is new of one choice."""

    text_event = None

    def events(self, chunk: GenerateChunk) -> Iterable[bytes]:
        """The event of one chunk."""
        self._tally.count(chunk)
        if not chunk.output_ids and chunk.finish is None:
            return ()
        choice = self._choice(chunk.output_ids, _entries(chunk, self._asked), chunk)
        return (sse.event({"request_id": self._asked.request_id, "choices": [choice]}),)

    def closing(self) -> Iterable[bytes]:
        """The usage, where it is asked for."""
        if self._asked.has_usage:
            head = {"request_id": self._asked.request_id, "choices": []}
            yield sse.event({**head, "usage": self._tally.usage()})

    def failure(self, exc: RouterError) -> bytes:
        """An error after the first byte."""
        return sse.event(openai_error_object(exc))


class TokenBody(_TokenReply):
    """One reply in one piece."""

    def __init__(self, asked: TokenRequest, experts_shape: tuple[int, int] | None) -> None:
        super().__init__(asked, experts_shape)
        self._output_ids: list[list[int]] = [[] for _ in asked.calls]
        has_logprobs = asked.top_logprobs is not None
        self._entries: list[list[dict[str, Any]] | None] = [
            [] if has_logprobs else None for _ in asked.calls
        ]
        self._last: dict[int, GenerateChunk] = {}
        self._of_prompt: list[dict[str, Any] | None] | None = None

    def add(self, chunk: GenerateChunk) -> None:
        """Takes a chunk.

        Raises:
            WorkerFailed: it has no logprobs of the prompt, and they were asked for.
        """
        self._tally.count(chunk)
        self._output_ids[chunk.sample] += chunk.output_ids
        if (entries := self._entries[chunk.sample]) is not None:
            entries += _entries(chunk, self._asked) or ()
        if (count := self._asked.prompt_logprobs) is not None:
            is_first = chunk.sample == 0 and 0 not in self._last
            is_aborted = chunk.finish is not None and chunk.finish.type == "abort"
            if is_first and not is_aborted:  # the worker may not have read the prompt yet
                self._of_prompt = _places(chunk, count)
        self._last[chunk.sample] = chunk

    def body(self) -> bytes:
        """The JSON of the whole reply."""
        told = zip(self._output_ids, self._entries, strict=True)
        return orjson.dumps(
            {
                "request_id": self._asked.request_id,
                "choices": [
                    self._choice(ids, entries, self._last[i])
                    for i, (ids, entries) in enumerate(told)
                ],
                "prompt_logprobs": self._of_prompt,
                "kv_transfer_params": None,
                "usage": self._tally.usage(),
            }
        )


def _entries(chunk: GenerateChunk, asked: TokenRequest) -> list[dict[str, Any]] | None:
    """One for each id, named by it; the numbers are finite. None if they were not asked for."""
    if asked.top_logprobs is None:
        return None
    logprobs = chunk.logprobs if chunk.logprobs is not None else repeat(None)
    tops = chunk.top_logprobs if chunk.top_logprobs is not None else repeat([])
    return [
        {
            **_entry(token_id, logprob),
            # The worker may have been asked for more of them, for the prompt's sake.
            "top_logprobs": [_entry(other, value) for value, other in top[: asked.top_logprobs]],
        }
        for token_id, logprob, top in zip(chunk.output_ids, logprobs, tops, strict=False)
    ]


def _entry(token_id: int, logprob: float | None) -> dict[str, Any]:
    return {"token": id_name(token_id), "logprob": known_logprob(logprob), "bytes": None}


def _places(chunk: GenerateChunk, likely: int) -> list[dict[str, Any] | None]:
    """For each token of the prompt its own logprob, then those of the `likely` others, by id.

    As vLLM writes them; prime-rl takes the first for the token's own.
    """
    places: list[dict[str, Any] | None] = []
    for token_id, logprob, top in zip(*logprobs_of_prompt(chunk), strict=True):
        if logprob is None:
            places.append(None)
            continue
        ranks = {other: rank for rank, (_, other) in enumerate(top or (), start=1)}
        likeliest = {other: value for value, other in (top or ())[:likely]}
        known = {token_id: logprob, **likeliest}
        places.append(
            {
                str(other): {
                    "logprob": known_logprob(value),
                    "rank": ranks.get(other),
                    "decoded_token": None,
                }
                for other, value in known.items()
            }
        )
    return places


def _experts(chunk: GenerateChunk, each: tuple[int, int] | None) -> dict[str, Any]:
    """Base64 of little-endian int32; flat where the number of values for each token is unknown."""
    data = chunk.routed_experts or ""
    count = len(b64decode(data)) // 4
    tokens, rest = divmod(count, 1 if each is None else math.prod(each))
    return {
        "data": data,
        "dtype": "int32",
        "shape": [count] if each is None or rest else [tokens, *each],
        "start": chunk.routed_experts_start,
    }
