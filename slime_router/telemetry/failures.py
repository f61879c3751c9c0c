"""What people get to see of failed requests: the last ones, and how an error is described."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from slime_router.errors import RouterError
from slime_router.telemetry.request_record import RequestRecord

KEPT = 200
MAX_REASON_LEN = MAX_PATH_LEN = 300
MAX_PARAM_LEN = 100
_ASKING = ("GET", "HEAD", "OPTIONS")
_OUR_FAULT = 500


class RecentFailures:
    """The last failed requests of all callers.

    A look at something that is not there, or not for all, does not count.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=kept)

    def note(
        self, record: RequestRecord | None, method: str, path: str, exc: RouterError, at: float
    ) -> None:
        """A request was answered with this error at this Unix time."""
        if exc.status < _OUR_FAULT and method in _ASKING:
            return
        entry: dict[str, Any] = {
            "at": round(at, 3),
            "method": method,
            "path": path[:MAX_PATH_LEN],
            "status": exc.status,
            **described(exc),
        }
        if record is not None:
            entry |= {"request": record.id, "door": record.door, "key": record.key}
        self._entries.appendleft(entry)

    def seen_by(self, sees: Callable[[str], bool]) -> list[dict[str, Any]]:
        """The failures of the owners that `sees` accepts, the newest first."""
        return [entry for entry in self._entries if sees(entry.get("key", ""))]


def described(failure: Exception) -> dict[str, Any]:
    """Which error; unless the fault is the request's, also its words and what led to it.

    The words of other errors may repeat what a client has said.
    """
    if not isinstance(failure, RouterError):
        return {"error": type(failure).__name__}
    fields: dict[str, Any] = {"error": failure.code}
    if failure.param is not None:
        fields["param"] = failure.param[:MAX_PARAM_LEN]
    if failure.status >= _OUR_FAULT:
        fields["reason"] = failure.message[:MAX_REASON_LEN]
        cause = failure.__cause__
        if cause is not None and str(cause) not in ("", failure.message):
            fields["cause"] = f"{type(cause).__name__}: {cause}"[:MAX_REASON_LEN]
    return fields
