"""What takes the short way is what would have come the long one, however it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar

import orjson
import pytest
from aiohttp.client_proto import ResponseHandler
from hypothesis import given
from hypothesis import strategies as st

from slime_router.engine.chunks import ChunkReader
from slime_router.engine.connector import WorkerProtocol, whole_chunks
from slime_router.engine.masks import MaskPlan
from slime_router.engine.sse import EventSplitter
from slime_router.engine.wire.event_tap import EventTap
from slime_router.errors import RouterError
from slime_router.shortcut.shortcut import Shortcut, ShortcutFailed
from slime_router.types import GenerateChunk

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Never run: only what is called makes progress."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


class Nowhere(asyncio.Transport):
    """Where nothing is sent."""


@dataclass
class Outcome:
    """What a reader of chunks gets, without how it was cut."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    versions: list[Any] = field(default_factory=list)
    finish: Any = None
    failure: str = ""

    def add(self, chunk: GenerateChunk) -> None:
        self.ids += chunk.output_ids
        self.logprobs += chunk.logprobs or ()
        self.versions += [chunk.weight_version] * len(chunk.output_ids)
        self.finish = chunk.finish


class Sink(Protocol):
    """Where chunks go, and why no more come."""

    failure: str

    def add(self, chunk: GenerateChunk) -> None: ...


S = TypeVar("S", bound=Sink)


