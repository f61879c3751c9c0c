"""The blocking client, made from the awaiting one: `python -m tests.twins` writes it.

Only `aio.py` is written by hand. Nothing here knows Python's grammar: a list of words is replaced,
then the file is put in the one format. What differs by nature, HTTP itself, is in the transports.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parents[1] / "slime_router" / "client"
WRITTEN, MADE = CLIENT / "aio.py", CLIENT / "sync.py"

PASSAGES = (  # each stands there once
    (
        "The client for code that awaits. One client serves any number of tasks of one event loop.",
        "The client for code that blocks. Threads may share it: each call has its own connection.",
    ),
    (
        "`make sync-client` makes `slime_router.client.sync` from this file.",
        "Made from `slime_router.client.aio` by `make sync-client`: change that, not this.",
    ),
    (" Use it in an `async with` block.", ""),  # the blocking one leaves nothing open
    (
        "for export in reader.feed(block):\n                    yield export",
        "yield from reader.feed(block)",
    ),
)
WORDS = (
    (r"\basync (?=def\b|with\b|for\b)", ""),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\baio_transport\b", "sync_transport"),
)


def made_from(source: str) -> str:
    """The blocking twin of `source`.

    Raises:
        ValueError: a passage that is replaced is not there, or something still awaits.
    """
    for passage, twin in PASSAGES:
        if source.count(passage) != 1:
            raise ValueError(f"{WRITTEN.name} should hold this once: {passage!r}")
        source = source.replace(passage, twin)
    for word, twin in WORDS:
        source = re.sub(word, twin, source)
    if left := re.findall(r"(?i)\basync\w*|\bawait\w*", source):
        raise ValueError(f"{MADE.name} would still have these words: {left}")
    return _formatted(source)


def _formatted(source: str) -> str:
    """`source` as `make format` would leave it: other names sort and break differently."""
    for command in (["check", "--quiet", "--fix", "--select", "I"], ["format", "--quiet"]):
        source = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(MADE), "-"],
            input=source,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return source


if __name__ == "__main__":
    MADE.write_text(made_from(WRITTEN.read_text(encoding="utf-8")), encoding="utf-8")
