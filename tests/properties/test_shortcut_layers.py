"""Past the generators, too, a stream is as on the long way: what is said, recorded, counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.api.anthropic.events import MessageStyle
from slime_router.api.anthropic.reply import MessageStream
from slime_router.api.chat.reply import ChatStream, ChatStyle
from slime_router.api.completions.reply import CompletionStream
from slime_router.api.completions.request import CompletionStyle
from slime_router.api.delivery import _open_shortcut
from slime_router.api.dialect import StreamedReply
from slime_router.api.responses.events import ResponseStyle
from slime_router.api.responses.reply import ResponseStream
from slime_router.api.sse import EventStream
from slime_router.api.token_ids import TokenNames
from slime_router.failover.stitch import Stitch
from slime_router.generation.caching import Cacher, Filing
from slime_router.generation.counting import Count, GenerationCounts
from slime_router.generation.pipeline import _Reading
from slime_router.generation.prompts.made_prompt import MadePrompt
from slime_router.generation.weight_versions import WeightVersions
from slime_router.replies.detectors import ReasoningDetector
from slime_router.replies.parser import ReplyParser, ReplyReader
from slime_router.replies.pieces import Marks
from slime_router.replies.reply import Reply
from slime_router.shortcut.shortcut import Shortcut
from slime_router.telemetry.request_record import GAPS, Course, Times
from slime_router.tokens.decoder import Decoder, TokenBytes
from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import GenerateCall, GenerateChunk, Receipt, Sampling, token_ids
from tests.properties.test_shortcut import END, HEAD, Task, answers, chunked, item

# What an id spells, by its remainder: whole and broken characters, marks, and beginnings of stops.
PARTS = (b"a", b"bc", b"\xc3", b"\xa9", b"<", b"", b"\xf0\x9f\x98", b"\x80 c", b">", b"c", b"\n")
PROMPT = MadePrompt(ids=token_ids([1, 2, 3]), receipt=Receipt("fresh", 0, 3, "t", ""))
CALL = GenerateCall(rid="r", turn_id="t", text="hi", prompt=PROMPT, stream=True)
NAMES = TokenNames(SimpleNamespace(token_bytes=lambda i: PARTS[i % len(PARTS)]))


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Never run: only what is called makes progress."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


class Table(dict[int, bytes]):
    def __missing__(self, token_id: int) -> bytes:
        return PARTS[token_id % len(PARTS)]


class Thinking:
    """Reasons up to a `>`, and again after a `<`; a parser as SGLang has them."""

    think_start_token, think_end_token, think_start_self_label = "<", ">", ""

    def __init__(self) -> None:
        self.detector = self
        self._buffer, self._in_reasoning = "", True

    def parse_stream_chunk(self, text: str) -> tuple[str, str]:
        said = {True: "", False: ""}
        for letter in text:
            if letter in "<>":
                self._in_reasoning = letter == "<"
            else:
                said[self._in_reasoning] += letter
        return said[True], said[False]

    def parse_stream_end(self) -> tuple[str, str]:
        return "", ""


def chat(**fields: Any) -> ChatStream:
    return ChatStream(ChatStyle(model="m", usage=True, **fields), "c", 1, NAMES)


def completion(**fields: Any) -> CompletionStream:
    style = CompletionStyle(id="c", created=1, model="m", usage=True, **fields)
    return CompletionStream(style, NAMES, [CALL])


def response() -> ResponseStream:
    return ResponseStream(ResponseStyle("r", 1, lambda: 1.0, {}, {}, {}), lambda *_: None)


STREAMS: dict[str, Callable[[], StreamedReply]] = {
    "chat": chat,
    "chat, logprobs": lambda: chat(logprobs=True),
    "completions": completion,
    "completions, ids": lambda: completion(token_ids=True),
    "messages": lambda: MessageStream(MessageStyle("m", "m"), "q"),
    "responses": response,
}


class Layers:
    """The steps of one generation after its worker, and what they made of it."""

    def __init__(self, stream: StreamedReply, has_parser: bool, stops: Sequence[str]) -> None:
        self.failure = ""
        self.reply, self.written = Reply(), bytearray()
        self.stream = stream
        self.counts, self.now = GenerationCounts(), 0.0
        self.gaps = Times(GAPS)
        self.course = Course(self.gaps, clock=lambda: self.now)
        parser = ReplyParser(ReasoningDetector(Thinking), None, None, marks=Marks("<>"))
        visible = VisibleText(Decoder(cast(TokenBytes, Table())), Sampling(stop=tuple(stops)))
        reader = ReplyReader(visible, parser if has_parser else None)
        cacher = cast(Cacher, SimpleNamespace(weights=WeightVersions()))
        self.reading = _Reading(
            Filing(cacher, CALL, PROMPT, self.reply, reader),
            self.reply,
            self.course,
            Count(self.counts),
        )
        self.stitch = Stitch(CALL, lambda _: pytest.fail("nothing is cut"))
        self.stitch.next_call()

    def add(self, chunk: GenerateChunk) -> None:
        """A chunk takes the long way."""
        passed = self.stitch.passes(chunk)
        for each in (chunk,) if passed else self.stitch.emit(self.stitch.take(chunk)):
            for shown in self.reading.counted(each):
                self.write(b"".join(self.stream.events(shown)))

    def write(self, event: bytes) -> None:
        self.written += event

    def open(self, shortcut: Shortcut[GenerateChunk], choices: Iterator[bool]) -> None:
        """As the layers of a router do, but that each step may say that it has to wait."""
        shortcut.takes = lambda chunk: next(choices, True) and self.stitch.passes(chunk)
        shortcut.adds = self.stitch.output_ids.extend
        shortcut.read, shortcut.said = self.reading.counted, self.reading.said
        _open_shortcut(shortcut, self.stream, cast(EventStream, Gate(choices, self.write)))

    def outcome(self) -> dict[str, Any]:
        reply = self.reply
        closing = b"".join(self.stream.closing())
        return {
            "failure": self.failure,
            "said": said(bytes(self.written)),
            "usage": orjson.loads(closing[6:])["usage"] if closing else None,
            "sampled": self.stitch.output_ids,
            "recorded": (reply.output_ids, reply.logprobs, reply.text, reply.reasoning),
            "versions": reply.weight_versions,
            "finish": reply.finish,
            "counted": self.counts.output_tokens,
            "course": (self.course.first_token_s, self.course.workers),
            "gaps": (sum(self.gaps.counts), self.gaps.total_s),
        }


@dataclass
class Gate:
    """A client, which is not always ready."""

    choices: Iterator[bool]
    write: Any

    def is_clear(self) -> bool:
        return next(self.choices, True)


def said(written: bytes) -> dict[str, str]:
    """The texts in a stream's events, by their kind, and the last event whole."""
    texts: dict[str, str] = {}
    events = [line[6:] for line in written.split(b"\n") if line.startswith(b"data: ")]
    for event in map(orjson.loads, events):
        choice = (event.get("choices") or [{}])[0]
        delta = choice.get("delta", choice) or event.get("delta")
        delta = {event["type"]: delta} if isinstance(delta, str) else delta or {}
        if isinstance(event.get("delta"), dict):
            delta = event["delta"]
        for kind, text in delta.items():
            if isinstance(text, str) and kind != "type":
                texts[kind] = texts.get(kind, "") + text
        for entry in (choice.get("logprobs") or {}).get("content", ()):
            texts["logprobs"] = texts.get("logprobs", "") + repr(entry)
        for token_id in choice.get("token_ids") or ():
            texts["ids"] = f"{texts.get('ids', '')} {token_id}"
    return texts


