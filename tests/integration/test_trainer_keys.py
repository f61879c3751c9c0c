"""A router with keys, used from inside trainers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import aiohttp
import pytest

from slime_router.client import ClientError
from slime_router.integrations.keys import router_key
from tests.integration.gateway import Served, served, user
from tests.integration.test_examples import SAMPLING, Sample, slime_args, url_of
from tests.integration.test_examples import slime as slime

KEY = "sk-of-the-trainer"
VARIABLE = "SLIME_ROUTER_API_KEY"


class Loop:
    """verl's base class of agent loops, as far as ours needs it."""

    def __init__(self, **_: Any) -> None:
        self.rollout_config = SimpleNamespace(response_length=100)


@pytest.fixture
def verl(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our loop, inside a verl that is no more than its names."""
    place = "verl.experimental.agent_loop.agent_loop"
    module = ModuleType(place)
    made = {"AgentLoopBase": Loop, "AgentLoopMetrics": dict, "AgentLoopOutput": SimpleNamespace}
    vars(module).update(made)
    for name in ("verl", "verl.experimental", "verl.experimental.agent_loop"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, place, module)
    name = "slime_router.integrations.verl"
    yield importlib.import_module(name)
    del sys.modules[name]


async def rolled_out(verl: Any, router: Served, **given: str) -> Any:
    """verl's output of an episode of one turn."""

    class Agent(verl.RouterAgentLoop):  # type: ignore[misc] # of a module made above
        async def act(self, base_url: str, messages: Any, **_: Any) -> None:
            headers = {"Authorization": f"Bearer {self.router_key}"}
            body = {"model": "m", "messages": messages}
            async with (
                aiohttp.ClientSession(headers=headers, raise_for_status=True) as http,
                http.post(f"{base_url}/chat/completions", json=body),
            ):
                pass

    agent = Agent(router_url=url_of(router), **given)
    return await agent.run({"max_tokens": 9}, raw_prompt=[user("Hi")])


async def test_slime_asks_with_the_key_that_is_configured(slime, monkeypatch):
    async with served(api_key=KEY) as (router, worker):
        with pytest.raises(ClientError):
            await slime.generate(slime_args(router), Sample(index=0, prompt="Hi"), SAMPLING)
        assert not worker.requests
        monkeypatch.setenv(VARIABLE, KEY)
        samples = await slime.generate(slime_args(router), Sample(index=0, prompt="Hi"), SAMPLING)
    assert [sample.status for sample in samples] != [Sample.Status.ABORTED]


async def test_verls_loop_asks_with_it_or_with_its_own(verl, monkeypatch):
    async with served(api_key=KEY) as (router, _):
        with pytest.raises(ClientError):
            await rolled_out(verl, router)
        given = await rolled_out(verl, router, router_key=KEY)
        monkeypatch.setenv(VARIABLE, KEY)
        found = await rolled_out(verl, router)
    assert sum(given.response_mask) > 0 < sum(found.response_mask)


def test_a_key_may_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert router_key() == "none"
    monkeypatch.setenv(f"{VARIABLE}_FILE", str(file))
    assert router_key() == KEY
    file.write_text("\n")
    with pytest.raises(ValueError, match=f"{VARIABLE}_FILE: {file} is empty"):
        router_key()
