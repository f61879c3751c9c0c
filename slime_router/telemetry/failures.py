"""The requests that failed last, for people who look.

A fault of the request is named, not described: the words of such an error may repeat what was said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from slime_router.errors import RouterError
from slime_router.telemetry.request_record import RequestRecord

KEPT = 200
MAX_REASON_LEN = MAX_PATH_LEN = 300
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
            "path": path[:MAX_REASON_LEN],
        }
        entry |= {"status": exc.status, "error": exc.code}
        if record is not None:
            entry |= {"request": record.id, "door": record.door, "key": record.key}
        if exc.param is not None:
            entry["param"] = exc.param[:100]
        if exc.status >= _OUR_FAULT:
            entry["reason"] = exc.message[:MAX_REASON_LEN]
            cause = exc.__cause__
            if cause is not None and str(cause) not in ("", exc.message):
                entry["cause"] = f"{type(cause).__name__}: {cause}"[:MAX_REASON_LEN]
        self._entries.appendleft(entry)

    def seen_by(self, sees: Callable[[str], bool]) -> list[dict[str, Any]]:
        """The failures of the owners that `sees` accepts, the newest first."""
        return [entry for entry in self._entries if sees(entry.get("key", ""))]