class Task(Generic[S]):
    """Reads an answer as the worker's client does, but only when it is run."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, shortcut: Shortcut[GenerateChunk] | None, outcome: S
    ):
        self.outcome = outcome
        self.protocol = WorkerProtocol(loop)
        self.protocol.connection_made(Nowhere())
        self.protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        self._shortcut = shortcut
        self._lines = EventSplitter()
        self._reader = ChunkReader(vocab_size=1000, with_logprobs=True)
        self._tap: EventTap | None = None
        self._is_over = False

    def run(self) -> None:
        """Reads what is there, and waits for more."""
        if self._is_over:
            return
        if self._tap is None:
            if not self.protocol._buffer:
                return
            _, self._content = self.protocol._buffer[0][0]
            self._tap = EventTap(
                self._shortcut or Shortcut(), self._content, self._lines, self._reader
            )
            if self._shortcut is not None:
                self._shortcut.made = self._reader.chunk_of
                self.protocol.tap = self._tap
        self._tap.is_waiting = False
        try:
            if data := self._content.read_nowait():
                for chunk in self._reader.feed(self._lines.feed(data)):
                    self.outcome.add(chunk)
            if self._reader.failure is not None:
                raise self._reader.failure
        except RouterError as exc:
            self.outcome.failure = str(exc)
        self._is_over = self._reader.is_finished or bool(self.outcome.failure)
        self._tap.is_waiting = not self._is_over


def item(ids: Sequence[int], start: int, end: int, more: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {
            "text": "é" * (end - start),
            "output_ids": ids[start:end],
            "meta_info": {
                "finish_reason": None,
                "prompt_tokens": 3,
                "weight_version": "v1",
                "output_token_logprobs": [[-0.5 - each, each, None] for each in ids[start:end]],
                "completion_tokens": end,
                **more,
            },
        }
    )


ODD: list[tuple[dict[str, Any], bytes]] = [  # what may happen to an item
    ({}, b"data: %b\n\n"),
    ({}, b"data:%b\r\n\r\n"),
    ({}, b": a sign of life\n\ndata: %b\n\n"),
    ({"weight_version": "v2"}, b"data: %b\n\n"),
    ({"completion_tokens": 1}, b"data: %b\n\n"),
    ({"finish_reason": {"type": "abort", "message": "m"}}, b"data: %b\n\n"),
    ({}, b'data: {"error": {"message": "no", "code": 503}}\n\n'),
    ({}, b"data: nothing\n\n"),
]


@st.composite
def answers(draw: st.DrawFn) -> list[bytes]:
    """What comes of an answer in each read."""
    ids = draw(st.lists(st.integers(0, 999), min_size=draw(st.sampled_from((8, 1))), max_size=14))
    is_cumulative = draw(st.booleans())
    odd_at = draw(st.integers(0, 3 * len(ids)))
    ends: Sequence[int] = range(1, len(ids) + 1)
    if draw(st.integers(0, 3)) == 3:  # several tokens at a time, or none
        ends = sorted([*draw(st.lists(st.integers(0, len(ids)))), len(ids)])
    events, start = [], 0
    for index, end in enumerate(ends):
        more, line = draw(st.sampled_from(ODD)) if index == odd_at else ODD[0]
        if index == len(ends) - 1 and not more:
            more = {"finish_reason": {"type": "length", "length": end}}
        made = item(ids, 0 if is_cumulative else start, end, more)
        events.append(line % made if b"%b" in line else line)
        start = end
    whole = b"".join(events)
    cuts = {0, len(whole)}
    for event in events:  # a chunk for each, but for some
        cuts.add(whole.find(event) + (len(event) if draw(st.integers(0, 9)) else 7))
    bounds = sorted(cuts)
    chunks = [b"%x\r\n%b\r\n" % (b - a, whole[a:b]) for a, b in pairwise(bounds)]
    if draw(st.booleans()):  # each by itself, as workers write them
        return [HEAD, *chunks, END]
    raw = HEAD + b"".join(chunks) + END
    at = sorted({0, len(raw), *draw(st.lists(st.integers(0, len(raw)), max_size=12))})
    return [raw[a:b] for a, b in pairwise(at)]


@given(reads=answers(), choices=st.lists(st.booleans(), max_size=40))
def test_all_that_comes_is_read_once_and_in_order(
    loop: asyncio.AbstractEventLoop, reads: list[bytes], choices: list[bool]
) -> None:
    slow = Task(loop, None, Outcome())
    for read in reads:
        slow.protocol.data_received(read)
        slow.run()

    left = iter(choices)
    shortcut: Shortcut[GenerateChunk] = Shortcut()
    fast = Task(loop, shortcut, Outcome())
    shortcut.is_clear = lambda: next(left, True)
    shortcut.takes = lambda _: next(left, True)
    shortcut.write = fast.outcome.add
    for read in reads:
        fast.protocol.data_received(read)
        if next(left, True):  # else more comes before it is its turn
            fast.run()
    fast.run()
    assert fast.outcome == slow.outcome


def test_most_of_a_stream_takes_it(loop: asyncio.AbstractEventLoop) -> None:
    taken: list[GenerateChunk] = []
    shortcut: Shortcut[GenerateChunk] = Shortcut()
    shortcut.is_clear, shortcut.takes, shortcut.write = lambda: True, lambda _: True, taken.append
    ids = list(range(20))
    for start_of, first in (lambda end: end - 1, 1), (lambda _: 0, 2):
        taken.clear()
        task = Task(loop, shortcut, Outcome())
        for end in range(1, 21):
            event = b"data: %b\n\n" % item(ids, start_of(end), end, {})
            chunk = b"%x\r\n%b\r\n" % (len(event), event)
            task.protocol.data_received(HEAD + chunk if end == 1 else chunk)
            task.run()
        assert [chunk.output_ids for chunk in taken] == [[each] for each in ids[first:]]


def test_what_comes_at_once_is_taken_as_one_chunk(loop: asyncio.AbstractEventLoop) -> None:
    """Also where it is the first that shows what kind of stream it is."""
    taken: list[GenerateChunk] = []
    shortcut: Shortcut[GenerateChunk] = Shortcut()
    shortcut.is_clear, shortcut.takes, shortcut.write = lambda: True, lambda _: True, taken.append
    ids = list(range(20))
    task = Task(loop, shortcut, Outcome())
    for ends in ([1], [2, 3], [4], [*range(5, 21)]):
        events = [chunked(b"data: %b\n\n" % item(ids, end - 1, end, {})) for end in ends]
        task.protocol.data_received((HEAD if ends == [1] else b"") + b"".join(events))
        task.run()
    assert [chunk.output_ids for chunk in taken] == [[1, 2], [3], ids[4:]]
    assert taken[2].logprobs == [-0.5 - each for each in ids[4:]]


@pytest.mark.parametrize(
    "second",
    [
        {"output_ids": []},
        {"output_ids": [0, 1]},
        {"output_ids": "1"},
        {"meta_info": None},
        {"more": 1},
    ],
)
def test_a_second_item_that_does_not_go_on_is_read_step_by_step(second: dict[str, Any]) -> None:
    reader = ChunkReader(vocab_size=1000, with_logprobs=True)
    reader.feed([item([0, 1], 0, 1, {})])
    usual = orjson.loads(item([0, 1], 1, 2, {}))
    assert reader.plain([orjson.dumps({**usual, **second})]) is None
    assert reader.plain([orjson.dumps(usual), b"[DONE]"]) is None
    assert [chunk.output_ids for chunk in reader.feed([orjson.dumps(usual)])] == [[1]]


@pytest.mark.parametrize("is_paused", [False, True])
def test_only_where_reading_was_paused_it_has_to_go_on(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, is_paused: bool
) -> None:
    """aiohttp's parser is not asked for more with each piece of a body that is read."""
    given: list[bytes] = []
    transport = Nowhere()
    monkeypatch.setattr(transport, "pause_reading", lambda: given.append(b"pause"), raising=False)
    monkeypatch.setattr(transport, "resume_reading", lambda: given.append(b"go on"), raising=False)
    protocol = WorkerProtocol(loop)
    protocol.connection_made(transport)
    protocol.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=8)
    take = ResponseHandler.data_received

    def noted(self: ResponseHandler, data: bytes) -> None:
        given.append(data)
        take(self, data)

    monkeypatch.setattr(ResponseHandler, "data_received", noted)
    text = b"a" * (64 if is_paused else 4)
    protocol.data_received(HEAD + chunked(text))
    _, content = protocol._buffer[0][0]
    assert content.read_nowait() == text
    protocol.data_received(END)
    assert content.at_eof()
    begun = [HEAD + chunked(text), *([b"pause", b"", b"go on"] if is_paused else [])]
    assert given == [*begun, END]


