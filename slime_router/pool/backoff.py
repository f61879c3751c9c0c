"""How long to wait before a request is tried again, and how often. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Growing delays; the defaults are those of sglang-router.

    Attributes:
        max_retries: tries after the first one.
        initial_s: delay before the first retry.
        factor: each further delay is this many times longer.
        max_s: the longest delay, before jitter.
        jitter: a delay is longer or shorter by up to this share, to spread out retries.
    """

    max_retries: int = 5
    initial_s: float = 0.05
    factor: float = 1.5
    max_s: float = 30.0
    jitter: float = 0.2

    def delay_s(self, retry: int, random: Callable[[], float]) -> float:
        """Seconds before retry number `retry`, from 0; `random()` is in [0, 1)."""
        whole = min(self.initial_s * self.factor ** min(retry, 64), self.max_s)
        return whole * (1 + self.jitter * (2 * random() - 1))
