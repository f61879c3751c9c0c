"""A worker without a model in its own process, with nothing but the installed package.

    python worker.py CHECKPOINT

prints its URL, and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from slime_router.testing import FakeWorker


class Words:
    """The checkpoint's tokenizer, as a worker has it."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def encode(self, text: str) -> Sequence[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids))
        return text


async def serve(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    async with FakeWorker(vocab_size=config["vocab_size"], tokenizer=Words(checkpoint)) as worker:
        print(worker.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
