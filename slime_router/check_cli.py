"""`slime-router check CHECKPOINT`: is a checkpoint served exactly? Asked of it, not of its name.

Exit codes: 0 all that its template supports is exact, 1 something is not, 2 wrong use.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import orjson

from slime_router.chat.formats import AUTO
from slime_router.checkup.examination import Examination
from slime_router.checkup.on_worker import OnWorker
from slime_router.checkup.verdict import Report, Verdict, report_text
from slime_router.config import Config
from slime_router.errors import RouterError, SetupError
from slime_router.server.app import Gateway

EXIT_EXACT, EXIT_INEXACT, EXIT_WRONG_USE = 0, 1, 2
WORKER_WAIT_S = 5.0  # for a worker that cannot be reached

_DESCRIPTION = """\
Holds scripted conversations with a checkpoint's tokenizer, chat template and parsers, and judges
every prompt: does it begin with all tokens of the turn before, and is the rest what the template
prints, token by token? No model is needed."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, then exit code 2."""
        self.exit(EXIT_WRONG_USE, f"{self.prog}: error: {message}\n")


def check_main(argv: Sequence[str]) -> int:
    """Check a checkpoint up; returns the exit code. `argv` is without `check`."""
    asked = _parser().parse_args(argv)
    logging.getLogger("slime_router").setLevel(logging.CRITICAL)  # what is wrong is in the report
    try:
        report = asyncio.run(_report(_config(asked)))
    except RouterError as exc:
        sys.stderr.write(f"slime-router check: error: {exc.message}\n")
        return EXIT_WRONG_USE
    text = orjson.dumps(report.to_json()).decode() if asked.json else report_text(report)
    sys.stdout.write(text + "\n")
    return EXIT_EXACT if report.is_exact else EXIT_INEXACT


def _parser() -> argparse.ArgumentParser:
    p = _Parser(
        prog="slime-router check",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, or an id of the hub")
    p.add_argument("--chat-template", metavar="FILE", help="used instead of the checkpoint's")
    p.add_argument("--tool-call-parser", metavar="NAME", default=AUTO, help="as the router's own")
    p.add_argument("--reasoning-parser", metavar="NAME", default=AUTO, help="as the router's own")
    p.add_argument("--worker", metavar="URL", help="compare tokens and hold a chat with it, too")
    p.add_argument("--json", action="store_true", help="the report as JSON, on one line")
    p.add_argument("--trust-remote-code", action="store_true")
    return p


def _config(asked: argparse.Namespace) -> Config:
    return Config(
        hf_checkpoint=asked.checkpoint,
        chat_template=asked.chat_template,
        tool_call_parser=asked.tool_call_parser,
        reasoning_parser=asked.reasoning_parser,
        trust_remote_code=asked.trust_remote_code,
        worker_urls=(asked.worker,) if asked.worker else (),
        worker_wait_s=WORKER_WAIT_S,
        retry_max_retries=1,
    )


async def _report(config: Config) -> Report:
    """The report of a router that is never started.

    Raises:
        SetupError: the checkpoint cannot be loaded or has no template, or the worker fails.
    """
    model = Gateway(config)
    if model.tokenizer.chat_template is None:
        raise SetupError(f"{config.hf_checkpoint}: has no chat template: give --chat-template")
    examination = Examination(model.tokenizer, model.template, model.parsers)
    report = await examination.report(config.hf_checkpoint)
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
