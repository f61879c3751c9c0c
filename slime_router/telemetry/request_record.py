"""What is known of one request of a client, for whatever runs on its behalf.

The course of each generation too: when it began, waited, was sampled, and where. What is noted for
each token of a stream costs one call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from itertools import accumulate
from time import monotonic, time
from typing import Any, Literal, Protocol

from slime_router.values import value

ReceiptStatus = Literal["extended", "branched", "fresh"]


@value(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one generation of a request has ended. No texts: what it says goes to the log."""

    turn: str
    session: str | None = None  # as its owner calls it
    receipt: ReceiptStatus | None = None  # how its prompt was made; None: it never was
    prompt_tokens: int = 0
    reused_tokens: int = 0
    output_tokens: int = 0
    finish: str | None = None
    worker: str = ""  # the last one
    first_token_s: float | None = None


class Trace(Protocol):
    """The trace of one request; `slime_router.telemetry.tracing` has one."""

    def hop(self, worker_url: str) -> AbstractContextManager[dict[str, str]]:
        """For the block, a worker samples; gives the headers that it gets for the trace."""

    def end(self, fields: Mapping[str, Any]) -> None:
        """The request is answered; `fields` are those of its line in the log."""


class RequestRecord:
    """One request: its id as its client knows it, the door it came to, and by whose key.

    `door` is a path as the routing table has it, without a session before it. A request that joins
    the generation of an earlier try has that one's `id` and outcomes.
    """

    __slots__ = (
        "body", "door", "ending", "failure", "id", "is_joined", "keeps_body", "key", "outcomes",
        "tag", "trace",
    )  # fmt: skip

    def __init__(self, request_id: str, door: str) -> None:
        self.id = request_id
        self.door = door
        self.key = ""  # the key's name
        self.tag = ""  # before the rids that workers see
        self.is_joined = False
        self.keeps_body = False
        self.body: Mapping[str, Any] | None = None  # where it is kept for the log
        self.trace: Trace | None = None  # where traces are wanted
        self.ending = ""  # why it ended before its reply did: client_left or shutdown
        self.failure: Exception | None = None  # what its client was answered, if with an error
        self.outcomes: list[Outcome] = []  # one for each generation that got so far

    def __repr__(self) -> str:
        return f"<RequestRecord {self.id} {self.door}>"

    def join(self, earlier: RequestRecord) -> None:
        """Mark this request as another try of `earlier`."""
        self.id, self.outcomes, self.is_joined = earlier.id, earlier.outcomes, True


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def current_request() -> RequestRecord | None:
    """The request that this task works for; None outside of any."""
    return _CURRENT.get()


def enter_request(record: RequestRecord) -> None:
    """From now on this task, and what it starts, works for that request."""
    _CURRENT.set(record)


def keeps_body() -> bool:
    """Whether the log wants the body of the request that this task works for."""
    record = _CURRENT.get()
    return record is not None and record.keeps_body


def note_body(body: Mapping[str, Any]) -> None:
    """What the request that this task works for asks for, in case the log wants it."""
    record = _CURRENT.get()
    if record is not None and record.keeps_body:
        record.body = body


def note_failure(exc: Exception) -> None:
    """The request that this task works for is answered with an error."""
    record = _CURRENT.get()
    if record is not None:
        record.failure = exc


GAPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Times:
    """How many times were up to each of `bounds`, or longer, and their total; in seconds.

    A histogram of `prometheus_client` is this with a lock and a call for each part.
    """

    __slots__ = ("bounds", "counts", "total_s")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total_s = 0.0

    def __repr__(self) -> str:
        return f"<Times {sum(self.counts)} in {self.total_s:.3f} s>"

    def over(self) -> dict[float, int]:
        """How many were longer than each bound."""
        total = sum(self.counts)
        up_to = accumulate(self.counts)
        return {bound: total - count for bound, count in zip(self.bounds, up_to, strict=False)}

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_s += seconds


class Course:
    """What happened when, in seconds since the generation began.

    Tokens after the first add to `gaps`; those that come together share the time since the ones
    before. `clock` only goes forward; `now` is the time of day, in
    seconds of Unix time.
    """

    __slots__ = (
        "_began",
        "_clock",
        "_gaps",
        "_last",
        "_worker",
        "admitted_s",
        "first_token_s",
        "prompted_s",
        "request",
        "started",
        "workers",
    )

    def __init__(
        self,
        gaps: Times | None = None,
        *,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], float] = time,
    ) -> None:
        self._gaps = gaps or Times(GAPS)
        self._clock = clock
        self._began = clock()
        self._worker = ""
        self._last = 0.0  # when the last token came
        self.request = current_request()  # that it began for; another one may read its end
        self.started = now()
        self.admitted_s: float | None = None  # it had a slot
        self.prompted_s: float | None = None  # its prompt was made
        self.first_token_s: float | None = None
        self.workers: tuple[str, ...] = ()  # their URLs, each time that another one went on

    def __repr__(self) -> str:
        return f"<Course {self.elapsed_s():.3f} s, {' '.join(self.workers) or 'no worker'}>"

    def elapsed_s(self) -> float:
        """How long it has taken so far."""
        return self._clock() - self._began

    def admitted(self) -> None:
        """The generation has got a slot."""
        self.admitted_s = self._clock() - self._began

    def prompted(self) -> None:
        """The prompt is made."""
        self.prompted_s = self._clock() - self._began

    @property
    def prompt_s(self) -> float:
        """How long its prompt took to make; 0 before that."""
        return 0.0 if self.prompted_s is None else self.prompted_s - (self.admitted_s or 0.0)

    def sampled(self, worker_url: str, tokens: int) -> None:
        """Tokens came from a worker, all at once. It is called for each token of a stream."""
        now = self._clock()
        if self.first_token_s is None:
            self.first_token_s = now - self._began
        else:
            gap_s = now - self._last
            self._gaps.counts[bisect_left(GAPS, gap_s / tokens)] += tokens
            self._gaps.total_s += gap_s
        self._last = now
        if worker_url != self._worker:
            self._worker = worker_url
            self.workers += (worker_url,)

    def went_on(self, tokens: int) -> None:
        """The same of tokens after others from the same worker."""
        now = self._clock()
        gap_s, gaps = now - self._last, self._gaps
        gaps.counts[bisect_left(GAPS, gap_s / tokens)] += tokens
        gaps.total_s += gap_s
        self._last = now
