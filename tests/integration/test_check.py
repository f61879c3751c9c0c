"""`slime-router check`: what a user learns about a checkpoint, alone and with a worker."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from slime_router.checkup.scenarios import scenarios
from slime_router.cli.check import check_main
from slime_router.cli.main import main
from tests.integration.gateway import OtherWords, checkpoint, tiny_worker
from tests.ports import HOST, free_port

# A ChatML that loses what tools answer.
DROPS_RESULTS = (
    "{% for m in messages if m.role != 'tool' %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ '<tool_call>\\n' + (c.function | tojson) + '\\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def run(*flags: str) -> int:
    return main(["check", str(checkpoint()), *flags])


def test_all_that_the_template_supports_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{checkpoint()}  (tool calls: ")
    verdicts = dict(line.rsplit("  ", 1) for line in lines[1:-1] if line[2] != " ")
    assert {name.strip() for name in verdicts} == {each.capability for each in scenarios()}
    assert set(verdicts.values()) <= {"exact", "not supported"}
    assert lines[-1].endswith(" turns were judged")


def test_the_routers_own_file_and_variables_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings of the router that the command has no use for are left out."""
    path = tmp_path / "router.toml"
    path.write_text('hf_checkpoint = "nowhere"\ntool_call_parser = "none"\nqueue_size = 7\n')
    monkeypatch.setenv("SLIME_ROUTER_HF_CHECKPOINT", str(checkpoint()))
    assert main(["check", "--json", "--config", str(path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["checkpoint"], report["tool_call_parser"]) == (str(checkpoint()), None)
    path.write_text("queue_sise = 7\n")
    assert main(["check", "--config", str(path)]) == 2
    assert "did you mean 'queue_size'" in capsys.readouterr().err


def test_a_checkpoint_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    assert capsys.readouterr().err.startswith("slime-router check: error: CHECKPOINT is required")


def test_json_holds_a_verdict_for_each_capability(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--tool-call-parser", "none", "--reasoning-parser", "none") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["checkpoint"] == str(checkpoint())
    assert (report["is_exact"], report["tool_call_parser"]) == (True, None)
    found = {each["name"]: each for each in report["capabilities"]}
    assert found["chat"] == {"name": "chat", "verdict": "exact", "reasons": [], "turns": 3}
    assert found["tool loop"]["verdict"] == "not supported"
    assert found["tool loop"]["reasons"] == ["no parser reads tool calls"]


@pytest.mark.parsers
def test_calls_that_are_not_read_are_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """The parser is that of another family."""
    assert run("--tool-call-parser", "deepseekv3") == 1
    assert "the calls were read as []" in capsys.readouterr().out


@pytest.mark.parsers
def test_what_the_template_drops_is_its_own_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "drops.jinja"
    template.write_text(DROPS_RESULTS)
    assert run("--json", "--chat-template", str(template), "--tool-call-parser", "qwen25") == 0
    report = json.loads(capsys.readouterr().out)
    found = {each["name"]: each for each in report["capabilities"]}
    assert found["tool loop"]["verdict"] == "not supported"
    assert found["tool loop"]["reasons"] == ["the template drops tool messages"]


async def test_a_worker_that_makes_the_same_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    async with tiny_worker() as worker:
        code = await asyncio.to_thread(run, "--json", "--worker", worker.url)
    report = json.loads(capsys.readouterr().out)
    found = {each["name"]: each for each in report["capabilities"]}
    assert (code, found["worker's tokens"]["verdict"]) == (0, "exact")
    assert (found["worker's chat"]["verdict"], found["worker's chat"]["turns"]) == ("exact", 2)
    assert len(worker.requests) == 2


async def test_a_worker_that_makes_other_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    async with tiny_worker(tokenizer=OtherWords()) as worker:
        code = await asyncio.to_thread(run, "--worker", worker.url)
    out = capsys.readouterr().out
    assert code == 1
    assert "the worker has" in out


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["./nowhere"], "./nowhere: no such directory"),
        ([str(checkpoint()), "--tool-call-parser", "no-such"], "--tool-call-parser no-such"),
        ([str(checkpoint()), "--chat-template", "no-such.jinja"], "no-such.jinja"),
        ([str(checkpoint()), "--worker", "ftp://x"], "ftp://x"),
    ],
)
def test_wrong_use_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("slime-router check: error: ")
    assert captured.err.count("\n") == 1


def test_a_worker_that_cannot_be_reached_is_wrong_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_router.cli.check.WORKER_WAIT_S", 0.1)
    url = f"http://{HOST}:{free_port()}"
    assert run("--worker", url) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"slime-router check: error: worker {url}")
    assert captured.err.count("\n") == 1
