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
    bounded_memory,
    cores,
    crowd,
    encoders,
    export,
    group,
    growth,
    journal,
    long_ids,
    long_stream,
    lookups,
    memory,
    next_turn,
    parsed_tokens,
    path,
    processes,
    routing,
    same_reply,
    short_chat,
    start,
    streamed_tokens,
)
from benchmarks.report import Measurement, failure, headline, table, to_json
from benchmarks.server import BenchmarkError
from tests import vocabularies

CHECKPOINT = "qwen3"
Scenario = Callable[[Path], list[Measurement]]
QUICK: Mapping[str, Scenario] = {  # under three minutes in all, on a machine with nothing else
    "short_chat": short_chat.run,
    "same_reply": same_reply.run,
    "streamed_tokens": streamed_tokens.run,
    "next_turn": next_turn.run,
    "growth": growth.run,
    "long_ids": long_ids.run,
    "encoders": lambda checkpoint: encoders.run([checkpoint]),
    "lookups": lambda _: lookups.run(),
}
MORE: Mapping[str, Scenario] = {
    "encoders_of_all": lambda _: encoders.run(_vocabularies()),
    "long_stream": long_stream.run,
    "group": lambda _: group.run(),
    "memory": lambda _: memory.run(),
    "bounded_memory": lambda _: bounded_memory.run(),
    "journal": journal.run,
    "parsed_tokens": parsed_tokens.run,
    "crowd": crowd.run,
    "start": start.run,
    "processes": processes.run,
    "cores": cores.run,
    "export": lambda _: export.run(),
    "routing": lambda _: routing.run(),
    "path": path.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    known = {**QUICK, **MORE}
    if unknown := set(args.names) - known.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    chosen = {name: known[name] for name in args.names} or QUICK
    try:
        checkpoint = checkpoint_of_all()
    except vocabularies.FetchError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    measurements = measured(chosen, checkpoint)
    print(headline())
    print(table(measurements))
    if args.json is not None:
        args.json.write_bytes(orjson.dumps(to_json(measurements), option=orjson.OPT_INDENT_2))
    return int(any(measurement.failed for measurement in measurements))


def scenarios() -> dict[str, Scenario]:
    """All there are, each once."""
    return {name: run for name, run in {**QUICK, **MORE}.items() if name != "encoders"}


def measured(chosen: Mapping[str, Scenario], checkpoint: Path) -> list[Measurement]:
    """Run them one after the other, and say how long each took.

    One that breaks off has a line that says why: what the others find takes minutes, and is kept.
    """
    measurements: list[Measurement] = []
    for name, run in chosen.items():
        started_s = time.monotonic()
        try:
            measurements += run(checkpoint)
        except BenchmarkError as exc:
            measurements.append(failure(name, exc))
        sys.stderr.write(f"{name}: {time.monotonic() - started_s:.0f} s\n")
    return measurements


def checkpoint_of_all() -> Path:
    """The checkpoint that all are measured with; it is fetched if need be."""
    if not vocabularies.is_fetched(CHECKPOINT):
        vocabularies.fetch(CHECKPOINT)
    return vocabularies.vocabulary(CHECKPOINT)


def _vocabularies() -> list[Path]:
    """Those that are fetched, at least the one of `checkpoint_of_all`."""
    return [vocabularies.vocabulary(n) for n in vocabularies.NAMES if vocabularies.is_fetched(n)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the router.")
    usual, more = ", ".join(QUICK), ", ".join(MORE)
    told = f"by default {usual}; there are also {more}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=told)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
