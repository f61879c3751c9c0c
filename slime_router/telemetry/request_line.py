"""The one line that the log has for each request: its fields, and how they read as text."""

from __future__ import annotations

from typing import Any

from slime_router.telemetry.failures import described
from slime_router.telemetry.request_record import RequestRecord


class RequestLine:
    """A message of the log that becomes text only where text is asked for.

    `fields` are those of the line by name: texts and numbers, none of which a client has said, but
    for its ids and names. The first are `method`, `path`, `status` and `ms`, in this order.
    """

    __slots__ = ("_text", "fields")
    EVENT = "request"

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self._text = ""

    def __str__(self) -> str:
        if not self._text:  # a filter and a formatter ask for it
            self._text = self._written()
        return self._text

    def _written(self) -> str:
        method, path, status, ms, *values = self.fields.values()
        names = [*self.fields][4:]
        said = " ".join(map("{}={}".format, names, values))
        if not _is_plain(said, len(names)):
            said = " ".join(map("{}={}".format, names, map(_shown, values)))
        return f"{method} {path} {status} {ms:.0f} ms {said}"


def request_line(
    record: RequestRecord, method: str, path: str, status: int, seconds: float
) -> RequestLine:
    """What is known of a request that was answered with `status` after so many seconds."""
    fields: dict[str, Any] = {
        "method": method,
        "path": path,
        "status": status,
        "ms": round(seconds * 1e3, 3),
        "request": record.id,
    }
    if record.door:
        fields["door"] = record.door
    if record.key:
        fields["key"] = record.key
    if record.is_joined:
        fields["joined"] = True
    if record.outcomes:
        _add_outcomes(fields, record)
    if record.ending:
        fields["ended"] = record.ending
    if record.failure is not None:
        fields |= described(record.failure)
    return RequestLine(fields)


def _add_outcomes(fields: dict[str, Any], record: RequestRecord) -> None:
    """Of several samples: the first one's names, and the tokens of all."""
    first = record.outcomes[0]
    if first.session is not None:
        fields["session"] = first.session
    if first.receipt is None:  # no worker has begun it
        return
    fields["turn"] = first.turn
    if len(record.outcomes) > 1:
        fields["samples"] = len(record.outcomes)
    if first.worker:
        fields["worker"] = first.worker
    fields["receipt"] = first.receipt
    counts = [(o.prompt_tokens, o.reused_tokens, o.output_tokens) for o in record.outcomes]
    fields |= zip(("prompt", "reused", "output"), map(sum, zip(*counts, strict=True)), strict=True)
    if first.first_token_s is not None:
        fields["first_token_ms"] = round(first.first_token_s * 1e3, 3)
    if first.finish is not None:
        fields["finish"] = first.finish


def _is_plain(said: str, count: int) -> bool:
    """Whether so many fields in a row can be told apart as they are."""
    has_empty = "= " in said or said.endswith("=")
    is_apart = said.count("=") == count and said.count(" ") == count - 1
    return is_apart and not has_empty and said.isprintable()


def _shown(value: Any) -> str:
    """A value as text: in quotes where it could be taken for several fields."""
    text = str(value)
    return repr(text) if not text or " " in text or "=" in text or not text.isprintable() else text
