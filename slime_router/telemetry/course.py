"""The course of one generation: when it began, waited, was sampled, and where.

What is noted for each token of a stream costs one call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from time import monotonic, time

from slime_router.telemetry.request_record import current_request

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
