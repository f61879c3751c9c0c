"""Real frameworks roll out a tool-using episode through the router, each by its own code.

What is run are the examples, as a user runs them.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.clients.world import World, call, run, world
from tests.vocabularies import vocabulary

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TIMEOUT_S = 400.0  # verl imports for a minute where others compute, too
LINES = (
    call("get_weather", '{"city":  "Paris"}', says="I look 🔎.\n", thinks="Of 東京?\n\n No."),
    call("get_weather", '{ "city" : "Lyon"}'),
    "Yes, it is **warm** 🌤️.",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S + 60)]


async def rollout(python: Path, example: str, there: World, directory: Path) -> dict[str, Any]:
    """What an example says that its framework holds."""
    env = {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUTF8": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    checkpoint = vocabulary("qwen3")
    command = (
        python,
        EXAMPLES / f"{example}.py",
        "--router",
        there.url,
        "--checkpoint",
        checkpoint,
    )
    said = await run(command, cwd=directory, env=env, timeout_s=TIMEOUT_S)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def prove(there: World, tokens: list[int], mask: list[int], logprobs: list[float]) -> None:
    """All that was sampled is trained, in one sequence that is what the worker saw last."""
    there.prove()
    there.prove_heard("21 °C in Paris", "21 °C in Lyon")
    assert tokens == [*there.prompts[-1], *there.sampled[-1]]
    assert [t for t, m in zip(tokens, mask, strict=True) if m] == [*chain(*there.sampled)]
    assert all(
        (value < 0) == bool(is_trained) for value, is_trained in zip(logprobs, mask, strict=True)
    )


async def test_verl_holds_exactly_what_was_sampled(python: Path, tmp_path: Path):
    async with world("Weather task", LINES) as there:
        found = await rollout(python, "verl_agent_loop", there, tmp_path)
        prompt_len = len(found["prompt"])
        assert found["prompt"] == there.prompts[0]
        prove(
            there,
            found["prompt"] + found["response"],
            [0] * prompt_len + found["mask"],
            [0.0] * prompt_len + found["logprobs"],
        )
        assert (found["reward"], found["turns"]) == (0.5, 6)


async def test_trl_holds_exactly_what_was_sampled(python: Path, tmp_path: Path):
    async with world("Weather task", LINES) as there:
        found = await rollout(python, "trl_rollout", there, tmp_path)
        [sequence] = found["sequences"]
        prove(there, *sequence)
        assert found["ids"] == [*chain(*there.sampled)]
        assert found["roles"] == ["assistant", "tool", "assistant", "tool", "assistant"]
        assert found["calls"] == [2, 0, None]
        assert "warm" in found["last"]
