"""The fake worker's engine: running generations, token by token, without a model or HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from slime_router.testing.flat_tops import flat_tops, lays_flat
from slime_router.testing.masks import mask_fields, mask_refusal
from slime_router.testing.pictures import Sight
from slime_router.testing.script import (
    Performance,
    Refusal,
    Script,
    aborted,
    check,
    echo,
    parts,
    perform,
)

Item = dict[str, Any]


@dataclass(slots=True, eq=False)
class PlayedRun:
    """A running generation: `count` tokens are sampled, `sent` of them were handed out."""

    rid: str
    heard: Performance
    cached: int
    params: Item
    spans: list[Item] = field(default_factory=list)  # which weights sampled which tokens so far
    count: int = 0
    sent: int = 0
    is_aborted: bool = False
    is_done: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def sample(self, count: int, version: str | int) -> None:
        """There are `count` tokens now; the new ones come from these weights."""
        if self.spans and self.spans[-1]["version"] == version:
            self.spans[-1]["end"] = count
        else:
            self.spans.append({"version": version, "start": self.count, "end": count})
        self.count = count


@dataclass(slots=True, kw_only=True)
class Engine:
    """Plays scripts. The fields are the settings of `FakeWorker`, which documents them."""

    decode: Callable[[Sequence[int]], str]
    vocab_size: int
    context_len: int
    eos_ids: tuple[int, ...]
    incremental: bool
    chunk_tokens: int
    echo_len: int
    reply: Callable[[Item], Script] | None
    weight_version: str | int
    scripts: deque[Script] = field(default_factory=deque)
    runs: dict[str, PlayedRun] = field(default_factory=dict)
    held_after: int | None = None  # tokens; None when nothing is held
    seen: list[list[int]] = field(default_factory=list)  # what the prefix cache holds
    is_paused: bool = False
    mask_cap: int | None = None  # None: it has not heard of sampling masks
    lays_tops_flat: bool = True  # where it is asked to; older workers nest them
    preferred: Item = field(default_factory=dict)  # sampling parameters beneath those of requests
    sight: Sight | None = None  # None: it sees no pictures

    def start(self, body: Item, ids: Any) -> list[PlayedRun]:
        """Begins every generation that a request asks for, or none.

        Raises:
            Refusal: what a worker refuses.
        """
        several = list(parts(body, ids))
        given = body.get("rid")
        rids = given if isinstance(given, list) else [given]
        if len(rids) != len(several):
            rids = [None] * len(several)  # SGLang makes its own for n > 1
        for rid, (prompt, params) in zip(rids, several, strict=True):
            check(prompt, params, self.context_len)
            if self.lays_tops_flat and body.get("stream") and lays_flat(body):
                raise Refusal({"error": {"message": "flat top logprobs do not support stream"}})
            if self.mask_cap is not None:
                refusal = mask_refusal(body, {**self.preferred, **params}, self.mask_cap)
                if refusal is not None:
                    raise refusal
            if rid in self.runs:
                raise Refusal({"error": {"message": f"Duplicate request ID detected: {rid}"}})
        runs = [
            PlayedRun(
                rid or uuid4().hex,
                self._perform(body, prompt, params),
                self._cached(prompt),
                {**self.preferred, **params},
            )
            for rid, (prompt, params) in zip(rids, several, strict=True)
        ]
        self.runs.update((run.rid, run) for run in runs)
        return runs

    def drop(self, runs: Sequence[PlayedRun]) -> None:
        """Forgets generations that nobody waits for any longer."""
        for run in runs:
            if self.runs.get(run.rid) is run:
                del self.runs[run.rid]

    def abort(self, rid: str) -> None:
        """Ends the generation `rid`, if there is one, and as in SGLang all whose rid begins so."""
        for name, run in self.runs.items() if rid in self.runs else ():
            if name.startswith(rid):
                run.is_aborted = True
                run.woken.set()

    def pause(self, mode: str) -> None:
        """Samples nothing until `go_on`; with mode `abort` what runs now ends."""
        self.is_paused = True
        for rid in list(self.runs) if mode == "abort" else ():
            self.abort(rid)

    def go_on(self) -> None:
        """The end of a pause."""
        self.is_paused = False
        self._wake()

    def release(self) -> None:
        """Lets all held generations continue."""
        self.held_after = None
        self._wake()

    def _wake(self) -> None:
        for run in self.runs.values():
            run.woken.set()

    async def next_item(self, run: PlayedRun, body: Item, *, is_whole: bool = False) -> Item | None:
        """What comes next of `run` (all of it, for `is_whole`); None after its end."""
        total = len(run.heard.ids)
        while not run.is_done:
            await self._wait(run)
            if run.is_aborted or run.count >= total:
                return self._end(run, body, is_whole=is_whole)
            run.sample(min(run.count + self.chunk_tokens, total), self.weight_version)
            if run.count < total and not is_whole:
                return self._item(run, body, None)
        return None

    async def _wait(self, run: PlayedRun) -> None:
        await asyncio.sleep(0)
        while not run.is_aborted and self._is_stopped(run):
            run.woken.clear()
            await run.woken.wait()

    def runs_steadily(self, count: int) -> bool:
        """Whether it runs that many, each stopped if runs are held: none samples one more."""
        if len(self.runs) != count:
            return False
        return self.held_after is None or all(self._is_stopped(run) for run in self.runs.values())

    def _is_stopped(self, run: PlayedRun) -> bool:
        return self.is_paused or (self.held_after is not None and run.count >= self.held_after)

    def _end(self, run: PlayedRun, body: Item, *, is_whole: bool) -> Item:
        finish = run.heard.finish
        if run.is_aborted:
            waiting = {"type": "abort", "message": "Abort in waiting queue"}
            finish = aborted("Aborted") if run.count else waiting
        run.is_done = True
        run.sent = 0 if is_whole else run.sent
        self.drop([run])
        # The last token was sampled but not computed: its cache entry would come with the next.
        self.seen.append(run.heard.prompt + run.heard.ids[: run.count - 1])
        return self._item(run, body, finish)

    def _perform(self, body: Item, prompt: Sequence[int], params: Item) -> Performance:
        if self.scripts:
            script = self.scripts.popleft()
        elif self.reply is not None:
            script = self.reply(body)
        else:
            script = echo(prompt, self.vocab_size, self.eos_ids, self.echo_len)
        return perform(
            script,
            prompt,
            params,
            context_len=self.context_len,
            eos_ids=self.eos_ids,
            decode=self.decode,
        )

    def _item(self, run: PlayedRun, body: Item, finish: Item | None) -> Item:
        heard, count = run.heard, run.count
        begin = run.sent if self.incremental else 0
        meta: Item = {
            "id": run.rid,
            "finish_reason": finish,
            "prompt_tokens": len(heard.prompt),
            "weight_version": self.weight_version,
            "completion_tokens": count,
            "cached_tokens": run.cached,
        }
        if self.sight is not None:
            meta |= self.sight.says(heard.prompt, body)
        if run.is_aborted and not count:  # it never left the queue
            del meta["prompt_tokens"], meta["cached_tokens"]
        if body.get("return_logprob"):
            top = body.get("top_logprobs_num") or 0
            meta |= _logprobs(heard, begin, count)
            if top:
                tops = [
                    [[logprob, (token + rank) % self.vocab_size, None] for rank in range(top)]
                    for logprob, token, _ in meta["output_token_logprobs"]
                ]
                is_flat = self.lays_tops_flat and finish is not None and lays_flat(body)
                meta |= flat_tops(tops, top) if is_flat else {"output_top_logprobs": tops}
            start = body.get("logprob_start_len")
            meta |= _input_logprobs(heard.prompt, start, top, self.vocab_size)
        if self.mask_cap is not None and count:
            sampled = heard.ids[:count]
            size = self.vocab_size
            meta |= mask_fields(body, run.params, sampled, begin=begin, vocab_size=size)
        if finish is not None:
            meta |= {"weight_versions": run.spans, **heard.meta}
        text = heard.text(count, self.decode)
        if self.incremental:
            text = text[len(heard.text(run.sent, self.decode)) :]
        run.sent = count
        item: Item = {"text": text, "output_ids": heard.ids[begin:count], "meta_info": meta}
        if self.sight is not None and body.get("return_prompt_token_ids"):
            item["prompt_token_ids"] = self.sight.prompt(heard.prompt)
        return item

    def _cached(self, prompt: Sequence[int]) -> int:
        longest = max((_common_len(prompt, seen) for seen in self.seen), default=0)
        return min(longest, len(prompt) - 1)


def _logprobs(heard: Performance, begin: int, end: int) -> Item:
    entries: list[list[Any]] = [
        [logprob, token, None]
        for logprob, token in zip(heard.logprobs[begin:end], heard.ids[begin:end], strict=False)
    ]
    return {"output_token_logprobs": entries, "output_token_logprobs_length": end}


def _input_logprobs(prompt: Sequence[int], start: int | None, top: int, vocab_size: int) -> Item:
    """The logprobs of the prompt from `start` on (None, -1: none); the first token has none.

    As in SGLang, the last id of the vocabulary is written as 0.
    """
    begin = len(prompt) if start in (None, -1) else int(start or 0)
    entries: list[list[Any]] = [
        [-0.25 * (n % 8 + 1) if n > begin else None, token % (vocab_size - 1), None]
        for n, token in enumerate(prompt)
    ][begin:]
    fields: Item = {"input_token_logprobs": entries}
    if top:
        fields["input_top_logprobs"] = [
            None
            if logprob is None
            else [[logprob - rank, (token + rank) % vocab_size, None] for rank in range(top)]
            for logprob, token, _ in entries
        ]
    return fields


def _common_len(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (x, y) in pairs if x != y), min(len(a), len(b)))
