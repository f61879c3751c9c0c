"""The stand-in for a worker: the one in C, or the one in Python where that cannot be made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.native import build
from benchmarks.server import Server, running, serving

VARIANTS = 16  # replies, one after the other; the worker in Python has one


@contextmanager
def worker(
    ids: Sequence[int],
    *,
    pause_ms: float = 2.0,
    is_incremental: bool = False,
    variants: int = VARIANTS,
) -> Iterator[Server]:
    """Run a worker that answers with `ids`, the last of them the stop token.

    Raises:
        BenchmarkError: it does not begin to listen.
    """
    flags = ["--ids", ",".join(map(str, ids)), "--pause-ms", str(pause_ms)]
    if is_incremental:
        flags.append("--incremental")
    program = build.program("worker")
    if program is None:
        with serving("benchmarks.worker", *flags) as server:
            yield server
    else:
        command = [str(program), *flags, "--variants", str(variants)]
        with running("the worker", lambda port: [*command, "--port", str(port)]) as server:
            yield server
