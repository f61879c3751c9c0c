"""Measures, and prints a table: `python -m benchmarks [NAME ...] [--json FILE]`.

The machine is taken to be shared and noisy: what is compared is measured in turns within one run,
and what a process costs is its CPU time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from benchmarks import (
    export,
    group,
    lookups,
    memory,
    next_turn,
    path,
    routing,
    short_chat,
    streamed_tokens,
)
from benchmarks.report import Measurement, headline, table, to_json
from benchmarks.server import BenchmarkError
from tests import vocabularies

CHECKPOINT = "qwen3"
BENCHMARKS: Mapping[str, Callable[[Path], list[Measurement]]] = {
    "short_chat": short_chat.run,
    "next_turn": next_turn.run,
    "streamed_tokens": streamed_tokens.run,
    "lookups": lambda _: lookups.run(),
    "group": lambda _: group.run(),
    "memory": lambda _: memory.run(),
    "export": lambda _: export.run(),
    "routing": lambda _: routing.run(),
    "path": path.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if unknown := set(args.names) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    try:
        measurements = _measure(args.names or list(BENCHMARKS), _checkpoint())
    except (BenchmarkError, vocabularies.FetchError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    print(headline())
    print(table(measurements))
    if args.json is not None:
        args.json.write_bytes(orjson.dumps(to_json(measurements), option=orjson.OPT_INDENT_2))
    return 0


def _measure(names: Sequence[str], checkpoint: Path) -> list[Measurement]:
    measurements: list[Measurement] = []
    for name in names:
        started_s = time.monotonic()
        measurements += BENCHMARKS[name](checkpoint)
        sys.stderr.write(f"{name}: {time.monotonic() - started_s:.0f} s\n")
    return measurements


def _checkpoint() -> Path:
    if not vocabularies.is_fetched(CHECKPOINT):
        vocabularies.fetch(CHECKPOINT)
    return vocabularies.vocabulary(CHECKPOINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the router.")
    known = ", ".join(BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {known}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
