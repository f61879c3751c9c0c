"""Whether a worker can stop at a pattern: SGLang matches with Python's `re`, and fails on others.

One that does not compile ends as a 500 there, which says nothing to the client.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_STOP_REGEX_BYTES = 256  # SGLang's


def fault_of(patterns: Sequence[str]) -> str | None:
    """What is wrong with the first pattern that no worker takes; None where all are good."""
    for pattern in patterns:
        if len(pattern.encode()) > MAX_STOP_REGEX_BYTES:
            return f"at most {MAX_STOP_REGEX_BYTES} bytes each"
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError):
            return "not a regular expression"
    return None
