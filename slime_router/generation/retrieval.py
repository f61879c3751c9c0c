"""Retrieval: the tokens of a text or of messages, with what training needs for each.

Reads the cache and the store but writes nothing: a guess never becomes a fact.
"""

from __future__ import annotations

import numpy as np

from slime_router.cache.node import Node
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.generation.prompts.made_prompt import MadePrompt
from slime_router.generation.prompts.prompt_maker import PromptMaker
from slime_router.generation.sessions import in_session
from slime_router.journal.fetching import Fetch
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Trace
from slime_router.types import GenerateCall, TokenIds, WeightVersion


class Retriever:
    """Finds traces by text and by messages."""

    def __init__(
        self,
        maker: PromptMaker,
        cache: PrefixCache,
        store: TrajectoryStore,
        tokenizer: Tokenizer,
        fetch: Fetch,
    ) -> None:
        self._maker = maker
        self._cache = cache
        self._store = store
        self._tokenizer = tokenizer
        self._fetch = fetch

    async def by_text(self, call: GenerateCall) -> tuple[Trace, int]:
        """The trace of the most recent path that spells the call's text, and how many paths do.

        What is not cached is encoded. A named session finds its own.
        """
        with await self._fetch.of_call(call):
            call = in_session(call, self._store)
            place = call.scope, call.text or "", call.session_id
            node = self._cache.match_text(*place)
            if node is None:
                return await self._of_call(call), 0
            trace = self._of_path(node, node.path_ids(), call.session_id)
            return trace, self._cache.count_text(*place)

    async def by_messages(self, call: GenerateCall) -> tuple[Trace, str]:
        """The trace of a conversation, and its text.

        If its last message is the reply of a recorded turn and no new reply is requested, the trace
        is exactly what the turn holds: prompt and output, bit for bit.
        """
        with await self._fetch.of_call(call):
            trace = await self._of_messages(in_session(call, self._store))
        return trace, self._tokenizer.decode(trace.ids.tolist(), skip_special_tokens=False)

    async def _of_messages(self, call: GenerateCall) -> Trace:
        talk = self._maker.recognise(call)
        is_whole = talk.turn is not None and talk.reply_index == len(talk.messages) - 1
        if talk.turn is not None and is_whole and not call.template.add_generation_prompt:
            return self._store.trace(talk.turn.id)
        return await self._of_call(call)

    async def _of_call(self, call: GenerateCall) -> Trace:
        prompt = await self._maker.make(call)
        try:
            return self._of_prompt(prompt)
        finally:
            self._maker.release(prompt)

    def _of_prompt(self, prompt: MadePrompt) -> Trace:
        if prompt.base is not None and prompt.base_len == prompt.receipt.reused:
            return _padded(self._store.trace(prompt.base, prompt.base_len), prompt.ids)
        if prompt.node is None:
            return _padded(_unsampled(prompt.ids[:0]), prompt.ids)
        return self._of_path(prompt.node, prompt.ids, None)

    def _of_path(self, node: Node, ids: TokenIds, session_id: str | None) -> Trace:
        """Loss mask, logprobs and versions of a cached path; `ids` starts with the path's ids.

        Turns of a named session are preferred to others that sampled the same tokens.
        """
        trace = _unsampled(ids)
        versions = list(trace.weight_versions)
        for step in self._cache.path(node):
            if not step.is_sampled:
                continue
            start = step.end - len(step.ids)
            trace.loss_mask[start : step.end] = 1
            turn = self._store.get(step.turn) if step.turn is not None else None
            if turn is None:
                continue
            offset = start - (turn.held_len - len(turn.output_ids))  # into the turn's output
            run = slice(offset, offset + len(step.ids))
            if offset < 0 or not np.array_equal(turn.output_ids[run], step.ids):
                continue
            if turn.logprobs is not None:
                trace.logprobs[start : step.end] = turn.logprobs[run]
            versions[start : step.end] = turn.output_versions()[run]
        found = Trace(ids, trace.loss_mask, trace.logprobs, tuple(versions))
        if session_id is None:
            return found
        own = self._store.deepest_prefix(ids, session_id, node.scope)
        return found if own is None else _overlaid(found, self._store.trace(own.id))


def _unsampled(ids: TokenIds) -> Trace:
    none: tuple[WeightVersion | None, ...] = (None,) * len(ids)
    return Trace(ids, np.zeros(len(ids), np.int8), np.full(len(ids), np.nan), none)


def _padded(trace: Trace, ids: TokenIds) -> Trace:
    """`trace` with the rest of `ids` appended as tokens that were not sampled."""
    rest = _unsampled(ids[len(trace.ids) :])
    return Trace(
        ids,
        np.concatenate((trace.loss_mask, rest.loss_mask)),
        np.concatenate((trace.logprobs, rest.logprobs)),
        trace.weight_versions + rest.weight_versions,
    )


def _overlaid(trace: Trace, first: Trace) -> Trace:
    """`trace` with what `first` says of its first tokens, which are the same."""
    rest = slice(len(first.ids), None)
    return Trace(
        trace.ids,
        np.concatenate((first.loss_mask, trace.loss_mask[rest])),
        np.concatenate((first.logprobs, trace.logprobs[rest])),
        first.weight_versions + trace.weight_versions[rest],
    )
