"""Command-line agents work through the router, and every prompt begins with the held tokens.

Each agent is the real program. The model has it write a file and read it back with its own shell
tool; then a second process takes the conversation up from the agent's disk and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from slime_router.server.boundary import CLIENT_LEFT
from tests.clients.node import program
from tests.clients.world import MODEL, World, call, run, world

TASK = "Pelican errand: write down what I say, read it back and tell me the next number."
MORE = "Now add a line and tell me the sum."
FILE = "grüße.txt"
TEXT = 'une  clé "é" \\ → 41\n'
ADDED = "\t二  «deux»\n"
RUN_TIMEOUT_S = 300
TEST_TIMEOUT_S = 2 * RUN_TIMEOUT_S + 60
SESSION = "errand-1"
KEY = "unused"
NOWHERE = "http://127.0.0.1:9"  # nobody listens there: what is not for the router fails at once
OFFLINE = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1"}

Json: TypeAlias = dict[str, Any]


class Errand(World):
    """Only what may use tools is about the task: agents also ask for a title of it."""

    def is_about_task(self, prompt: Sequence[int]) -> bool:
        text = self.tokenizer.decode(prompt, skip_special_tokens=False)
        return self.task in text and "<tools>" in text


@dataclass(frozen=True, slots=True)
class Agent:
    """How a program is started.

    Attributes:
        tool: The name of its shell tool.
        script: The tool's argument that holds the command.
        given: Further arguments that the tool asks for.
        settle: Writes its configuration into HOME, for the router at a URL; returns its variables.
        first: The command line that begins a conversation; the prompt follows.
        again: The one that takes the last conversation up; the prompt follows.
        answer: Its last words, read from what it printed.
    """

    tool: str
    script: str
    given: Json
    settle: Callable[[Path, str], Mapping[str, str]]
    first: Sequence[str]
    again: Sequence[str]
    answer: Callable[[str], str]

    def runs(self, command: str, **spoken: str) -> str:
        """The text of a turn that runs a command, its arguments spelled as no library would."""
        fields = {self.script: command, **self.given}
        pairs = (f'"{key}" :   {_spelled(value)}' for key, value in fields.items())
        return call(self.tool, "{ " + ",\n  ".join(pairs) + "}", **spoken)


def _spelled(value: Any) -> str:
    return json.dumps(value).replace("/", "\\/").replace("\\u00e9", "é")


def _claude_code(home: Path, url: str) -> Mapping[str, str]:
    return {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": KEY,
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "IS_SANDBOX": "1",  # it asks root for this word before it skips permissions
    }


def _codex(home: Path, url: str) -> Mapping[str, str]:
    (home / ".codex").mkdir()
    (home / ".codex/config.toml").write_text(
        f"""
