"""Two real SGLang servers: one is killed, both pause and get new weights, and no chat notices."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.chaos.processes import ask, eventually
from tests.ports import HOST, free_port
from tests.sglang.child import Child
from tests.sglang.environment import CACHE
from tests.sglang.server import START_TIMEOUT_S, SGLangServer, answers

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(3 * START_TIMEOUT_S)]

CHATS, TURNS = 8, 3
REPLY_LEN = 96  # tokens
PATIENCE_S = 60.0
NOISE = 0.02  # of a log-probability: a prompt's is computed in other steps than a reply's
TOPICS = ["radix trees", "the weather", "SQL", "Paris", "foxes", "queues", "cats", "rivers"]


@dataclass(frozen=True)
class Router:
    """The router as a user starts it, and its log."""

    url: str
    log: Path

    async def tell(self, path: str, **body: Any) -> Any:
        return await ask("POST", self.url + path, body)

    async def rows(self, session_id: str) -> Any:
        return await ask("GET", f"{self.url}/sessions/{session_id}/rows")

    async def is_whole(self) -> None:
        workers = (await ask("GET", f"{self.url}/workers"))["workers"]
        assert [(w["status"], w["load"]) for w in workers] == [("ready", 0)] * 2, workers

    def moved(self) -> list[int]:
        """How many tokens each generation had that was moved to another worker."""
        log = self.log.read_text(encoding="utf-8")
        return [int(count) for count in re.findall(r"retrying: \S+ tokens=(\d+)", log)]


@pytest.fixture(scope="module")
def victim() -> Iterator[SGLangServer]:
    """A second server, of our own: the first is shared with other tests."""
    server = SGLangServer(port=free_port())
    server.url = ""  # not the one that WORKER_URL names
    with server:
        yield server


@pytest.fixture
def router(sglang_server: SGLangServer, victim: SGLangServer) -> Iterator[Router]:
    port = free_port()
    command = [sys.executable, "-m", "slime_router", "--port", str(port)]
    command += ["--hf-checkpoint", str(sglang_server.checkpoint)]
    command += ["--worker-urls", sglang_server.url, victim.url]
    command += ["--health-check-interval-secs", "1"]
    command += ["--tool-call-parser", "none", "--reasoning-parser", "none"]
    command += ["--policy", "round_robin"]  # so that both have something to lose
    found = Router(f"http://{HOST}:{port}", CACHE / f"router-{port}.log")
    with Child("router", command, log=found.log) as child:
        child.wait_until(lambda: answers(f"{found.url}/health"), "starting", timeout_s=60)
        yield found


async def hold_chats(router: Router, run: str) -> list[list[str]]:
    """The replies of each chat; greedy, every other turn streamed."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(router.url, timeout=timeout) as http:
        return list(
            await asyncio.gather(
                *(hold(http, f"{run}-{number}", TOPICS[number]) for number in range(CHATS))
            )
        )


async def hold(http: aiohttp.ClientSession, session_id: str, topic: str) -> list[str]:
    messages: list[dict[str, str]] = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"{turn}: tell me more about {topic}"})
        body = {
            "messages": messages,
            "temperature": 0,
            "max_tokens": REPLY_LEN,
            "ignore_eos": True,
            "stream": turn % 2 == 0,
        }
        path = f"/sessions/{session_id}/v1/chat/completions"
        async with http.post(path, json=body) as reply:
            raw = await reply.read()
            assert reply.status == 200, raw
        messages.append({"role": "assistant", "content": text_of(raw)})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def text_of(raw: bytes) -> str:
    """The text of a reply that came to its end, streamed or whole."""
    if not raw.startswith(b"data:"):
        [choice] = orjson.loads(raw)["choices"]
        assert choice["finish_reason"] == "length"
        return str(choice["message"]["content"])
    *blocks, done, rest = raw.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    choices = [orjson.loads(block.removeprefix(b"data: "))["choices"][0] for block in blocks]
    assert choices[-1]["finish_reason"] == "length"
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def wait_running(url: str, count: int = 2) -> None:
    """Until the worker has that many generations in the middle."""

    async def runs() -> None:
        loads = (await ask("GET", f"{url}/v1/loads"))["loads"]
        assert sum(load["num_running_reqs"] for load in loads) >= count

    await eventually(runs, f"{count} generations at {url}")


