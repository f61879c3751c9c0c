"""A load with its latencies: by the generator in C, or in Python where that cannot be made."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks import load
from benchmarks.native import build
from benchmarks.server import BenchmarkError, Server


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a load met. Times are in microseconds, each kind as 101 quantiles; some may be empty."""

    requests: int
    seconds: float
    generator_cpu_s: float
    events: int  # of all streams together
    latency_us: Sequence[float]  # from the request's first byte, or when it was due, to the last
    first_us: Sequence[float]  # to the first of the answer's body
    gap_us: Sequence[float]  # between two events of a stream
    server_cpu_s: float


def drive(
    server: Server,
    path: str,
    bodies: Sequence[bytes],
    connections: int,
    per_second: float | None = None,
) -> Outcome:
    """Post each body once, on so many connections: as fast as they are answered, or at a rate.

    At a rate, requests are due at random moments, whether others were answered or not, and a
    latency counts from the moment when its request was due.

    Raises:
        BenchmarkError: an answer's status is not 200, or none came; or there is a rate and no gcc.
    """
    program = build.program("load")
    before_s = server.cpu_s()
    if program is None:
        if per_second is not None:
            raise BenchmarkError("a load at a rate takes the generator in C, and so gcc")
        told = _in_python(server.port, path, bodies, connections)
    else:
        told = _natively(program, server.port, path, bodies, connections, per_second)
    used_s = server.cpu_s() - before_s
    return Outcome(
        requests=len(bodies),
        seconds=told["seconds"],
        generator_cpu_s=told["cpu_seconds"],
        events=told["events"],
        latency_us=told["latency_us"],
        first_us=told["first_us"],
        gap_us=told["gap_us"],
        server_cpu_s=used_s,
    )


def _natively(
    program: Path,
    port: int,
    path: str,
    bodies: Sequence[bytes],
    connections: int,
    per_second: float | None,
) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as file:
        for body in bodies:
            file.write(b"%d\n%b" % (len(body), body))
        file.flush()
        options: dict[str, str | float] = {
            "port": port,
            "path": path,
            "connections": connections,
            "bodies": file.name,
        }
        if per_second is not None:
            options["rate"] = per_second
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        done = subprocess.run([str(program), *words], check=False, capture_output=True)
    if done.returncode:
        raise BenchmarkError(f"{path}: {done.stderr.decode(errors='replace').strip()}")
    told: dict[str, Any] = orjson.loads(done.stdout)
    return told


def _in_python(port: int, path: str, bodies: Sequence[bytes], connections: int) -> dict[str, Any]:
    requests = [load.post(path, body) for body in bodies]
    seconds: list[float] = []
    started_s, cpu_before_s = time.perf_counter(), time.process_time()
    try:
        answers = load.send(port, requests, connections, seconds)
    except ExceptionGroup as exc:
        raise BenchmarkError(f"{path}: {exc.exceptions[0]}") from exc
    times = sorted(1e6 * each for each in seconds)
    return {
        "seconds": time.perf_counter() - started_s,
        "cpu_seconds": time.process_time() - cpu_before_s,
        "events": sum(answer.count(b"\n\n") for answer in answers),
        "latency_us": [times[(len(times) - 1) * i // 100] for i in range(101)],
        "first_us": [],
        "gap_us": [],
    }
