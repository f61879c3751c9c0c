"""The README's own commands, run as they stand there, on a router that is up."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.readme import blocks, curl_commands

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(450)]

# Nobody says max_tokens there: the random model may talk to the end of its context.


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_commands_work(router_url):
    commands = curl_commands(address=router_url.removeprefix("http://"))
    assert len(commands) == 2
    chat, retrieval = (run(["sh", "-c", command]) for command in commands)
    head, _, body = chat.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK")
    receipt = re.search("^x-slime-receipt: (.*)$", head, re.MULTILINE | re.IGNORECASE)
    assert receipt is not None
    assert json.loads(receipt[1]).keys() == {"status", "reused", "encoded", "turn", "reason"}
    assert json.loads(body)["choices"][0]["message"]["role"] == "assistant"
    trace = json.loads(retrieval)
    assert len(trace["tokens"]) == len(trace["loss_mask"]) == len(trace["rollout_logp"]) > 0


def test_the_python_blocks_work(router_url):
    programs = blocks("python", address=router_url.removeprefix("http://"))
    assert len(programs) == 2
    for program in programs:
        assert run([sys.executable, "-c", program])
