"""What is known of one request of a client, for whatever runs on its behalf."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

from slime_router.values import value

ReceiptStatus = Literal["extended", "branched", "fresh"]


@value(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one generation of a request has ended. No texts: what it says goes to the log."""

    turn: str
    session: str | None = None  # as its owner calls it
    receipt: ReceiptStatus | None = None  # how its prompt was made; None: it never was
    prompt_tokens: int = 0
    reused_tokens: int = 0
    output_tokens: int = 0
    finish: str | None = None
    worker: str = ""  # the last one
    first_token_s: float | None = None


class Trace(Protocol):
    """The trace of one request; `slime_router.telemetry.tracing` has one."""

    def hop(self, worker_url: str) -> AbstractContextManager[dict[str, str]]:
        """For the block, a worker samples; gives the headers that it gets for the trace."""

    def end(self, fields: Mapping[str, Any]) -> None:
        """The request is answered; `fields` are those of its line in the log."""


class RequestRecord:
    """One request: its id as its client knows it, the door it came to, and by whose key.

    `door` is a path as the routing table has it, without a session before it. A request that joins
    the generation of an earlier try has that one's `id` and outcomes.
    """

    __slots__ = (
        "body", "door", "ending", "failure", "id", "is_joined", "keeps_body", "key", "outcomes",
        "tag", "trace",
    )  # fmt: skip

    def __init__(self, request_id: str, door: str) -> None:
        self.id = request_id
        self.door = door
        self.key = ""  # the key's name
        self.tag = ""  # before the rids that workers see
        self.is_joined = False
        self.keeps_body = False
        self.body: Mapping[str, Any] | None = None  # where it is kept for the log
        self.trace: Trace | None = None  # where traces are wanted
        self.ending = ""  # why it ended before its reply did: client_left or shutdown
        self.failure: Exception | None = None  # what its client was answered, if with an error
        self.outcomes: list[Outcome] = []  # one for each generation that got so far

    def __repr__(self) -> str:
        return f"<RequestRecord {self.id} {self.door}>"

    def join(self, earlier: RequestRecord) -> None:
        """Mark this request as another try of `earlier`."""
        self.id, self.outcomes, self.is_joined = earlier.id, earlier.outcomes, True


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def current_request() -> RequestRecord | None:
    """The request that this task works for; None outside of any."""
    return _CURRENT.get()


def enter_request(record: RequestRecord) -> None:
    """From now on this task, and what it starts, works for that request."""
    _CURRENT.set(record)


def keeps_body() -> bool:
    """Whether the log wants the body of the request that this task works for."""
    record = _CURRENT.get()
    return record is not None and record.keeps_body


def note_body(body: Mapping[str, Any]) -> None:
    """What the request that this task works for asks for, in case the log wants it."""
    record = _CURRENT.get()
    if record is not None and record.keeps_body:
        record.body = body


def note_failure(exc: Exception) -> None:
    """The request that this task works for is answered with an error."""
    record = _CURRENT.get()
    if record is not None:
        record.failure = exc
