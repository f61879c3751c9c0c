"""What a client meets: the router on the Qwen3 vocabulary, before a worker that knows its lines.

`Lines` are what the model says to one task, one text a turn. Requests that are not about the task
(a title for the conversation, a probe) hear something short. `World.prove` then shows that every
prompt of the task begins with all tokens held before it: none was encoded again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import aiohttp

from slime_router.testing import FakeWorker
from slime_router.testing.script import Script
from slime_router.tokens.tokenizer import Tokenizer
from tests.integration.gateway import Words, serving
from tests.talk import real_tokenizer
from tests.vocabularies import vocabulary

CONTEXT_LEN = 262_144  # command-line agents begin with 20,000 tokens of instructions
IM_END = 151645  # ends a reply in Qwen3's vocabulary
MODEL = "qwen3"
ASIDE = "A short title"  # said to whatever is not about the task
RUN_TIMEOUT_S = 180.0


@dataclass
class World:
    """A served router and what its worker was asked about the task.

    A request is about the task where its prompt holds `task` in its text; the k-th such request
    that continues the ones before hears `lines[k]`.
    """

    task: str
    lines: Sequence[str]
    tokenizer: Tokenizer
    url: str = ""
    prompts: list[list[int]] = field(default_factory=list)
    sampled: list[list[int]] = field(default_factory=list)
    asides: list[list[int]] = field(default_factory=list)

    def reply(self, body: dict[str, Any]) -> Script:
        """What the worker samples for one request."""
        prompt = [int(token) for token in body["input_ids"]]
        is_task = self.is_about_task(prompt)
        if not is_task or len(self.prompts) >= len(self.lines):
            self.asides.append(prompt)
            text = ASIDE
        else:
            text = self.lines[len(self.prompts)]
        ids = [*self.tokenizer.encode(text).tolist(), IM_END]
        if is_task and text != ASIDE:
            self.prompts.append(prompt)
            self.sampled.append(ids)
        return Script(ids=ids)

    def is_about_task(self, prompt: Sequence[int]) -> bool:
        """Whether the task stands in the prompt; a test can narrow it by overriding it."""
        return self.task in self.tokenizer.decode(prompt, skip_special_tokens=False)

    def prove(self) -> None:
        """Every line was asked for, and every next prompt begins with all that was held."""
        assert len(self.prompts) == len(self.lines), (
            f"the client asked {len(self.prompts)} of {len(self.lines)} turns; "
            f"{len(self.asides)} asides"
        )
        turns = zip(self.prompts, self.sampled, self.prompts[1:], strict=False)
        for turn, (prompt, sampled, following) in enumerate(turns, 1):
            held = [*prompt, *sampled]
            assert following[: len(held)] == held, (
                f"turn {turn + 1} parts from the held tokens at {common_len(following, held)} of "
                f"{len(held)} (the reply begins at {len(prompt)})"
            )

    def prove_heard(self, *texts: str) -> None:
        """The last prompt holds these texts, in this order: what the tools said came through."""
        rest = self.tokenizer.decode(self.prompts[-1], skip_special_tokens=False)
        for text in texts:
            _, found, rest = rest.partition(text)
            assert found, f"the worker was not sent {text!r}"

    async def prove_rows(self, session: str) -> None:
        """The session is one row, and what it trains is what was sampled, token by token."""
        export, turns = await self.export(session)
        [row] = export["rows"]
        trained = zip(row["tokens"], row["loss_mask"], strict=True)
        assert row["tokens"] == [*self.prompts[-1], *self.sampled[-1]]
        assert [token for token, is_trained in trained if is_trained] == [*chain(*self.sampled)]
        assert export["stats"]["left_out"] == {}
        receipts = [turn["receipt"]["status"] for turn in turns]
        assert receipts == ["fresh", *["extended"] * (len(self.lines) - 1)]

    async def export(self, session: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The rows of a session with their `stats`, and its turns."""
        url = f"{self.url}/sessions/{session}"
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}/rows") as response:
                rows = await response.json()
            async with http.get(url) as response:
                return rows, (await response.json())["turn_list"]


@asynccontextmanager
async def world(
    task: str, lines: Sequence[str], *, cls: type[World] = World, **settings: Any
) -> AsyncIterator[World]:
    """The router, served, with a worker that says `lines` to whoever asks about `task`."""
    tokenizer = real_tokenizer("qwen3")
    there = cls(task, lines, tokenizer)
    worker = FakeWorker(
        vocab_size=tokenizer.vocab_size,
        context_len=CONTEXT_LEN,
        eos_ids=sorted(tokenizer.eos_ids),
        tokenizer=Words(tokenizer),
        chunk_tokens=3,
        reply=there.reply,
    )
    given = {
        "hf_checkpoint": str(vocabulary("qwen3")),
        "served_model_name": MODEL,
        "tool_call_parser": "qwen25",
        "reasoning_parser": "qwen3",
        **settings,
    }
    async with worker, serving(worker.url, **given) as router:
        there.url = str(router.http._base_url).rstrip("/")
        yield there


async def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float = RUN_TIMEOUT_S,
) -> str:
    """What a program prints; it has only `env` and PATH, and is killed when it takes too long.

    Raises:
        AssertionError: it failed or took too long; with the end of what it printed.
    """
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), "NO_COLOR": "1", **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        out, err = b"", b"it took too long"
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
            await process.wait()
    said = f"{out.decode()[-4000:]}\n{err.decode()[-4000:]}"
    assert process.returncode == 0, f"exit code {process.returncode}:\n{said}"
    return out.decode()


def call(name: str, arguments: str, *, says: str = "", thinks: str = "") -> str:
    """The text of a turn that calls a tool, as Qwen3 spells it; `arguments` stays as written."""
    thought = f"<think>\n{thinks}\n</think>\n\n" if thinks else ""
    return (
        f'{thought}{says}<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    )


def common_len(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two prompts share."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (x, y) in pairs if x != y), min(len(a), len(b)))
