"""What can go wrong when the router is asked: one tree.

ClientError
├── Unreachable             no whole answer came
│   └── TimedOut            the router was silent for `timeout_s`
├── BadReply                an answer that this client cannot read
└── Refused                 the router said no; `status` is its HTTP status
    ├── NotFound 404        there is no such session, or it was deleted
    ├── Conflict 409        the session is closed, or its name or reward is taken
    ├── TooManyRequests 429
    └── StorageFull 507     open sessions fill the store
"""

from __future__ import annotations

import json
from typing import Any

SHOWN_CHARS = 200


class ClientError(Exception):
    """Base of all. `status`, `code` and `param` are the router's, where it answered."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param


class Unreachable(ClientError):
    """No complete answer came. The router may have done what was asked anyway."""


class TimedOut(Unreachable):
    """The router was silent for longer than `timeout_s`."""


class BadReply(ClientError):
    """The answer is not a router's: something else may be listening at this URL."""


class Refused(ClientError):
    """The router said no, and why."""


class NotFound(Refused):
    """There is no such session, or it was deleted."""


class Conflict(Refused):
    """The session is in a state in which this cannot be done."""


class TooManyRequests(Refused):
    """A limit of the router is reached."""


class StorageFull(Refused):
    """Open sessions fill the router's store; what is recorded can still be exported."""


REFUSALS = {404: NotFound, 409: Conflict, 429: TooManyRequests, 507: StorageFull}


def no_answer(url: str, error: Exception) -> Unreachable:
    """The error for a request to `url` whose answer `error` kept away."""
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    reason = " ".join(said.split()) or type(error).__name__
    return Unreachable(f"No answer from {url}: {reason}")


def refusal(status: int, body: bytes) -> Refused:
    """The error for an answer whose status says no."""
    try:
        error = json.loads(body)["error"]
        return refusal_of(error, status)
    except (ValueError, LookupError, TypeError):
        text = body[:SHOWN_CHARS].decode("utf-8", "replace")
        return REFUSALS.get(status, Refused)(f"HTTP {status}: {text}", status=status)


def refusal_of(error: dict[str, Any], status: int) -> Refused:
    """The error for an error object of the router's."""
    kind = REFUSALS.get(status, Refused)
    return kind(error["message"], status=status, code=error["code"], param=error["param"])
