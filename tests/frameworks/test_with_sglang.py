"""The examples of frameworks before a real SGLang on this CPU: they hold what it sampled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import pytest

from tests.clients.world import run
from tests.e2e.conftest import routing
from tests.frameworks.test_frameworks import EXAMPLES, ROOT, TIMEOUT_S
from tests.sglang.recorder import RecordingProxy
from tests.sglang.server import SGLangServer

pytestmark = [pytest.mark.slow, pytest.mark.sglang, pytest.mark.timeout(2 * TIMEOUT_S)]

There = tuple[str, RecordingProxy, Path]  # the router, what its worker was asked, the checkpoint


@pytest.fixture(scope="module")
def there() -> Iterator[There]:
    with ExitStack() as stack:
        worker = stack.enter_context(SGLangServer())
        proxy = stack.enter_context(RecordingProxy(worker.url))
        flags = ("--tool-call-parser", "qwen25", "--reasoning-parser", "none")
        url = stack.enter_context(routing(proxy, worker.checkpoint, *flags))
        yield url, proxy, worker.checkpoint


async def held_by(python: Path, example: str, there: There, directory: Path) -> list[list[int]]:
    """The tokens that a framework trains, and those that the worker sampled."""
    url, proxy, checkpoint = there
    proxy.clear()
    env = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = (python, EXAMPLES / f"{example}.py", "--router", url, "--checkpoint", checkpoint)
    said = await run(command, cwd=directory, env=env, timeout_s=TIMEOUT_S)
    held = json.loads(said.splitlines()[-1])
    if "sequences" in held:
        pairs = [*chain(*(zip(ids, mask, strict=True) for ids, mask, _ in held["sequences"]))]
    else:
        pairs = [*zip(held["response"], held["mask"], strict=True)]
    sampled = [each.items()[-1]["output_ids"] for each in proxy.exchanges]  # none is streamed
    return [[token for token, is_trained in pairs if is_trained], [*chain(*sampled)]]


@pytest.mark.parametrize("example", ["verl_agent_loop", "trl_rollout"])
async def test_what_is_trained_is_what_a_real_worker_sampled(
    example: str, python: Path, there: There, tmp_path: Path
):
    trained, sampled = await held_by(python, example, there, tmp_path)
    assert trained == sampled
    assert trained
