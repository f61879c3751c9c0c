"""`slime-router check CHECKPOINT`: is a checkpoint served exactly? Found by trial.

Exit codes: 0 all that its template supports is exact, 1 something is not, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

import orjson

from slime_router.checkup.examination import Examination
from slime_router.checkup.on_worker import OnWorker
from slime_router.checkup.verdict import Report, Verdict, report_text
from slime_router.cli.one_line import EXIT_WRONG_USE, command_parser, error_line
from slime_router.cli.settings.shared import add_config, shared_settings
from slime_router.cli.terminal.progress import tracked
from slime_router.config import Config
from slime_router.errors import RouterError, SetupError
from slime_router.server.app import Gateway

EXIT_EXACT, EXIT_INEXACT = 0, 1
WORKER_WAIT_S = 5.0  # for a worker that cannot be reached

_SHARED = (
    "hf_checkpoint",
    "chat_template",
    "tool_call_parser",
    "reasoning_parser",
    "trust_remote_code",
    "worker_api_key",
)
_DESCRIPTION = """\
Runs scripted conversations with a checkpoint's tokenizer, chat template and parsers, and checks
every prompt: does it begin with all tokens of the turn before, and is the rest what the template
prints, token by token? No model is needed."""
_EPILOG = """\
examples:
  slime-router check Qwen/Qwen3-8B
  slime-router check ./checkpoint --tool-call-parser qwen25 --worker http://10.0.0.1:30000
  slime-router check ./checkpoint --json | jq .is_exact"""


def check_main(argv: Sequence[str]) -> int:
    """Check a checkpoint; returns the exit code. `argv` does not include `check`."""
    asked = parser().parse_args(argv)
    logging.getLogger("slime_router").setLevel(logging.CRITICAL)  # problems are in the report
    try:
        report = asyncio.run(_report(_config(asked)))
    except RouterError as exc:
        sys.stderr.write(error_line(exc.message, "slime-router check"))
        return EXIT_WRONG_USE
    text = orjson.dumps(report.to_json()).decode() if asked.json else report_text(report)
    sys.stdout.write(text + "\n")
    return EXIT_EXACT if report.is_exact else EXIT_INEXACT


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = command_parser("check", _DESCRIPTION, _EPILOG)
    p.add_argument(
        "hf_checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="a directory, or an id on the hub (default: the router's setting)",
    )
    add_config(p)
    p.add_argument("--chat-template", metavar="FILE", help="used instead of the checkpoint's")
    p.add_argument("--tool-call-parser", metavar="NAME", help="as for the router")
    p.add_argument("--reasoning-parser", metavar="NAME", help="as for the router")
    p.add_argument("--worker", metavar="URL", help="also compare tokens and run a chat with it")
    p.add_argument("--json", action="store_true", help="the report as JSON, on one line")
    p.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code from the checkpoint"
    )
    return p


def _config(asked: argparse.Namespace) -> Config:
    given = shared_settings(asked, *_SHARED)
    if "hf_checkpoint" not in given:
        raise SetupError("CHECKPOINT is required: a directory, or an id on the hub")
    return Config(
        **given,
        worker_urls=(asked.worker,) if asked.worker else (),
        worker_wait_s=WORKER_WAIT_S,
        allow_token_mismatch=True,  # the report says it
        retry_max_retries=1,
    )


async def _report(config: Config) -> Report:
    """The report of a router that is never started.

    Raises:
        SetupError: the checkpoint cannot be loaded or has no template, or the worker fails.
    """
    model = Gateway(config)
    if model.tokenizer.chat_template is None:
        raise SetupError(f"{config.hf_checkpoint}: has no chat template: set --chat-template")
    examination = Examination(model.tokenizer, model.template, model.parsers)
    report = await examination.report(
        config.hf_checkpoint, lambda found: tracked(found, len(found), "conversations")
    )
    if not config.worker_urls:
        return report
    return replace(report, verdicts=report.verdicts + await _on_worker(model))


async def _on_worker(model: Gateway) -> tuple[Verdict, ...]:
    [worker] = model.pool.list()

    async def tokenize(text: str) -> list[int] | None:
        reply = await model.client.tokenize(worker, text)
        return None if reply is None else reply[0]

    async with model.fleet:
        on_worker = OnWorker(
            model.tokenizer,
            model.template,
            model.parsers,
            tokenize=tokenize,
            dispatch=model.relay.generate,
        )
        try:
            return await on_worker.verdicts()
        except RouterError as exc:
            raise SetupError(f"worker {worker.url}: {exc.message}") from exc
