"""The README's code blocks, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLE_ADDRESS = "localhost:30001"


def blocks(language: str, *, address: str) -> list[str]:
    """All blocks of a language, for a router at `address` (host and port)."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [block.replace(EXAMPLE_ADDRESS, address) for block in found]


def curl_commands(*, address: str) -> list[str]:
    """The shell blocks that ask a running router."""
    return [block for block in blocks("sh", address=address) if block.startswith("curl")]
