"""How many examples a property is tried with: fewer while one works, more at night."""

from __future__ import annotations

import os

SCALE = float(os.environ.get("SLIME_ROUTER_FUZZ", "1"))
"""`make test-fast` and `make mutants` take a fifth of them, `make fuzz` fifty times as many."""


def examples(number: int) -> int:
    """The number to take where `make test` takes `number`; at least one."""
    return max(1, round(number * SCALE))