def test_what_has_to_wait_for_a_slow_client_is_read_once(loop: asyncio.AbstractEventLoop) -> None:
    """It was read already when the client turned out to be slow: it is read again, as new."""
    shortcut: Shortcut[GenerateChunk] = Shortcut()
    ids = list(range(20))
    for start_of in (lambda end: end - 1, lambda _: 0):
        task = Task(loop, shortcut, Outcome())
        shortcut.is_clear, shortcut.takes = lambda: False, lambda _: True
        for end in range(1, 21):
            event = b"data: %b\n\n" % item(ids, start_of(end), end, {})
            task.protocol.data_received((HEAD if end == 1 else b"") + chunked(event))
            task.run()
        assert task.outcome.ids == ids


@pytest.mark.parametrize("asks", [False, True])
def test_tokens_with_what_they_were_sampled_from_are_never_read_without_it(asks: bool) -> None:
    reader = ChunkReader(vocab_size=1000, with_logprobs=True, masks=MaskPlan(asks=asks))
    ids = [*range(5)]
    items = []
    for start, each in enumerate(ids):
        more = {"output_token_sampling_mask": [[each]], "output_token_sampling_logprobs": [0.0]}
        items.append(item(ids, start, start + 1, more if asks else {}))
    read = [chunk for each in items[:3] for chunk in reader.feed([each])]
    assert [chunk.masks for chunk in read] == ([[[0]], [[1]], [[2]]] if asks else [None] * 3)
    assert reader.tokens(items[3]) == (None if asks else ([3], [-3.5]))
    if asks:
        assert [chunk.masks for chunk in reader.feed([items[3]])] == [[[3]]]


@pytest.mark.parametrize("number", [2, 3])
def test_a_step_that_fails_fails_where_the_task_waits(
    loop: asyncio.AbstractEventLoop, number: int
) -> None:
    """The first that is taken, as a chunk, or the next one, as tokens; what follows is not."""
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if len(written) == number - 1:
            raise ValueError("a fault")

    shortcut: Shortcut[GenerateChunk] = Shortcut()
    shortcut.is_clear, shortcut.takes = lambda: True, lambda _: True
    shortcut.write = lambda _: write("a chunk")
    shortcut.has_texts, shortcut.said = True, lambda *_: "text"
    shortcut.write_text = lambda text, _: write(text)
    task = Task(loop, shortcut, Outcome())
    events = [item([*range(9)], end - 1, end, {}) for end in range(1, 7)]
    for index, event in enumerate(events):
        made = chunked(b"data: %b\n\n" % event)
        task.protocol.data_received(made if index else HEAD + made)
        if not index:
            task.run()
    with pytest.raises(ShortcutFailed) as failed:
        task.run()
    assert isinstance(failed.value.__cause__, ValueError)
    assert written == ["a chunk", "text"][: number - 1]


def test_an_event_that_has_not_come_whole_is_left_to_the_task(
    loop: asyncio.AbstractEventLoop,
) -> None:
    shortcut: Shortcut[GenerateChunk] = Shortcut()
    shortcut.is_clear, shortcut.takes = lambda: True, lambda _: True
    task = Task(loop, shortcut, Outcome())
    shortcut.write = task.outcome.add
    ids = [*range(5)]
    events = [b"data: %b\n\n" % item(ids, end - 1, end, {}) for end in range(1, 6)]
    half = len(events[3]) // 2
    for read in (
        HEAD + chunked(events[0]),
        chunked(events[1]),
        chunked(events[2]) + chunked(events[3][:half]),
        chunked(events[3][half:]),
        chunked(events[4]),
    ):
        task.protocol.data_received(read)
        task.run()
    assert (task.outcome.ids, task.outcome.failure) == (ids, "")


@pytest.mark.parametrize(
    ("data", "chunks"),
    [
        (b"", []),
        (b"1\r\na\r\n0A\r\n0123456789\r\n", [b"a", b"0123456789"]),
        (b"1\r\na\r\n2\r\nb", None),
        (b"1\r\nab\r\n", None),
        (b"1\r\na", None),
        (b"0\r\n\r\n", None),
        (b"+1\r\na\r\n", None),
        (b"1;x=y\r\na\r\n", None),
        (b"data: a\n\n", None),
    ],
)
def test_only_whole_chunks_are_seen_as_such(data: bytes, chunks: list[bytes] | None) -> None:
    assert whole_chunks(data, 0) == chunks


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