model = "{MODEL}"
model_provider = "slime"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.slime]
name = "slime_router"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "SLIME_ROUTER_KEY"
"""
    )
    return {"SLIME_ROUTER_KEY": KEY}


def _opencode(home: Path, url: str) -> Mapping[str, str]:
    model = {
        "name": MODEL,
        "reasoning": True,
        "tool_call": True,
        "interleaved": {"field": "reasoning_content"},
        "limit": {"context": 200_000, "output": 32_000},
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "slime_router",
        "options": {"baseURL": f"{url}/v1", "apiKey": KEY},
        "models": {MODEL: model},
    }
    config = {
        "model": f"slime/{MODEL}",
        "small_model": f"slime/{MODEL}",
        "provider": {"slime": provider},
        "permission": {"*": "allow"},
        "autoupdate": False,
        "share": "disabled",
    }
    directory = home / ".config/opencode"
    directory.mkdir(parents=True)
    (directory / "opencode.json").write_text(json.dumps(config))
    return {
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    }


def _qwen_code(home: Path, url: str) -> Mapping[str, str]:
    (home / ".qwen").mkdir()
    settings = {"privacy": {"usageStatisticsEnabled": False}, "telemetry": {"enabled": False}}
    (home / ".qwen/settings.json").write_text(json.dumps(settings))
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": KEY,
        "OPENAI_MODEL": MODEL,
        **dict.fromkeys(["HTTP_PROXY", "HTTPS_PROXY"], ""),  # it has no ear for NO_PROXY
    }


def _lines(printed: str) -> list[Json]:
    return [json.loads(line) for line in printed.splitlines()]


def _codex_answer(printed: str) -> str:
    items = [line["item"] for line in _lines(printed) if line["type"] == "item.completed"]
    return str([item["text"] for item in items if item["type"] == "agent_message"][-1])


def _opencode_answer(printed: str) -> str:
    return str([line["part"]["text"] for line in _lines(printed) if line["type"] == "text"][-1])


CLAUDE = ("claude", "--output-format", "json", "--dangerously-skip-permissions")
CODEX = ("--json", "--skip-git-repo-check")
QWEN = ("qwen", "--output-format", "json", "--auth-type", "openai", "--yolo")
AGENTS = {
    "claude-code": Agent(
        "Bash",
        "command",
        {"description": "Do  it"},
        _claude_code,
        [*CLAUDE, "-p"],
        [*CLAUDE, "--continue", "-p"],
        lambda printed: str(json.loads(printed)["result"]),
    ),
    "codex": Agent(
        "exec_command",
        "cmd",
        {},
        _codex,
        ["codex", "exec", *CODEX],
        ["codex", "exec", "resume", *CODEX, "--last"],
        _codex_answer,
    ),
    "opencode": Agent(
        "bash",
        "command",
        {"description": "Do  it"},
        _opencode,
        ["opencode", "run", "--format", "json"],
        ["opencode", "run", "--format", "json", "--continue"],
        _opencode_answer,
    ),
    "qwen-code": Agent(
        "run_shell_command",
        "command",
        {"is_background": False},
        _qwen_code,
        [*QWEN, "-p"],
        [*QWEN, "--continue", "-p"],
        lambda printed: str(json.loads(printed)[-1]["result"]),
    ),
}


def _turns(agent: Agent) -> list[str]:
    """Three turns of the first conversation and three of the second; one turn calls two tools."""
    read = f"cat {FILE}"
    return [
        agent.runs(f"printf %s '{TEXT}' > ./{FILE}", thinks="First  I write it.\n\nThen I read."),
        agent.runs(read, says="\n\nIch lese:\n", thinks="Is it there?")
        + "\n"
        + agent.runs("cat ./nowhere"),
        "<think>\nIt says 41.\n</think>\n\nThe next number is 42.",
        agent.runs(f"printf %s '{ADDED}' >> ./{FILE}"),
        agent.runs(read, thinks=""),
        "<think>\n41 and 2.\n</think>\n\nThe sum is 43.",
    ]


def _refused(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The router's lines of requests that it refused."""
    lines = [record.getMessage() for record in caplog.records if "boundary" in record.name]
    assert lines, "the router logged nothing"
    statuses = [int(line.split()[2]) for line in lines]
    told = zip(lines, statuses, strict=True)
    return [line for line, status in told if status >= 400 and status != CLIENT_LEFT]


@pytest.mark.timeout(TEST_TIMEOUT_S)
@pytest.mark.parametrize("name", AGENTS)
async def test_an_agent_does_its_errand(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files and answers are right, no token is encoded twice, nothing is refused, all is a row."""
    agent = AGENTS[name]
    work = tmp_path / "work"
    work.mkdir()
    (work / FILE).touch()  # qwen-code's prompt lists the directory: a new name would change it
    caplog.set_level("INFO", logger="slime_router.server.boundary")
    async with world(TASK, _turns(agent), cls=Errand) as there:
        url = f"{there.url}/sessions/{SESSION}"
        env = {"HOME": str(tmp_path), **OFFLINE, **agent.settle(tmp_path, url)}
        for line, prompt, answer, held in (
            (agent.first, TASK, "The next number is 42.", TEXT),
            (agent.again, MORE, "The sum is 43.", TEXT + ADDED),
        ):
            start = program(name, line[0])
            printed = await run(
                [start, *line[1:], prompt], cwd=work, env=env, timeout_s=RUN_TIMEOUT_S
            )
            assert agent.answer(printed).strip() == answer
            assert (work / FILE).read_text() == held
        there.prove()
        for result in (TEXT.strip(), "No such file"):  # in the order in which the calls finished
            there.prove_heard(result, ADDED.strip())
        if not there.asides:  # a title is its own row
            await there.prove_rows(SESSION)
    assert not _refused(caplog)
