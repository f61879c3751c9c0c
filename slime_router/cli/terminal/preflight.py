"""`slime-router doctor`: before the start, do the workers and the configuration fit?

Exit codes: 0 all fits, 1 something does not, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import orjson
from rich.console import Console, Group, RenderableType
from rich.text import Text

from slime_router.cli.flags import read_config
from slime_router.cli.one_line import EXIT_WRONG_USE, command_parser, error_line
from slime_router.cli.settings.option import ENVIRONMENT
from slime_router.cli.terminal.figures import many, plain, table
from slime_router.cli.terminal.progress import tracked
from slime_router.cli.terminal.worker_signs import Sign, examine
from slime_router.config import Config
from slime_router.errors import RouterError
from slime_router.pool.worker import Worker
from slime_router.server.app import Gateway
from slime_router.server.fleet import worker_client
from slime_router.tokens.tokenizer import Tokenizer

EXIT_FITS, EXIT_UNFIT = 0, 1
NO_VOCABULARY = 2**31 - 1  # without a checkpoint no id is known to be wrong
MARKS = {"fine": ("✓", "green"), "note": ("!", "yellow"), "fault": ("✗", "bold red")}

_DESCRIPTION = """\
Asks each worker what it is: does it answer, is it SGLang, does it make the router's tokens,
how long is its context, with which flags does it run? With a checkpoint, the router's own side
is tried, too."""
_EPILOG = f"""\
examples:
  slime-router doctor --config router.toml
  slime-router doctor --workers http://10.0.0.1:30000 http://10.0.0.2:30000
  slime-router doctor --workers http://10.0.0.1:30000 --hf-checkpoint Qwen/Qwen3-8B --json

The key of the workers is never an argument: it is read from {ENVIRONMENT}WORKER_API_KEY,
or from the file that {ENVIRONMENT}WORKER_API_KEY_FILE names."""


def doctor_main(argv: Sequence[str]) -> int:
    """Examine and report; returns the exit code. `argv` does not include `doctor`."""
    p = parser()
    asked = p.parse_args(argv)
    if asked.config is None and not asked.workers:
        p.error("--config FILE or --workers URL is required")
    logging.getLogger("slime_router").setLevel(logging.CRITICAL)  # what is wrong is in the report
    try:
        config = _config(asked)
        own, tokenizer = _own_side(config, is_needed=asked.config is not None)
        signs = {"router": own, **asyncio.run(_examined(config, tokenizer))}
    except RouterError as exc:
        sys.stderr.write(error_line(exc.message, "slime-router doctor"))
        return EXIT_WRONG_USE
    if asked.json:
        body = {name: [asdict(sign) for sign in found] for name, found in signs.items()}
        sys.stdout.write(orjson.dumps(body).decode() + "\n")
    else:
        Console().print(report(signs))
    is_unfit = any(sign.kind == "fault" for found in signs.values() for sign in found)
    return EXIT_UNFIT if is_unfit else EXIT_FITS


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    p = command_parser("doctor", _DESCRIPTION, _EPILOG)
    p.add_argument("--config", metavar="FILE", help="the router's .toml or .yaml file")
    p.add_argument("--workers", nargs="+", metavar="URL", default=[], help="instead of the file's")
    p.add_argument(
        "--hf-checkpoint", metavar="PATH_OR_ID", help="compare the workers' tokens with this one's"
    )
    p.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code from the checkpoint"
    )
    p.add_argument("--json", action="store_true", help="the report as JSON")
    return p


def report(signs: Mapping[str, Sequence[Sign]]) -> RenderableType:
    """A table for the router and for each worker, and a verdict."""
    parts: list[RenderableType] = []
    for name, found in signs.items():
        if not found:
            continue
        made = table("", "", "what", "found")
        made.title, made.show_header = plain(name), False
        made.columns[-1].no_wrap = False
        for sign in found:
            mark, style = MARKS[sign.kind]
            made.add_row(Text(mark, style), Text(sign.what, "dim"), plain(sign.text))
        parts += [made, Text()]
    faults = sum(sign.kind == "fault" for found in signs.values() for sign in found)
    if faults:
        parts.append(Text(many(faults, "fault"), "bold red"))
    else:
        parts.append(Text("all fits", "bold green"))
    return Group(*parts)


def _config(asked: argparse.Namespace) -> Config:
    """What the router would be started with, as far as this needs it."""
    if asked.config is not None:
        given = ["--hf-checkpoint", asked.hf_checkpoint] if asked.hf_checkpoint else []
        config = read_config(["--config", asked.config, *given])
    else:
        config = read_config(["--hf-checkpoint", asked.hf_checkpoint or "none"], _only_keys())
        config = replace(config, hf_checkpoint=asked.hf_checkpoint or "")
    urls = tuple(asked.workers) or config.worker_urls
    return replace(
        config,
        worker_urls=urls,
        launch_workers=0,
        worker_flags=(),
        journal=None,  # a router that runs may have it open
        encoder="tokenizers",
        trust_remote_code=config.trust_remote_code or asked.trust_remote_code,
    )


def _only_keys() -> dict[str, str]:
    """Of the environment what is not part of a configuration."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(f"{ENVIRONMENT}WORKER_API_KEY")
    }


def _own_side(config: Config, *, is_needed: bool) -> tuple[list[Sign], Tokenizer | None]:
    """What the router itself makes of the configuration, and its tokenizer."""
    if not config.hf_checkpoint and not is_needed:
        return [], None
    try:
        gateway = Gateway(config)
    except RouterError as exc:
        return [Sign("fault", "configuration", exc.message)], None
    formats = gateway.formats
    signs = [
        Sign("fine", "checkpoint", config.hf_checkpoint),
        Sign("fine", "vocabulary", f"{gateway.tokenizer.vocab_size:,} ids"),
        Sign("fine", "template", gateway.template.findings.summary()),
        Sign("fine", "tool calls", str(formats.tools)),
        Sign("fine", "reasoning", str(formats.reasoning)),
    ]
    if gateway.tokenizer.chat_template is None:
        signs[2] = Sign("note", "template", "none: chat is refused; set --chat-template")
    if (warning := gateway.access.warning(config.host)) is not None:
        signs.append(Sign("note", "access", warning))
    return signs, gateway.tokenizer


async def _examined(config: Config, tokenizer: Tokenizer | None) -> dict[str, list[Sign]]:
    """The signs of each worker, by URL."""
    if not config.worker_urls:
        return {"workers": [Sign("note", "workers", "none are named: they are to register")]}
    vocab_size = NO_VOCABULARY if tokenizer is None else tokenizer.vocab_size
    signs: dict[str, list[Sign]] = {}
    async with worker_client(config, vocab_size) as client:
        workers = [Worker(url, api_key=config.worker_api_key) for url in config.worker_urls]
        for worker in tracked(workers, len(workers), "workers"):
            signs[worker.url] = await examine(client, worker, tokenizer, config)
    return signs
