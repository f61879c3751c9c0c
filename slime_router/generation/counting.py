"""Counts generations by how they went, and their tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType

from slime_router.generation.middleware import CallNext
from slime_router.types import GenerateCall, GenerateChunk


@dataclass(slots=True)
class GenerationCounts:
    """Generations by how their prompts were made, and their tokens; over all endpoints."""

    started: int = 0
    finished: int = 0
    failed: int = 0
    extended: int = 0
    branched: int = 0
    fresh: int = 0
    reused_tokens: int = 0
    encoded_tokens: int = 0
    output_tokens: int = 0


class Count:
    """Counts one generation, for the block."""

    __slots__ = ("_is_finished", "counts")

    def __init__(self, counts: GenerationCounts) -> None:
        self.counts = counts
        self._is_finished = False

    def __enter__(self) -> Count:
        self.counts.started += 1
        return self

    def add(self, chunk: GenerateChunk) -> None:
        """Counts a chunk on its way to the client."""
        counts = self.counts
        if chunk.prompt is not None:
            receipt = chunk.prompt.receipt
            setattr(counts, receipt.status, getattr(counts, receipt.status) + 1)
            counts.reused_tokens += receipt.reused
            counts.encoded_tokens += receipt.encoded
        counts.output_tokens += len(chunk.output_ids)
        if chunk.finish is not None:
            self._is_finished = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.counts.finished += self._is_finished
        self.counts.failed += not self._is_finished


class Counting:
    """Counts generations as clients see them: one, however often a plug-in asks again."""

    def __init__(self) -> None:
        self.chat = GenerationCounts()
        self.generate = GenerationCounts()

    def count(self, call: GenerateCall) -> Count:
        """Starts counting a generation."""
        return Count(self.generate if call.is_passed_on else self.chat)

    async def around(
        self, call: GenerateCall, call_next: CallNext
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The same as a middleware, to count outside the plug-ins."""
        with self.count(call) as count:
            async for chunk in call_next(call):
                count.add(chunk)
                yield chunk
