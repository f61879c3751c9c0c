"""The recording middleware: every generation becomes a turn, whole or not at all.

It stands outside the caching and inside the plug-ins: it sees the prompt that was sent and the
tokens that were sampled, and no plug-in can change what it is told.

A turn is recorded before its last chunk goes up, so that the next turn finds it. When the client
leaves before it read that chunk, the turn stays and is marked undelivered.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count

from slime_router.chat.match import next_link, reply_keys
from slime_router.errors import Conflict
from slime_router.middleware.base import CallNext
from slime_router.trajectory.experts import RoutedExperts, decode
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Logprobs, Turn, logprob_array
from slime_router.types import (
    Capture,
    Finish,
    GenerateCall,
    GenerateChunk,
    Message,
    Prompt,
    Receipt,
    TokenIds,
    VersionSpan,
    WeightVersion,
    token_ids,
)

logger = logging.getLogger(__name__)

_LEFT = Finish("abort", message="the generation was cut short")


@dataclass(slots=True)
class RecordingCounts:
    """What recording did since the start."""

    turns: int = 0
    undelivered: int = 0
    empty: int = 0  # generations without a single token: nothing to record
    missing_logprobs: int = 0  # tokens
    rebased: int = 0  # turns whose base was dropped meanwhile: recorded with their whole prompt
    late: int = 0  # turns of a session that was closed or deleted meanwhile: not recorded
    hidden_calls: int = 0  # tool calls that clients were not shown, as they asked for one
    bad_routed_experts: int = 0  # turns whose routed experts could not be read


@dataclass(slots=True)
class _Draft:
    """What a generation has given so far."""

    prompt: Prompt | None = None
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    has_logprobs: bool = True
    text: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)  # id, name, arguments
    handles: list[str] = field(default_factory=list)  # ids of calls that no other turn has
    hidden_calls: int = 0
    receipt: Receipt | None = None  # where it says more than the prompt's
    versions: tuple[VersionSpan, ...] = ()  # as the worker says it
    version: WeightVersion | None = None  # of the chunk that came last
    observed: list[tuple[WeightVersion | None, int]] = field(default_factory=list)  # from where on
    experts: str | None = None
    experts_start: int = 0
    output: TokenIds | None = None

    def note(self, chunk: GenerateChunk) -> None:
        """Takes of a chunk what is said of it, whether or not it is recorded."""
        self.prompt = self.prompt or chunk.prompt
        self.hidden_calls += chunk.hidden_calls
        if chunk.finish is not None and self.hidden_calls and self.prompt is not None:
            calls = "call was" if self.hidden_calls == 1 else "calls were"
            note = f"{self.hidden_calls} tool {calls} not shown: parallel_tool_calls is false"
            receipt = self.prompt.receipt
            self.receipt = replace(receipt, notes=(*receipt.notes, note))
            chunk.receipt = self.receipt

    def add(self, chunk: GenerateChunk) -> None:
        if chunk.weight_version != self.version and chunk.output_ids:
            self.version = chunk.weight_version
            self.observed.append((self.version, len(self.output_ids)))
        self.output_ids += chunk.output_ids
        if chunk.logprobs is not None:
            self.logprobs += chunk.logprobs
        elif chunk.output_ids:
            self.has_logprobs = False
        self.text += chunk.text
        for delta in chunk.tool_calls:
            made = self.calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
            made["id"] += delta.id or ""
            made["name"] += delta.name or ""
            made["arguments"] += delta.arguments
            if delta.id and delta.has_random_id:
                self.handles.append(delta.id)
        self.versions = chunk.weight_versions or self.versions
        if chunk.finish is not None:
            self.experts, self.experts_start = chunk.routed_experts, chunk.routed_experts_start
            self.output = chunk.output

    def weight_versions(self) -> tuple[VersionSpan, ...]:
        ends = [*(start for _, start in self.observed[1:]), len(self.output_ids)]
        return self.versions or tuple(
            VersionSpan(version, start, end)
            for (version, start), end in zip(self.observed, ends, strict=False)
            if version is not None
        )

    def reply(self, prefix: str) -> Message:
        """The reply as a client has it; its reasoning is no part of what identifies it."""
        reply: Message = {"role": "assistant", "content": prefix + self.text}
        if self.calls:
            reply["tool_calls"] = [
                {
                    "id": made["id"],
                    "type": "function",
                    "function": {"name": made["name"], "arguments": made["arguments"]},
                }
                for made in self.calls.values()
            ]
        return reply

    def output_array(self) -> TokenIds:
        """The caching middleware has made one already, where it files the output."""
        return self.output if self.output is not None else token_ids(self.output_ids)


class RecordingMiddleware:
    """Records turns into the store."""

    def __init__(
        self,
        store: TrajectoryStore,
        *,
        capture: Capture,
        prints_call_ids: bool,
        epoch_of: Callable[[Iterable[WeightVersion]], int],
    ) -> None:
        self._store = store
        self._epoch_of = epoch_of
        self._capture = capture
        self._with_call_ids = prints_call_ids
        self._open: set[str] = set()  # turn ids of generations under way
        self.counts = RecordingCounts()

    async def __call__(
        self, call: GenerateCall, call_next: CallNext
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Middleware: see `middleware/base.py`."""
        call = self._own_turn(call)
        draft = _Draft()
        has_ended = is_read = False
        try:
            async for chunk in call_next(call):
                draft.note(chunk)
                if chunk.receipt is not None:
                    self._count_hidden(call, draft.hidden_calls)
                if self._capture != "off":
                    draft.add(chunk)
                    if chunk.finish is not None:
                        self._record(call, draft, chunk.finish)
                        has_ended = True
                yield chunk
                is_read = has_ended  # who asks for more has it all; a cancellation may come now
            is_read = True
        finally:
            self._open.discard(call.turn_id)
            if not has_ended:
                self._record(call, draft, _LEFT)
            if not is_read and call.turn_id in self._store:
                self.counts.undelivered += 1
                self._store.mark_undelivered(call.turn_id)

    def _count_hidden(self, call: GenerateCall, count: int) -> None:
        if not self.counts.hidden_calls:  # said once; the receipts and /metrics go on
            logger.warning("turn %s: calls behind the first are not shown", call.turn_id)
        self.counts.hidden_calls += count

    def _own_turn(self, call: GenerateCall) -> GenerateCall:
        """The call under a turn id of its own: a plug-in may ask several times.

        Another try is another request: for the trainer it is a retry of the one before.
        """
        turn_id, tries = call.turn_id, count(2)
        while turn_id in self._open or turn_id in self._store:
            turn_id = f"{call.turn_id}-{next(tries)}"
        self._open.add(turn_id)
        if turn_id == call.turn_id:
            return call
        return replace(call, turn_id=turn_id, request_id=turn_id)

    def _record(self, call: GenerateCall, draft: _Draft, finish: Finish) -> None:
        prompt = draft.prompt
        if prompt is None or not draft.output_ids:
            if finish is not _LEFT:
                self.counts.empty += 1
            return
        if call.session is not None and not self._store.sessions.is_current(call.session):
            self.counts.late += 1
            logger.warning("turn %s is not recorded: its session was deleted", call.turn_id)
            return
        base, base_len = prompt.base, prompt.base_len
        if base is not None and base not in self._store:
            self.counts.rebased += 1
            logger.warning(
                "the turn before %s was dropped: its tokens count as prompt", call.turn_id
            )
            base, base_len = None, 0
        versions = draft.weight_versions()
        turn = Turn(
            id=call.turn_id,
            base=base,
            base_len=base_len,
            prompt_ids=prompt.tail(base_len),
            output_ids=draft.output_array(),
            logprobs=self._logprobs(draft),
            weight_versions=versions,
            finish=finish,
            keys=self._keys(call, prompt, draft),
            spelling=self._spelling(prompt, draft),
            asked=prompt.messages_key,
            calls=tuple((made["id"], made["name"]) for made in draft.calls.values()),
            handles=tuple(draft.handles),
            session_id=call.session_id,
            scope=call.scope,
            date=prompt.date,
            request_id=call.request_id,
            receipt=draft.receipt or prompt.receipt,
            routed_experts=self._experts(call, prompt, draft, base),
            epoch=self._epoch_of(span.version for span in versions),
        )
        had_dropped = self._store.dropped_turns
        try:
            self._store.add(turn)
        except Conflict as exc:  # closed meanwhile
            self.counts.late += 1
            logger.warning("turn %s is not recorded: %s", call.turn_id, exc.message)
            return
        self.counts.turns += 1
        if not had_dropped and self._store.dropped_turns:  # said once; /metrics counts on
            logger.warning("the store is full: its oldest turns are dropped from now on")

    def _experts(
        self, call: GenerateCall, prompt: Prompt, draft: _Draft, base: str | None
    ) -> RoutedExperts | None:
        if draft.experts is None:
            return None
        before = self._store.get(base) if base is not None else None
        known = before.routed_experts if before is not None else None
        try:
            return decode(
                draft.experts,
                held_len=len(prompt.ids) + len(draft.output_ids),
                start=draft.experts_start,
                width=known.ids.shape[1] if known is not None else None,
            )
        except ValueError as exc:
            self.counts.bad_routed_experts += 1
            logger.warning("turn %s has no routed experts: %s", call.turn_id, exc)
            return None

    def _logprobs(self, draft: _Draft) -> Logprobs | None:
        if not draft.has_logprobs:
            return None
        missing = sum(value is None for value in draft.logprobs)
        if missing:
            self.counts.missing_logprobs += missing
            logger.warning("%d of %d logprobs are missing", missing, len(draft.logprobs))
        return logprob_array(draft.logprobs)

    def _spelling(self, prompt: Prompt, draft: _Draft) -> bytes:
        reply = draft.reply(prompt.reply_prefix)
        return next_link(b"", prompt.spelling, reply, with_call_ids=self._with_call_ids)[1]

    def _keys(self, call: GenerateCall, prompt: Prompt, draft: _Draft) -> tuple[bytes, ...]:
        if prompt.messages_key is None or call.native is not None:
            return ()
        reply = draft.reply(prompt.reply_prefix)
        return reply_keys(prompt.messages_key, reply, with_call_ids=self._with_call_ids)
