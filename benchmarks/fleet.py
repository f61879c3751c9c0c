"""Simulated workers in virtual time: queues, prefill, batched decode, KV caches that evict.

A worker computes one prompt at a time, first come first served; while it does, nothing is decoded.
What it has computed stays until other blocks push it out, those used longest ago first. A request
starts when the tokens that it adds have room beside those of the running ones.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from benchmarks.traces import CACHE_BLOCK_LEN, Chat, Trace, Turn
from slime_router.pool.policy import Policy
from slime_router.pool.rank import Place
from slime_router.pool.worker import Need, Worker
from slime_router.values import value

NEVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class Engine:
    """What a worker can do; the figures are those of a model of 30 billion on one good GPU."""

    prefill_rate: float = 8_000.0  # tokens/s
    step_s: float = 0.012  # a token for each request of a batch of one
    step_growth_s: float = 0.0003  # for each further one
    kv_tokens: int = 150_000
    max_running: int = 128


class BlockCache:
    """An LRU cache of named blocks; a name stands for all tokens to the block's end."""

    def __init__(self, tokens: int) -> None:
        self._capacity = tokens // CACHE_BLOCK_LEN
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def held_len(self, blocks: Sequence[int]) -> int:
        held = self._blocks
        return CACHE_BLOCK_LEN * bisect_left(blocks, True, key=lambda block: block not in held)

    def add(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        self.trim()

    def trim(self) -> None:
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)


@value(frozen=True, slots=True, eq=False)
class Ask(Need):
    """A need that names the blocks of its prompt; the peers' models read them here."""

    blocks: Sequence[int] = ()


