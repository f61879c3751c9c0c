"""`slime-router conformance --url URL`: does a gateway hand over exactly what was sampled?

Exit codes: 0 it passed every case, 1 it did not, 2 wrong usage or no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict

import orjson

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.cli.one_line import EXIT_WRONG_USE, command_parser
from slime_router.conformance.adapter import GatewayError
from slime_router.conformance.kit import ADAPTERS, Report, examine, report_text
from slime_router.errors import SetupError

EXIT_EXACT, EXIT_INEXACT = 0, 1

_DESCRIPTION = """\
Puts a gateway through five cases: drift, twins, masks, a worker's death, and branches. The kit has
workers of its own, which the gateway must use; their URLs are printed first."""
_EPILOG = """\
examples:
  slime-router conformance --url http://localhost:30001 --hf-checkpoint ./checkpoint
  slime-router conformance --url http://host:8000 --hf-checkpoint ./checkpoint --adapter openai"""


def conformance_main(argv: Sequence[str]) -> int:
    """Examine a gateway; returns the exit code. `argv` does not include `conformance`."""
    asked = parser().parse_args(argv)
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # gateways try other protocols first
    try:
        report = asyncio.run(_report(asked))
    except SetupError as exc:
        return _failed(exc.message)
    except GatewayError as exc:
        return _failed(f"{asked.url} answers no chat: {exc}")
    except OSError as exc:
        return _failed(f"the kit's workers cannot listen: {exc}")
    text = orjson.dumps(_json(report)).decode() if asked.json else report_text(report)
    sys.stdout.write(text + "\n")
    return EXIT_EXACT if report.is_exact else EXIT_INEXACT


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    p = command_parser("conformance", _DESCRIPTION, _EPILOG)
    p.add_argument("--url", required=True, help="where the gateway listens")
    p.add_argument(
        "--hf-checkpoint", required=True, metavar="PATH", help="the gateway's own checkpoint"
    )
    p.add_argument(
        "--adapter", choices=ADAPTERS, default="slime-router", help="(default: slime-router)"
    )
    p.add_argument(
        "--worker-ports",
        type=int,
        nargs=2,
        default=[31000, 31001],
        metavar="PORT",
        help="where the kit's workers listen (default: 31000 31001)",
    )
    p.add_argument("--api-key", metavar="KEY", help="sent as a bearer token")
    p.add_argument(
        "--wait-secs",
        type=float,
        default=60.0,
        metavar="S",
        help="how long to wait for a first reply (default: 60)",
    )
    p.add_argument("--json", action="store_true", help="the report as JSON, on one line")
    return p


async def _report(asked: argparse.Namespace) -> Report:
    key = asked.api_key
    return await examine(
        asked.url,
        asked.adapter,
        load_tokenizer(asked.hf_checkpoint),
        ports=tuple(asked.worker_ports),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        wait_s=asked.wait_secs,
        announce=lambda urls: _say(f"workers: {' '.join(urls)}"),
    )


def _json(report: Report) -> dict[str, object]:
    return {**asdict(report), "is_exact": report.is_exact}


def _failed(reason: str) -> int:
    _say(f"slime-router conformance: error: {reason}")
    return EXIT_WRONG_USE


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
