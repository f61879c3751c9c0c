"""Ids that nobody has had, and that sort by the time at which they were made.

They begin with 48 bits of milliseconds, as UUIDv7 of RFC 9562 does: an index of them grows at its
end, where a few pages take all that comes, and not everywhere at once. No order depends on it.
"""

from __future__ import annotations

import time
from os import urandom

TIME_LEN = 12  # hex digits, of milliseconds since 1970
_MASK = (1 << 4 * TIME_LEN) - 1


def fresh_hex(length: int) -> str:
    """A new id of `length` hex digits (even, at least 24): the time, then random ones."""
    now_ms = time.time_ns() // 1_000_000 & _MASK
    return f"{now_ms:012x}{urandom((length - TIME_LEN) // 2).hex()}"
