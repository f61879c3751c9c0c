"""Examines the families and writes the table: `python -m tests.families`.

With names of families it prints what is found, and writes nothing.
"""

from __future__ import annotations

import logging
import sys

from slime_router.checkup.verdict import report_text
from tests.families.examined import examined
from tests.families.table import PAGE, page


def main(names: list[str]) -> int:
    logging.disable(logging.WARNING)
    for name in names:
        sys.stdout.write(report_text(examined(name).report) + "\n")
    if not names:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