@given(
    kind=st.sampled_from(sorted(STREAMS)),
    reads=answers(),
    choices=st.lists(st.sampled_from((True, True, True, False)), max_size=40),
    has_parser=st.booleans(),
    stops=st.sampled_from(((), ("cb",), ("é>", "a"))),
)
def test_both_ways_say_the_same(
    loop: asyncio.AbstractEventLoop,
    kind: str,
    reads: list[bytes],
    choices: list[bool],
    has_parser: bool,
    stops: tuple[str, ...],
) -> None:
    assert_same(loop, reads, choices, lambda: Layers(STREAMS[kind](), has_parser, stops))


@pytest.mark.parametrize("kind", sorted(STREAMS))
@pytest.mark.parametrize("has_parser", [False, True])
def test_plain_events_say_the_same(
    loop: asyncio.AbstractEventLoop, *, kind: str, has_parser: bool
) -> None:
    """Several tokens in an event, one, or none; one of them is a mark, the others are words."""
    ids = [8, 0, 1, 0, 0, 1, 1, 0, 0, 4, 8, 0, 0, 0, 1, 1]
    ends = [0, 0, 0, 0, 1, 2, 3, 5, 6, 6, 7, 9, 11, 12, 13, 14, 15, 16]
    events = [item(ids, start, end, {}) for start, end in pairwise([0, *ends[:-1]])]
    finish = {"finish_reason": {"type": "length", "length": len(ids)}}
    events.append(item(ids, len(ids) - 1, len(ids), finish))
    reads = [HEAD, *(chunked(b"data: %b\n\n" % event) for event in events), END]
    one, other = assert_same(loop, reads, (), lambda: Layers(STREAMS[kind](), has_parser, ()))
    assert one.reply.output_ids == ids
    assert one.gaps.counts == other.gaps.counts


def assert_same(
    loop: asyncio.AbstractEventLoop,
    reads: Sequence[bytes],
    choices: Sequence[bool],
    layers_of: Callable[[], Layers],
) -> tuple[Layers, Layers]:
    slow_layers = layers_of()
    slow = Task(loop, None, slow_layers)
    for read in reads:
        slow_layers.now += 1.0
        slow.protocol.data_received(read)
        slow.run()

    layers = layers_of()
    shortcut: Shortcut[GenerateChunk] = Shortcut()
    layers.open(shortcut, iter(choices))
    fast = Task(loop, shortcut, layers)
    for read in reads:
        layers.now += 1.0
        fast.protocol.data_received(read)
        fast.run()  # at once: what comes in one read hides what its earlier items contradict
    assert layers.outcome() == slow_layers.outcome()
    return layers, slow_layers
