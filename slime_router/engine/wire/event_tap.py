"""Takes the plain events of one answer the short way: see `slime_router.shortcut`."""

from __future__ import annotations

from collections.abc import Sequence

import aiohttp

from slime_router.engine.chunks import ChunkReader
from slime_router.engine.connector import WorkerProtocol
from slime_router.engine.kept import Answer, read_some
from slime_router.engine.sse import BodyJoiner, EventSplitter
from slime_router.shortcut.shortcut import Shortcut, ShortcutFailed
from slime_router.types import GenerateChunk


class EventTap:
    """Takes an event where a task waits for it in `content`, and all before it was dealt with."""

    __slots__ = ("_content", "_goes_on", "_lines", "_reader", "_shortcut", "is_waiting")

    def __init__(
        self,
        shortcut: Shortcut[GenerateChunk],
        content: aiohttp.StreamReader,
        lines: EventSplitter | BodyJoiner,
        reader: ChunkReader,
    ) -> None:
        self.is_waiting = False  # the task, in `content`
        self._goes_on = False  # what came last was taken, and the task still waits
        self._shortcut = shortcut
        self._content = content
        self._lines = lines
        self._reader = reader

    async def read(self, answer: Answer) -> bytes:
        """`read_some`, where events may be taken while the task waits."""
        self.is_waiting = True
        data = await read_some(answer)
        self.is_waiting = False
        return data

    def take_event(self, payload: bytes) -> bool:
        """Takes the one event that came, if it goes on as the one before, which was taken."""
        if not self._goes_on:
            return False
        tokens = self._reader.tokens(payload)
        if tokens is None:
            return False
        ids, logprobs = tokens
        try:
            if self._shortcut.take_tokens(ids, logprobs):
                return True
        except ShortcutFailed as exc:
            self._fail(exc)
            return True
        self._reader.take_back(len(ids))
        return False

    def take(self, chunks: Sequence[bytes]) -> bool:
        """Takes the events that came, if all are plain, each in its own chunk."""
        if not self.is_waiting:
            return False
        payloads = [payload for payload in map(self._lines.only, chunks) if payload is not None]
        if len(payloads) < len(chunks) or (chunk := self._reader.plain(payloads)) is None:
            return False
        try:
            if self._shortcut.take(chunk):
                self._goes_on = self._shortcut.has_texts
                return True
        except ShortcutFailed as exc:
            self._fail(exc)
            return True
        self._reader.take_back(len(chunk.output_ids))
        return False

    def rest(self) -> None:
        """What comes next has to wait until the task has read what is in `content`."""
        self.is_waiting = self._goes_on = False

    def _fail(self, exc: ShortcutFailed) -> None:
        """The task, which waits, is to raise it; nothing is taken any more."""
        self._content.set_exception(exc)
        self.rest()


def tapped(
    answer: Answer,
    shortcut: Shortcut[GenerateChunk],
    lines: EventSplitter | BodyJoiner,
    reader: ChunkReader,
) -> EventTap:
    """The tap of an answer to a generation that has a short way."""
    protocol = answer.connection and answer.connection.protocol
    tap = EventTap(shortcut, answer.content, lines, reader)
    if isinstance(protocol, WorkerProtocol):
        shortcut.made = reader.chunk_of
        protocol.tap = tap
    return tap
