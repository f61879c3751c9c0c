"""What is counted and timed while requests run: a router's own counters and histograms.

Everything here is declared once, in `INSTRUMENTS`, and lives in a registry of its own, as there may
be several routers in a process. What other parts count by themselves is read off them; see
`slime_router.server.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from slime_router.telemetry.course import GAPS, Course, Gaps
from slime_router.telemetry.request_record import Outcome

PREFIX = "slime_router_"
NO_DOOR = "none"  # what no client asked for, and what has no route of its own

# Upper bounds in seconds.
SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
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
JOURNAL_WAIT = Instrument("journal_wait_seconds", "until a turn was durable", (), SHORT)
ENDED = Instrument("turns_ended_total", "turns by prompt and by end", ("receipt", "finish"))
DIAGNOSES = Instrument("diagnoses_total", "answers of the drift doctor", ("class",))
LEFT_OUT = Instrument("left_out_tokens_total", "sampled tokens not in exported rows", ("reason",))

INSTRUMENTS = (
    REQUESTS, REQUEST, GENERATION, FIRST_TOKEN, TOKEN_GAP, QUEUE_WAIT, PROMPT, JOURNAL_WAIT, ENDED,
    DIAGNOSES, LEFT_OUT,
)  # fmt: skip


class TokenGaps(Collector):
    """The times between tokens as a histogram that `prometheus_client` reads."""

    def __init__(self, gaps: Gaps) -> None:
        self._gaps = gaps

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The one histogram."""
        bounds = [*map(str, GAPS), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._gaps.counts)), strict=True))
        family = HistogramMetricFamily(PREFIX + TOKEN_GAP.name, TOKEN_GAP.help)
        family.add_metric((), buckets, self._gaps.total_s)
        yield family


class _Door(NamedTuple):
    """The histograms of one door: looked up once, not for each request."""

    request: Histogram
    generation: Histogram
    first_token: Histogram


class Meters:
    """The instruments of one router; `model` is the name under which it serves its model."""

    def __init__(self, model: str = "") -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._model = model
        self._gaps = Gaps()
        self.registry.register(TokenGaps(self._gaps))
        self._requests = self._counter(REQUESTS)
        self._ended, self._diagnoses = self._counter(ENDED), self._counter(DIAGNOSES)
        self._left_out = self._counter(LEFT_OUT)
        self._request, self._generation = self._histogram(REQUEST), self._histogram(GENERATION)
        self._first_token, self._prompt = self._histogram(FIRST_TOKEN), self._histogram(PROMPT)
        self._queue_wait = self._histogram(QUEUE_WAIT)
        self._journal_wait = self._histogram(JOURNAL_WAIT)
        self._doors: dict[str, _Door] = {}

    def __repr__(self) -> str:
        return f"<Meters of {len(self._doors)} doors>"

    def _counter(self, made: Instrument) -> Counter:
        return Counter(PREFIX + made.name, made.help, made.labels, registry=self.registry)

    def _histogram(self, made: Instrument) -> Histogram:
        return Histogram(
            PREFIX + made.name,
            made.help,
            made.labels,
            registry=self.registry,
            buckets=made.bounds,
        )

    def course(self) -> Course:
        """A generation begins."""
        return Course(self._gaps)

    def answered(self, door: str, status: int, seconds: float) -> None:
        """A request has its answer. `door` is a route of the routing table, or ""."""
        door = door or NO_DOOR
        self._requests.labels(door, self._model, str(status)).inc()
        self._door(door).request.observe(seconds)

    def generated(self, course: Course, outcome: Outcome) -> None:
        """A generation has ended, one way or another."""
        door = self._door("" if course.request is None else course.request.door)
        door.generation.observe(course.elapsed_s())
        if course.first_token_s is not None:
            door.first_token.observe(course.first_token_s)
        if course.admitted_s is not None:
            self._queue_wait.observe(course.admitted_s)
        if course.prompted_s is not None:
            self._prompt.observe(course.prompt_s)
        self._ended.labels(outcome.receipt or "none", outcome.finish or "none").inc()

    def endured(self, seconds: float) -> None:
        """A turn waited that long for the journal."""
        self._journal_wait.observe(seconds)

    def diagnosed(self, cause: str) -> None:
        """The drift doctor has found this class."""
        self._diagnoses.labels(cause).inc()

    def left_out(self, tokens: Mapping[str, int]) -> None:
        """An export of rows left so many tokens out, by reason."""
        for reason, count in tokens.items():
            self._left_out.labels(reason).inc(count)

    def _door(self, door: str) -> _Door:
        found = self._doors.get(door or NO_DOOR)
        if found is None:
            name = door or NO_DOOR
            instruments = (self._request, self._generation, self._first_token)
            found = self._doors[name] = _Door(*(each.labels(name) for each in instruments))
        return found