async def disturbed(
    router: Router, run: str, disturb: Callable[[], Awaitable[None]]
) -> list[list[str]]:
    """The replies of chats during which this happens."""
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        chats = group.create_task(hold_chats(router, run))
        group.create_task(_run(disturb))
    return chats.result()


async def _run(disturb: Callable[[], Awaitable[None]]) -> None:
    await disturb()


async def one_row(router: Router, session_id: str) -> Any:
    """A session's only row: all turns, every sampled token once."""
    found = await router.rows(session_id)
    [row] = found["rows"]
    assert (found["stats"]["turns"], found["stats"]["running"]) == (TURNS, 0)
    assert sum(row["loss_mask"]) == TURNS * REPLY_LEN == found["stats"]["trained_tokens"]
    return row


async def check_equal(router: Router, run: str, other: str) -> None:
    """Both runs sampled the same; where two tokens are as likely as each other, either."""
    equal = 0
    for number in range(CHATS):
        a, b = [await one_row(router, f"{name}-{number}") for name in (run, other)]
        tokens = zip(a["tokens"], b["tokens"], strict=True)
        parted = next((index for index, (x, y) in enumerate(tokens) if x != y), None)
        equal += parted is None
        if parted is not None:
            assert a["loss_mask"][parted] == b["loss_mask"][parted] == 1
            assert a["logprobs"][parted] == pytest.approx(b["logprobs"][parted], abs=NOISE)
    assert equal >= CHATS - 2, f"{equal} of {CHATS} chats are equal"


async def check_logprobs(row: Any, worker_url: str, version: str) -> int:
    """Tokens of this version have the logprob that the worker gives them now; how many."""
    body = {
        "input_ids": row["tokens"],
        "sampling_params": {"max_new_tokens": 1},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    reply = await ask("POST", f"{worker_url}/generate", body)
    entries = reply["meta_info"]["input_token_logprobs"]
    given = [logprob for logprob, _, _ in entries]
    places = [i for i, named in enumerate(row["weight_versions"]) if named == version]
    for index in places:
        assert row["logprobs"][index] == pytest.approx(given[index], abs=NOISE), index
    return len(places)


async def test_a_crash_a_pause_and_new_weights_cost_no_token(router, sglang_server, victim):
    """Where the weights stay, greedy replies stay; else each token has its version's logprob."""
    servers = (sglang_server, victim)
    await eventually(router.is_whole, "both workers")
    undisturbed = await hold_chats(router, "calm")
    assert [len(texts) for texts in undisturbed] == [TURNS] * CHATS

    async def pause() -> None:
        await wait_running(victim.url)
        await router.tell("/pause_generation", mode="abort")
        await asyncio.sleep(0.5)
        await router.tell("/continue_generation")

    await disturbed(router, "paused", pause)
    await check_equal(router, "calm", "paused")

    async def kill() -> None:
        await wait_running(victim.url)
        victim.kill()

    await disturbed(router, "killed", kill)
    await check_equal(router, "calm", "killed")
    assert max(router.moved()) > 0, "no generation was moved in the middle"

    await asyncio.to_thread(victim.start)
    await eventually(router.is_whole, "the killed worker is back")

    async def update(model: Path, version: str) -> None:
        fields = {"model_path": str(model), "weight_version": version, "flush_cache": True}
        await router.tell("/update_weights_from_disk", **fields)

    async def update_mid_stream() -> None:
        await asyncio.gather(*(wait_running(server.url) for server in servers))
        await router.tell("/pause_generation", mode="abort")  # as trainers do
        await update(sglang_server.checkpoint.with_name("checkpoint-b"), "b")
        await router.tell("/continue_generation")

    try:
        await disturbed(router, "updated", update_mid_stream)
        rows = [await one_row(router, f"updated-{number}") for number in range(CHATS)]
        assert sum([await check_logprobs(row, victim.url, "b") for row in rows]) > 0
    finally:
        await update(sglang_server.checkpoint, "default")
    assert sum([await check_logprobs(row, victim.url, "default") for row in rows]) > 0
    await eventually(router.is_whole, "a whole fleet")
