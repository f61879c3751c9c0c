"""Chunks written as OpenAI text completions: one body, or a stream of events."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, TypeAlias

import orjson

from slime_router.api import sse
from slime_router.api.chat.reply import LOWEST_LOGPROB, Tally
from slime_router.api.completions.request import CompletionStyle
from slime_router.api.errors import openai_error_object
from slime_router.api.token_ids import TokenNames
from slime_router.errors import RouterError, WorkerFailed
from slime_router.replies.reply import Reply
from slime_router.types import Finish, GenerateCall, GenerateChunk, Prompt

Top: TypeAlias = Sequence[tuple[float, int]]  # logprob and id of the likely tokens of a place


class CompletionTally:
    """Counts the tokens of a reply: each prompt once, the output of all choices."""

    def __init__(self, calls: Sequence[GenerateCall]) -> None:
        self._request_ids = [call.request_id for call in calls]
        self._tallies = {call.request_id: Tally() for call in calls}

    def add(self, chunk: GenerateChunk) -> None:
        """Counts the chunk. Raises RouterError where it says that the worker gave up."""
        self._tallies[self._request_ids[chunk.sample]].add(chunk)

    def add_output(self, tokens: int) -> None:
        """Counts tokens of the first choice that were sampled, and nothing else."""
        self._tallies[self._request_ids[0]].completion += tokens

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        each = [tally.usage() for tally in self._tallies.values()]
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in each)
        return {
            **{name: sum(usage[name] for usage in each) for name in counts},
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


class Logprobs:
    """The legacy lists of logprobs; `text_offset` counts characters from the choice's beginning.

    Those of an echoed prompt come first; nothing is known of its first token, which follows none.
    """

    def __init__(self, style: CompletionStyle, names: TokenNames) -> None:
        self._top = style.logprobs
        self._is_prompt_due = style.shows_prompt_logprobs
        self._names = names
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def of(self, chunk: GenerateChunk) -> dict[str, Any] | None:
        """The logprobs of a chunk, as the API writes them; None if they were not asked for.

        Raises:
            WorkerFailed: the worker gave no logprobs of the prompt.
        """
        if self._top is None:
            return None
        prompt: dict[str, Any] | None = None
        if self._is_prompt_due:
            self._is_prompt_due = False
            prompt = self._lists(*logprobs_of_prompt(chunk))
        values = [
            known_logprob(value) for value in chunk.logprobs or [None] * len(chunk.output_ids)
        ]
        written = self._lists(chunk.output_ids, values, chunk.top_logprobs or ())
        return written if prompt is None else _folded([prompt, written])

    def _lists(
        self, ids: Sequence[int], values: Sequence[float | None], tops: Sequence[Top | None]
    ) -> dict[str, Any]:
        return {
            "tokens": [self._names.key(token_id) for token_id in ids],
            "token_logprobs": values,
            "top_logprobs": [
                None if value is None else self._ranked(top, token_id, value)
                for token_id, value, top in zip(ids, values, tops or repeat(()), strict=False)
            ],
            "text_offset": [self._step(token_id) for token_id in ids],
        }

    def _step(self, token_id: int) -> int:
        """Where a token begins: after the characters that are complete by then."""
        begin = self._offset
        self._offset += len(self._decoder.decode(self._names.bytes_of(token_id)))
        return begin

    def _ranked(self, top: Top | None, sampled: int, logprob: float) -> dict[str, float]:
        """The likely tokens by name; the sampled one is there however unlikely it was.

        Of two with the same name, the likelier.
        """
        ranked: dict[str, float] = {}
        for value, token_id in top or ():
            ranked.setdefault(self._names.key(token_id), known_logprob(value))
        ranked.setdefault(self._names.key(sampled), logprob)
        return ranked


def logprobs_of_prompt(
    chunk: GenerateChunk,
) -> tuple[list[int], list[float | None], list[Top | None]]:
    """Ids, logprobs and likely tokens of the prompt, as the worker wrote them.

    The first place has neither, as it follows nothing.

    Raises:
        WorkerFailed: they cannot be read, or are those of another prompt.
    """
    meta = (chunk.item or {}).get("meta_info") or {}
    try:
        entries = meta["input_token_logprobs"]
        tops: list[Top | None] = [
            [(float(value), token_id) for value, token_id, *_ in top or () if value is not None]
            for top in meta.get("input_top_logprobs") or [()] * len(entries)
        ]
        values = [None if i == 0 else known_logprob(entry[0]) for i, entry in enumerate(entries)]
    except (KeyError, TypeError, ValueError) as exc:
        raise WorkerFailed("The worker's logprobs of the prompt cannot be read.") from exc
    # The prompt's own ids: a worker does not name the last of its vocabulary.
    ids = [] if chunk.prompt is None else chunk.prompt.ids.tolist()
    if not len(ids) == len(values) == len(tops):
        raise WorkerFailed("The worker's logprobs are not those of the prompt.")
    return ids, values, [None, *tops[1:]]


def known_logprob(logprob: float | None) -> float:
    """The number that is written of it: JSON has neither infinity nor, here, an unknown one."""
    return LOWEST_LOGPROB if logprob is None else max(logprob, LOWEST_LOGPROB)


class _Completion:
    """What both forms of a completion write from."""

    def __init__(
        self, style: CompletionStyle, names: TokenNames, calls: Sequence[GenerateCall]
    ) -> None:
        self._style = style
        self._names = names
        self._calls = calls
        self._tally = CompletionTally(calls)
        self._logprobs = [Logprobs(style, names) for _ in calls]


class CompletionStream(_Completion):
    """One streamed completion."""

    def __init__(
        self, style: CompletionStyle, names: TokenNames, calls: Sequence[GenerateCall]
    ) -> None:
        super().__init__(style, names, calls)
        self._begun: set[int] = set()
        self._head = _head(style)
        is_plain = style.logprobs is None and not (style.token_ids or style.running_usage)
        self.text_event = self._text_event if is_plain else None

    def events(self, chunk: GenerateChunk) -> Iterable[bytes]:
        """The events of one chunk. Raises RouterError where the worker gave up."""
        self._tally.add(chunk)
        index, text = chunk.sample, chunk.text
        is_new = index not in self._begun
        self._begun.add(index)
        if is_new and self._style.echo:
            text = echoed(self._calls[index], self._names) + text
        if text or chunk.output_ids or chunk.finish is not None:
            yield self._event(index, text, chunk, chunk.prompt if is_new else None)

    def _text_event(self, text: str, tokens: int) -> bytes:
        """Of a single choice."""
        self._tally.add_output(tokens)
        choice = {"index": 0, "text": text, "logprobs": None, **_ending(None)}
        return sse.event({**self._head, "choices": [choice]})

    def _event(self, index: int, text: str, chunk: GenerateChunk, prompt: Prompt | None) -> bytes:
        choice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs[index].of(chunk),
            **_ending(chunk.finish),
        }
        if self._style.token_ids:
            choice["token_ids"] = chunk.output_ids
            if prompt is not None:
                choice["prompt_token_ids"] = prompt.ids.tolist()
        payload: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._style.running_usage:
            payload["usage"] = self._tally.usage()
        return sse.event(payload)

    def closing(self) -> Iterable[bytes]:
        """The usage, where it is asked for."""
        if self._style.usage:
            yield sse.event({**self._head, "choices": [], "usage": self._tally.usage()})

    def failure(self, exc: RouterError) -> bytes:
        """An error after the first byte."""
        return sse.event(openai_error_object(exc))


class CompletionBody(_Completion):
    """One completion in one piece: the events of the stream, folded together."""

    def __init__(
        self, style: CompletionStyle, names: TokenNames, calls: Sequence[GenerateCall]
    ) -> None:
        super().__init__(style, names, calls)
        self._replies = [Reply() for _ in calls]
        self._given: list[list[dict[str, Any]]] = [[] for _ in calls]  # their logprobs

    def add(self, chunk: GenerateChunk) -> None:
        """Takes a chunk. Raises RouterError where the worker gave up."""
        self._tally.add(chunk)
        self._replies[chunk.sample].add(chunk)
        if (logprobs := self._logprobs[chunk.sample].of(chunk)) is not None:
            self._given[chunk.sample].append(logprobs)

    def body(self) -> bytes:
        """The JSON of the whole reply."""
        choices = [self._choice(index, reply) for index, reply in enumerate(self._replies)]
        return orjson.dumps(
            {**_head(self._style), "choices": choices, "usage": self._tally.usage()}
        )

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        text = reply.text
        if self._style.echo:
            text = echoed(self._calls[index], self._names) + text
        written = {
            "index": index,
            "text": text,
            "logprobs": _folded(self._given[index]),
            **_ending(reply.finish),
        }
        if self._style.token_ids and reply.prompt is not None:
            written["token_ids"] = reply.output_ids
            written["prompt_token_ids"] = reply.prompt.ids.tolist()
        return written


def echoed(call: GenerateCall, names: TokenNames) -> str:
    """The prompt as the client wrote it, or what its ids read."""
    if call.input_ids is None:
        return call.text or ""
    return b"".join(map(names.bytes_of, call.input_ids.tolist())).decode("utf-8", "replace")


def _folded(parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not parts:
        return None
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _head(style: CompletionStyle) -> dict[str, Any]:
    return {
        "id": style.id,
        "object": "text_completion",
        "created": style.created,
        "model": style.model,
        "system_fingerprint": None,
    }


def _ending(finish: Finish | None) -> dict[str, Any]:
    if finish is None:
        return {"finish_reason": None, "matched_stop": None}
    return {"finish_reason": finish.type, "matched_stop": finish.matched}
