"""Where the changes of a store go, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from slime_router.journal.database import Made


class Sink(Protocol):
    """Takes changes in order; `slime_router.journal.writer` does."""

    def put(self, made: Made) -> None:
        """Write this change after those that were put before."""

    @property
    def position(self) -> int:
        """How many changes were put, in all."""

    def has_written(self, position: int) -> bool:
        """Whether what was put up to there is durable."""


class Tap:
    """Shut while a store takes over what is written already."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.is_shut = False

    def put(self, made: Made) -> None:
        """Pass a change on."""
        if not self.is_shut:
            self._sink.put(made)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Nothing passes during the block."""
        self.is_shut = True
        try:
            yield
        finally:
            self.is_shut = False
