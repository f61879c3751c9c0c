"""What is counted and timed while requests run: a router's own counters and histograms.

Everything here is declared once, in `INSTRUMENTS`, and lives in its own registry, as there may
be several routers in a process. What other parts count by themselves is read off them; see
`slime_router.server.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from slime_router.telemetry.request_record import GAPS, Course, Outcome, Times

PREFIX = "slime_router_"
NO_DOOR = "none"  # what no client asked for, and what has no route of its own

# Upper bounds in seconds.
SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
DELAYS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Instrument(NamedTuple):
    """One metric under its name in Prometheus, and the names of its labels."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram

    @property
    def kind(self) -> Literal["counter", "histogram"]:
        """What it is."""
        return "histogram" if self.bounds else "counter"


REQUESTS = Instrument("requests_total", "requests that were answered", ("door", "model", "status"))
REQUEST = Instrument("request_seconds", "how long requests took", ("door",), LONG)
GENERATION = Instrument("generation_seconds", "how long generations took", ("door",), LONG)
FIRST_TOKEN = Instrument("first_token_seconds", "until the first token", ("door",), LONG)
TOKEN_GAP = Instrument("token_gap_seconds", "from one token to the next", (), GAPS)
QUEUE_WAIT = Instrument("queue_wait_seconds", "until a generation had a slot", (), SHORT)
PROMPT = Instrument("prompt_seconds", "how long prompts took to make", (), SHORT)
LOOP_DELAY = Instrument("loop_delay_seconds", "how late the event loop was", (), DELAYS)
JOURNAL_WAIT = Instrument("journal_wait_seconds", "until a turn was durable", (), SHORT)
ENDED = Instrument("turns_ended_total", "turns by prompt and by end", ("receipt", "finish"))
DIAGNOSES = Instrument("diagnoses_total", "answers of the drift doctor", ("class",))
LEFT_OUT = Instrument("left_out_tokens_total", "sampled tokens not in exported rows", ("reason",))

INSTRUMENTS = (
    REQUESTS, REQUEST, GENERATION, FIRST_TOKEN, TOKEN_GAP, QUEUE_WAIT, PROMPT, JOURNAL_WAIT, ENDED,
    DIAGNOSES, LEFT_OUT, LOOP_DELAY,
)  # fmt: skip


class Count:
    """How often something has happened, or of how many things."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0

    def __repr__(self) -> str:
        return f"<Count {self.total}>"


class Counters(Collector):
    """The counters of one instrument, one for each value of its labels, as Prometheus reads it.

    A counter of `prometheus_client` is this with a lock and four calls for each step.
    """

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument
        self._of: dict[tuple[str, ...], Count] = {}

    def of(self, *label: str) -> Count:
        """The one of this label."""
        found = self._of.get(label)
        if found is None:
            found = self._of[label] = Count()
        return found

    def collect(self) -> Iterator[CounterMetricFamily]:
        """All of them."""
        made = self._instrument
        family = CounterMetricFamily(PREFIX + made.name, made.help, labels=made.labels)
        for label, count in self._of.items():
            family.add_metric(label, count.total)
        yield family


class Histograms(Collector):
    """The histograms of one instrument, one for each value of its label, as Prometheus reads it."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument
        self._of: dict[tuple[str, ...], Times] = {}

    def of(self, *label: str) -> Times:
        """The one of this label, or the only one: looked up once, not for each request."""
        found = self._of.get(label)
        if found is None:
            found = self._of[label] = Times(self._instrument.bounds)
        return found

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """All of them."""
        made = self._instrument
        bounds = [*map(str, made.bounds), "+Inf"]
        family = HistogramMetricFamily(PREFIX + made.name, made.help, labels=made.labels)
        for label, times in self._of.items():
            buckets = list(zip(bounds, map(float, accumulate(times.counts)), strict=True))
            family.add_metric(label, buckets, times.total_s)
        yield family


class _Door(NamedTuple):
    """The histograms of one door: looked up once, not for each request."""

    request: Times
    generation: Times
    first_token: Times


class Meters:
    """The instruments of one router; `model` is the name under which it serves its model."""

    def __init__(self, model: str = "") -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._model = model
        self._requests = self._counter(REQUESTS)
        self._ended, self._diagnoses = self._counter(ENDED), self._counter(DIAGNOSES)
        self._left_out = self._counter(LEFT_OUT)
        self._request, self._generation = self._histogram(REQUEST), self._histogram(GENERATION)
        self._first_token, self._prompt = self._histogram(FIRST_TOKEN), self._histogram(PROMPT).of()
        self._queue_wait = self._histogram(QUEUE_WAIT).of()
        self._journal_wait = self._histogram(JOURNAL_WAIT).of()
        self._gaps = self._histogram(TOKEN_GAP).of()
        self.loop_delay = self._histogram(LOOP_DELAY).of()  # whoever watches the loop adds to it
        self._answered: dict[tuple[str, int], Count] = {}
        self._doors: dict[str, _Door] = {}

    def __repr__(self) -> str:
        return f"<Meters of {len(self._doors)} doors>"

    def _counter(self, made: Instrument) -> Counters:
        counters = Counters(made)
        self.registry.register(counters)
        return counters

    def _histogram(self, made: Instrument) -> Histograms:
        times = Histograms(made)
        self.registry.register(times)
        return times

    def course(self) -> Course:
        """A generation begins."""
        return Course(self._gaps)

    def answered(self, door: str, status: int, seconds: float) -> None:
        """A request has its answer. `door` is a route of the routing table, or ""."""
        door = door or NO_DOOR
        counter = self._answered.get((door, status))
        if counter is None:
            counter = self._requests.of(door, self._model, str(status))
            self._answered[door, status] = counter
        counter.total += 1
        self._door(door).request.add(seconds)

    def generated(self, course: Course, outcome: Outcome) -> None:
        """A generation has ended, one way or another."""
        door = self._door("" if course.request is None else course.request.door)
        door.generation.add(course.elapsed_s())
        if course.first_token_s is not None:
            door.first_token.add(course.first_token_s)
        if course.admitted_s is not None:
            self._queue_wait.add(course.admitted_s)
        if course.prompted_s is not None:
            self._prompt.add(course.prompt_s)
        self._ended.of(outcome.receipt or "none", outcome.finish or "none").total += 1

    def endured(self, seconds: float) -> None:
        """A turn waited that long for the journal."""
        self._journal_wait.add(seconds)

    def diagnosed(self, cause: str) -> None:
        """The drift doctor has found this class."""
        self._diagnoses.of(cause).total += 1

    def left_out(self, tokens: Mapping[str, int]) -> None:
        """An export of rows left so many tokens out, by reason."""
        for reason, count in tokens.items():
            self._left_out.of(reason).total += count

    def _door(self, door: str) -> _Door:
        found = self._doors.get(door or NO_DOOR)
        if found is None:
            name = door or NO_DOOR
            instruments = (self._request, self._generation, self._first_token)
            found = self._doors[name] = _Door(*(each.of(name) for each in instruments))
        return found
