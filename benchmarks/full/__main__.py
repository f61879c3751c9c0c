"""Everything, with other gateways beside this one: `python -m benchmarks.full [--json FILE]`.

Takes about 25 minutes. With `--page` the figures and plots of `docs/performance.md` are written.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from benchmarks.__main__ import checkpoint_of_all, measured, scenarios
from benchmarks.full import growing, lengths, page, short_chats
from benchmarks.full.field import Field, Part, Plot, field
from benchmarks.report import Measurement, failure, headline, table, to_json
from benchmarks.server import BenchmarkError
from tests import vocabularies

COMPARISONS: dict[str, Callable[[Field], Part]] = {
    "short_chats": short_chats.run,
    "lengths": lengths.run,
    "growing": growing.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full", description=__doc__)
    parser.add_argument("--peers-only", action="store_true", help="only beside other gateways")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md's part")
    args = parser.parse_args(argv)
    load_before = os.getloadavg()[0]
    try:
        checkpoint = checkpoint_of_all()
        alone = [] if args.peers_only else measured(scenarios(), checkpoint)
        compared = _compared(checkpoint)
    except (BenchmarkError, vocabularies.FetchError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    measurements = [*alone, *compared.measurements]
    print(f"{headline()}, load {load_before:.1f} at the start")
    print(table(measurements))
    figures = told(measurements, compared.plots, load_before)
    if args.json is not None:
        args.json.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    if args.page:
        page.write(figures)
    return int(any(measurement.failed for measurement in measurements))


def told(measurements: Sequence[Measurement], plots: Sequence[Plot], load: float) -> dict[str, Any]:
    """All figures as a JSON object, NaN as null."""
    figures = {**to_json(measurements), "load": load, "plots": [asdict(plot) for plot in plots]}
    plain: dict[str, Any] = orjson.loads(orjson.dumps(figures))
    return plain


def _compared(checkpoint: Path) -> Part:
    measurements: list[Measurement] = []
    plots: list[Plot] = []
    with field(checkpoint) as servers:
        for name, compare in COMPARISONS.items():
            started_s = time.monotonic()
            try:
                part = compare(servers)
            except BenchmarkError as exc:
                part = Part([failure(name, exc)], [])
            sys.stderr.write(f"{name}: {time.monotonic() - started_s:.0f} s\n")
            measurements += part.measurements
            plots += part.plots
        measurements += servers.told_absent()
    return Part(measurements, plots)


if __name__ == "__main__":
    sys.exit(main())
