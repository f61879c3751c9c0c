"""`make test-again`: once more, one by one, what has failed.

Some tests kill and stall processes and race real clients; on a machine that is busy with other
work, one of ten thousand may meet its time-out. What fails twice fails. What passes the second
time is named, so that its cause can be looked for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"  # written by pytest
MOST = 5
"""Where more fail, the code is at fault."""


def failed() -> list[str]:
    """The ids of the tests that failed when they were last run."""
    if not FAILED.exists():
        return []
    known: dict[str, bool] = json.loads(FAILED.read_text("utf-8"))
    return sorted(known)


def main() -> int:
    """Runs them; 0 where each passes now."""
    tests = failed()
    if not tests or len(tests) > MOST:
        sys.stderr.write(f"again: {len(tests)} tests failed; 1 to {MOST} would be tried again\n")
        return 1
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", *tests]
    if returncode := subprocess.run(command, cwd=ROOT, check=False).returncode:
        return returncode
    for test in tests:
        print(f"again: failed once, then passed: {test}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
