"""How the router's processes end."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_GAVE_UP = 3  # of one process of several: none of them may go on
EXIT_INTERRUPTED = 130
