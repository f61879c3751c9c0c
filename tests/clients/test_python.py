"""The Python clients, each in its own program and environment: `python/NAME.py`."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.clients.environment import python
from tests.clients.world import World, call, common_len, run, world
from tests.integration.test_docs import section, table

HERE = Path(__file__).parent / "python"
TASK = "Weather task"
SESSION = "weather-1"
TIMEOUT_S = 250.0  # a program imports for half a minute where others compute, too
ENV = {  # no program may talk to anybody but the router
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "PYTHONUTF8": "1",
}

PARIS = '{"city": "Paris",  "days" : 3}'
TOKYO = '{ "city":"Tōkyō 🗼"}'
ANSWER = "It is **30 °C** in all 🌤️."
WORDS = "Thirty."
LINES = (
    call("get_weather", PARIS, says="I look 🔎.\n", thinks="Weather of 東京,\n\n and Paris 🙂?")
    + "\n"
    + call("get_weather", TOKYO),
    call("add", '{"b" :9,   "a": 21}', thinks="A sum."),
    f"<think>\nThat is all.\n</think>\n\n{ANSWER}",
    WORDS,
)

SHOWN = {  # in the documentation, and in a program
    '"http://ROUTER:PORT/v1"': 'f"{url}/v1"',
    '"http://ROUTER:PORT"': "url",
    '"none"': "KEY",
    '"MODEL"': "MODEL",
    "/MODEL": "/qwen3",
}
PROGRAMS = {
    "openai_chat": ("whole", "streamed", "helper", "async", "async-helper"),
    "openai_responses": (
        "stored-whole",
        "stored-streamed",
        "stored-helper",
        "carried-whole",
        "carried-streamed",
    ),
    "anthropic_messages": ("whole", "streamed", "runner"),
    "langchain_agent": (
        "chat-whole",
        "chat-streamed",
        "responses-whole",
        "responses-streamed",
        "messages-whole",
        "messages-streamed",
    ),
    "litellm_chat": ("chat-whole", "chat-streamed", "messages-whole", "messages-streamed"),
    "openai_agents": (
        "chat-whole",
        "chat-streamed",
        "responses-whole",
        "responses-streamed",
        "carried-streamed",
    ),
    "pydantic_ai_agent": (
        "chat-whole",
        "chat-streamed",
        "responses-whole",
        "responses-streamed",
        "messages-whole",
        "messages-streamed",
    ),
}
CASES = [(name, way) for name, ways in PROGRAMS.items() for way in ways]


async def answers(program: str, way: str, there: World, directory: Path) -> list[str]:
    """What a program found out, through the session's URL."""
    environment = "litellm" if program.startswith("litellm") else "sdks"
    url = f"{there.url}/sessions/{SESSION}"
    command: list[str | Path] = [python(environment), HERE / f"{program}.py", url, way]
    said = await run(command, cwd=directory, env=ENV, timeout_s=TIMEOUT_S)
    found: list[str] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.parametrize(("program", "way"), CASES)
async def test_a_client_goes_on_from_what_was_sampled(program, way, tmp_path):
    """Two questions, four turns, two of its tools at once: all exact, and one row of them all."""
    async with world(TASK, LINES) as there:
        first, then = await answers(program, way, there, tmp_path)
        assert (first.strip(), then.strip()) == (ANSWER, WORDS)
        there.prove()
        assert there.asides == []
        there.prove_heard("21 °C 🌤", "9 °C;", "30")
        await there.prove_rows(SESSION)


@pytest.mark.parametrize("way", ["whole", "streamed"])
async def test_smolagents_keeps_all_before_what_it_rewrites(way, tmp_path):
    """It writes calls back as text without ids; no prompt can hold those tokens.

    The tokens before them stay, the receipts say so, and each reply is trained in a row.
    """
    lines = (
        *LINES[:2],
        call("final_answer", json.dumps({"answer": ANSWER}, ensure_ascii=False)),
        call("final_answer", json.dumps({"answer": WORDS})),
    )
    async with world(TASK, lines) as there:
        assert await answers("smolagents_agent", way, there, tmp_path) == [ANSWER, WORDS]
        for told in ("21 °C 🌤", "9 °C;", "30"):  # as the calls end: it runs them in threads
            there.prove_heard(told)
        for prompt, following in pairwise(there.prompts):
            assert common_len(prompt, following) >= len(prompt) - 1  # its text begins with newlines
        export, turns = await there.export(SESSION)
        assert [row["tokens"][-row["response_length"] :] for row in export["rows"]] == there.sampled
        assert export["stats"]["trained_tokens"] == sum(map(len, there.sampled))
        first, *rest = [turn["receipt"] for turn in turns]
        assert first["reason"] == "no recorded turn matches; nothing cached"
        for prompt, receipt in zip(there.prompts, rest, strict=False):
            assert receipt["status"] == "fresh"
            assert receipt["reason"] == "no recorded turn matches; shares cached text"
            assert receipt["reused"] >= len(prompt) - len("<|im_start|>assistant")


@pytest.mark.parametrize("row", table(section("docs/clients.md", "Python"), "client"), ids=str)
def test_the_lines_that_the_page_shows_are_those_that_run(row):
    """A program is the page's line with the URL, the key and the model that a test gives it."""
    _, program, lines = row
    source = "".join((HERE / program.strip("`")).read_text(encoding="utf-8").split())
    for line in re.findall("`([^`]+)`", lines):
        for shown, real in SHOWN.items():
            line = line.replace(shown, real)
        assert "".join(line.split()).removesuffix(")") in source, f"{program} has no {line}"
