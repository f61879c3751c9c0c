"""The circuit breaker of one worker: too many failures, and it is left alone for a while.

    closed --failure_threshold failures in a row, within window_s--> open
    open --after open_s--> half open: one request at a time is let through
    half open --success_threshold successes--> closed; --a failure--> open

Pure: the time is passed in, in seconds of any clock that never goes back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["closed", "open", "half_open"]


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
