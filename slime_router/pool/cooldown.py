"""How long a worker is spared after it failed or refused a request. Pure: the time is passed in.

A spared worker still serves if there is no other. Unlike a circuit breaker it cannot be switched
off: whatever else is configured, a worker that keeps failing is asked less and less often.
"""

from __future__ import annotations

from slime_router.pool.backoff import Backoff

BUSY_S = 1.0  # after it said that it is busy, or shuts down


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
