"""What a worker's failures lead to. Pure: the time is passed in, in seconds of any clock that never
goes back.

The circuit breaker: after too many failures the worker is left alone for a while.

    closed --failure_threshold failures in a row, within window_s--> open
    open --after open_s--> half open: one request at a time is let through
    half open --success_threshold successes--> closed; --a failure--> open

The cooldown: others are asked first for some time, but a spared worker still serves if there is no
other. It cannot be switched off: whatever else is configured, a worker that keeps failing is asked
less and less often.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

from slime_router.pool.backoff import Backoff

State: TypeAlias = Literal["closed", "open", "half_open"]

BUSY_S = 1.0  # spared, after it said that it is busy, or shuts down


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When a breaker opens and closes; the defaults are those of sglang-router."""

    is_enabled: bool = True
    failure_threshold: int = 10
    success_threshold: int = 3
    open_s: float = 60.0
    window_s: float = 120.0


class Breaker:
    """Counts how a worker's requests end, and decides whether it may have another."""

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._failures: deque[float] = deque(maxlen=settings.failure_threshold)
        self._opened_at: float | None = None
        self._successes = 0  # since it became half open
        self._trials = 0  # requests in progress while it is half open

    def __repr__(self) -> str:
        return f"<Breaker {'closed' if self._opened_at is None else 'open'}>"

    def state(self, now: float) -> State:
        """The state at `now`."""
        if self._opened_at is None:
            return "closed"
        return "open" if now < self._opened_at + self._settings.open_s else "half_open"

    def tries_in_s(self, now: float) -> float:
        """Seconds until it lets a request through again, as far as that depends on time."""
        return 0.0 if self._opened_at is None else self._opened_at + self._settings.open_s - now

    def allows(self, now: float) -> bool:
        """Whether the worker may have another request."""
        if self._opened_at is None:
            return True
        return self.state(now) == "half_open" and not self._trials

    def begin(self, now: float) -> bool:
        """A request goes to the worker; returns whether it is a trial, which has to `end_trial`."""
        if self._opened_at is None:
            return False
        is_trial = self.state(now) == "half_open"
        self._trials += is_trial
        return is_trial

    def end_trial(self) -> None:
        """A trial has ended, one way or another."""
        self._trials -= 1

    def succeeded(self, now: float) -> None:
        """The worker answered, if only to say that the request was wrong."""
        if self._opened_at is None:
            self._failures.clear()
        elif self.state(now) == "half_open":
            self._successes += 1
            if self._successes >= self._settings.success_threshold:
                self.close()

    def failed(self, now: float) -> None:
        """The worker failed a request."""
        if not self._settings.is_enabled:
            return
        state = self.state(now)
        self._failures.append(now)
        first = self._failures[0]
        is_full = len(self._failures) == self._settings.failure_threshold
        if state == "half_open" or (
            state == "closed" and is_full and now - first <= self._settings.window_s
        ):
            self._opened_at = now
            self._successes = 0

    def close(self) -> None:
        """Forget all failures: the worker was restarted, or has proven itself."""
        self._failures.clear()
        self._opened_at = None


class Cooldown:
    """The time until one worker is asked again; it grows with failures in a row."""

    __slots__ = ("_backoff", "_failed_until", "_failures", "_spared_until")

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._failed_until = self._spared_until = float("-inf")

    def __repr__(self) -> str:
        return f"<Cooldown after {self._failures} failures>"

    def failed(self, now: float) -> None:
        """The worker failed a request. Failures of concurrent requests count once."""
        if now < self._failed_until:
            return
        self._failed_until = now + self._backoff.delay_s(self._failures, _middle)
        self._failures += 1
        self._spared_until = max(self._spared_until, self._failed_until)

    def busy(self, now: float) -> None:
        """The worker takes no new requests at the moment."""
        self._spared_until = max(self._spared_until, now + BUSY_S)

    def succeeded(self) -> None:
        """The worker served a request: forget earlier failures."""
        self._failures = 0
        self._failed_until = self._spared_until = float("-inf")

    def spares(self, now: float) -> bool:
        """Whether others are asked first."""
        return now < self._spared_until

    def left_s(self, now: float) -> float:
        """How long a request that has failed before must wait before it is tried there."""
        return max(self._failed_until - now, 0.0)


def _middle() -> float:
    return 0.5