@dataclass(slots=True, eq=False)
class Request:
    """One turn on its way."""

    chat: Chat
    index: int
    came_s: float
    expected: int = 0  # tokens that the policy thinks will be computed
    added: int = 0  # tokens that it takes of the cache while it runs

    @property
    def turn(self) -> Turn:
        return self.chat.turns[self.index]

    def blocks(self, length: int) -> list[int]:
        return self.chat.blocks[: length // CACHE_BLOCK_LEN]


class Simulated:
    """One worker. Decoding is simulated in steps: all running requests get a token in each."""

    def __init__(self, state: Worker, engine: Engine) -> None:
        self.state = state
        self.computed = 0  # prompt tokens
        self.busy_s = 0.0  # request-seconds
        self._engine = engine
        self._cache = BlockCache(engine.kv_tokens)
        self._queue: deque[Request] = deque()
        self._prefilling: Request | None = None
        self._prefilled_s = NEVER_S
        self._running: list[tuple[float, int, Request]] = []  # by the step of their last token
        self._running_tokens = 0
        self._steps = 0.0
        self._now_s = 0.0
        self._order = count()

    def next_s(self) -> float:
        """When something happens here next."""
        if self._prefilling is not None:
            return self._prefilled_s
        if self._running:
            return self._now_s + (self._running[0][0] - self._steps) * self._step_s()
        return NEVER_S

    def put(self, request: Request, now_s: float) -> None:
        self._advance(now_s)
        self._queue.append(request)
        self._start_next()

    def happen(self, now_s: float) -> tuple[Request, bool]:
        """Does what `next_s` foretold: the request that it is about, and whether it has ended."""
        self._advance(now_s)
        request = self._prefilling
        has_ended = request is None
        if request is None:
            self._steps, _, request = heapq.heappop(self._running)
            self._running_tokens -= request.added
            self._cache.add(request.blocks(request.turn.end))
        else:
            self._prefilling = None
            self._cache.add(request.blocks(request.turn.prompt_len))
            last = self._steps + request.turn.end - request.turn.prompt_len
            heapq.heappush(self._running, (last, next(self._order), request))
        self._start_next()
        return request, has_ended

    def _advance(self, now_s: float) -> None:
        passed_s = now_s - self._now_s
        self.busy_s += passed_s * self.state.in_flight
        if self._prefilling is None and self._running:
            self._steps += passed_s / self._step_s()
        self._now_s = now_s

    def _step_s(self) -> float:
        return self._engine.step_s + self._engine.step_growth_s * (len(self._running) - 1)

    def _start_next(self) -> None:
        if self._prefilling is not None or not self._queue:
            return
        request = self._queue[0]
        computed = request.turn.prompt_len - self._cache.held_len(
            request.blocks(request.turn.prompt_len)
        )
        computed = max(computed, 1)  # the last token's logits are always computed
        added = computed + request.turn.end - request.turn.prompt_len
        has_room = self._running_tokens + added <= self._engine.kv_tokens
        if self._running and not (has_room and len(self._running) < self._engine.max_running):
            return
        self._queue.popleft()
        request.added = added
        self._running_tokens += added
        self.computed += computed
        self._prefilling = request
        self._prefilled_s = self._now_s + computed / self._engine.prefill_rate


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of a trace."""

    computed: int  # prompt tokens
    sent: int  # prompt tokens
    waits_s: list[float]  # of each request, to its first token; in order of length
    busy_s: list[float]  # request-seconds of each worker
    end_s: float

    @property
    def imbalance(self) -> float:
        """The busiest worker's requests over the mean; 1 is even."""
        return max(self.busy_s) * len(self.busy_s) / sum(self.busy_s)

    def wait_s(self, share: float) -> float:
        """So long, or less, `share` of the requests waited."""
        return self.waits_s[min(len(self.waits_s) - 1, int(share * len(self.waits_s)))]


class Fleet:
    """Plays a trace to simulated workers, as the pool would: through a policy."""

    def __init__(self, policy: Policy, size: int, engine: Engine) -> None:
        self._policy = policy
        states = [Worker(f"http://worker-{i}") for i in range(size)]
        for state in states:
            state.reported(kv_tokens=engine.kv_tokens)
        self._workers: dict[Place, Simulated] = {
            state: Simulated(state, engine) for state in states
        }
        self._states = states
        self._coming: list[tuple[float, int, Chat, int]] = []
        self._order = count()
        self._waits_s: list[float] = []
        self._sent = 0

    def play(self, trace: Trace) -> Outcome:
        """The whole trace; each turn comes a pause after the answer that it follows."""
        for chat in trace:
            self._come(chat, 0, 0.0)
        now_s = 0.0
        while True:
            worker = min(self._workers.values(), key=Simulated.next_s)
            worker_s = worker.next_s()
            if self._coming and self._coming[0][0] <= worker_s:
                now_s, _, chat, index = heapq.heappop(self._coming)
                self._send(chat, index, now_s)
            elif worker_s < NEVER_S:
                now_s = worker_s
                self._report(worker, *worker.happen(now_s), now_s)
            else:
                break
        busy_s = [worker.busy_s for worker in self._workers.values()]
        computed = sum(worker.computed for worker in self._workers.values())
        return Outcome(computed, self._sent, sorted(self._waits_s), busy_s, now_s)

    def _come(self, chat: Chat, index: int, now_s: float) -> None:
        if index < len(chat.turns):
            at_s = now_s + chat.turns[index].gap_s
            heapq.heappush(self._coming, (at_s, next(self._order), chat, index))

    def _send(self, chat: Chat, index: int, now_s: float) -> None:
        request = Request(chat, index, now_s)
        prompt_len = request.turn.prompt_len
        blocks = request.blocks(prompt_len)
        need = Ask(chat.transcript[:prompt_len], key=chat.key, blocks=blocks)
        state = self._policy.choose(self._states, need)
        worker = self._workers[state]
        worker.put(request, now_s)
        request.expected = self._policy.sent(state, need)
        state.leased(next(self._order), request.expected)
        self._sent += len(need.ids)

    def _report(self, worker: Simulated, request: Request, has_ended: bool, now_s: float) -> None:
        chat, index, state = request.chat, request.index, worker.state
        if not has_ended:
            state.computed(request.expected)
            self._waits_s.append(now_s - request.came_s)
            return
        state.returned()
        self._policy.held(state, "", chat.transcript[: request.turn.end])
        self._come(chat, index + 1, now_s)
        for after, branch in chat.branches:
            if after == index:
                self._come(branch, 0, now_s)
