"""The JavaScript SDKs hold tool loops through the router, and no token is encoded twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from slime_router.server.boundary import CLIENT_LEFT
from tests.clients.node import PACKAGES, installed
from tests.clients.world import call, run, world

TASK = "Weather task"
SESSION = "weather-1"
TEST_TIMEOUT_S = 200
WAYS = [
    *(("openai_chat", way) for way in ("whole", "stream", "runTools", "runTools-stream")),
    *(("openai_responses", way) for way in ("whole", "stream", "previous")),
    *(
        ("ai", f"{provider}.{verb}")
        for provider in ("compatible", "chat", "responses")
        for verb in ("generate", "stream")
    ),
]
# Odd spacing, escapes and signs: an SDK that writes a call again spells it differently.
LINES = [
    call(
        "get_weather",
        '{"city":"Paris",  "days" : 3}',
        says="Ich  schaue nach… ",
        thinks="Two  cities.\n\nParis first.",
    ),
    call("get_weather", '{ "days": 1,\n  "city": "T\\u014dky\\u014d 🗼" }', thinks="Then Tōkyō."),
    call("add", '{"a": 21.0, "b":9}') + "\n" + call("add", '{"b" : 1,"a": 2}'),
    "<think>\n21 and 9.\n</think>\n\n30 °C 🙂",
    call("add", '{"a":  30, "b": 0}', thinks=""),
    "Thirty — « dreißig ».",
]


@pytest.mark.timeout(TEST_TIMEOUT_S)
@pytest.mark.parametrize(("program", "way"), WAYS)
async def test_an_sdk_solves_the_task(
    program: str, way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Six turns with tools and two answers, both right, and every prompt goes on from the last."""
    caplog.set_level("INFO", logger="slime_router.server.boundary")
    for source in (PACKAGES / "sdks").glob("*.mjs"):
        shutil.copy(source, tmp_path)
    (tmp_path / "node_modules").symlink_to(installed("sdks") / "node_modules")
    async with world(TASK, LINES) as there:
        url = f"{there.url}/sessions/{SESSION}"
        said = await run(["node", f"{program}.mjs", url, way], cwd=tmp_path, env={})
        there.prove()
        there.prove_heard("21 °C 🌤", '9 °C;  "rain" ☔', "30")
        requests = [record.getMessage() for record in caplog.records if "boundary" in record.name]
        await there.prove_rows(SESSION)
    assert [answer.strip() for answer in json.loads(said)] == ["30 °C 🙂", "Thirty — « dreißig »."]
    assert len(requests) == len(LINES)
    # A program that ends with its answer can be gone before the router has logged the reply.
    assert {line.split()[2] for line in requests} <= {"200", str(CLIENT_LEFT)}
