"""The clock of the loop in which a test runs: the test puts it forward, and waits for nothing."""

from __future__ import annotations

import asyncio


class Clock:
    """Made first of all in a test, so that whatever keeps the loop's clock keeps this one."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._plain = loop.time
        self._ahead_s = 0.0
        loop.time = self  # type: ignore[method-assign]

    def __call__(self) -> float:
        return self._plain() + self._ahead_s

    def put_forward(self, seconds: float) -> None:
        """Whatever waits for no longer than that is due in the loop's next round."""
        self._ahead_s += seconds
