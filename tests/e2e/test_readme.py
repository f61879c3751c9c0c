"""The README's own commands, run as they stand there, on a router that is up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(450)]

# Nobody says max_tokens there: the random model may talk to the end of its context.
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLE_ADDRESS = "localhost:30001"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_commands_work(router_url):
    commands = [block for block in blocks("sh") if block.startswith("curl")]
    assert len(commands) == 2
    address = router_url.removeprefix("http://")
    chat, retrieval = (run(["sh", "-c", c.replace(EXAMPLE_ADDRESS, address)]) for c in commands)
    head, _, body = chat.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK")
    receipt = re.search("^x-slime-receipt: (.*)$", head, re.MULTILINE | re.IGNORECASE)
    assert receipt is not None
    assert json.loads(receipt[1]).keys() == {"status", "reused", "encoded", "turn", "reason"}
    assert json.loads(body)["choices"][0]["message"]["role"] == "assistant"
    trace = json.loads(retrieval)
    assert len(trace["tokens"]) == len(trace["loss_mask"]) == len(trace["rollout_logp"]) > 0


def test_the_python_blocks_work(router_url):
    programs = blocks("python")
    assert len(programs) == 2
    for program in programs:
        assert run([sys.executable, "-c", program.replace(f"http://{EXAMPLE_ADDRESS}", router_url)])
