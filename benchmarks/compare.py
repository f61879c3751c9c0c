"""Two commits side by side: `make bench-compare BASE=commit`.

BASE is checked out into a temporary worktree. Both routers run as processes before the same
stand-in worker, and take turns, so that a noisy machine disturbs both alike. What a router costs is
the CPU time of its process, as the operating system counts it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from benchmarks import load, short_chat, streamed_tokens
from benchmarks.conversation import reply_ids
from benchmarks.report import ROOT, Measurement, headline, table
from benchmarks.rounds import Rounds, interleave
from benchmarks.server import BenchmarkError, Server, router, serving
from tests import vocabularies

AIM = 0.85  # of what the base costs
CHECKPOINT = "qwen3"
CHAT = "/v1/chat/completions"
# Named, as older commits detect none: otherwise one side would parse replies, and the other not.
FORMATS = ("--reasoning-parser", "qwen3", "--tool-call-parser", "qwen25")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 9
    chats: int = 200  # a round, for each side
    streams: int = 4  # a round, for each side
    reply_len: int = 128  # tokens of a stream
    pause_ms: float = 5.0  # between two tokens: each one comes by itself
    connections: int = 4
    formats: tuple[str, ...] = FORMATS


FULL = Size()


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of request: its bodies, whether it is streamed, and how many of what a round has."""

    name: str
    unit: str
    body: Callable[[int], bytes]
    requests: int
    units: int


def run(base: Path, checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """CPU of this tree's router over that of the tree at `base`.

    Raises:
        BenchmarkError: one of them does not start.
    """
    ids = ",".join(map(str, reply_ids(checkpoint, size.reply_len)))
    short = ",".join(map(str, reply_ids(checkpoint, short_chat.REPLY_LEN)))
    streams, tokens = size.streams, size.streams * size.reply_len
    chat = _Kind("short chat", "request", short_chat.body, size.chats, size.chats)
    stream = _Kind("streamed token", "token", streamed_tokens.body, streams, tokens)
    pause = str(size.pause_ms)
    with (
        serving("benchmarks.worker", "--ids", short) as whole,
        serving("benchmarks.worker", "--ids", ids, "--pause-ms", pause) as cumulative,
        serving(
            "benchmarks.worker", "--ids", ids, "--pause-ms", pause, "--incremental"
        ) as incremental,
    ):
        return [
            _measured(base, checkpoint, whole.url, chat, size),
            *(
                _measured(base, checkpoint, worker.url, stream, size, f", {way}")
                for way, worker in zip(
                    streamed_tokens.KINDS, (cumulative, incremental), strict=True
                )
            ),
        ]


def _measured(
    base: Path, checkpoint: Path, worker_url: str, kind: _Kind, size: Size, way: str = ""
) -> Measurement:
    options = ("--worker-urls", worker_url, *size.formats)
    with (
        router(checkpoint, *options) as ours,
        router(checkpoint, *options, root=base) as theirs,
    ):
        rounds = _rounds(ours, theirs, kind, size)
    here_us, base_us = (rounds.cost(side) * 1e6 for side in ("here", "base"))
    return Measurement(
        f"{kind.name}{way}: CPU, here over base",
        rounds.ratio("here", to="base"),
        "x",
        AIM,
        f"{here_us:.1f} us over {base_us:.1f} us a {kind.unit}; "
        f"{size.rounds} rounds of {kind.requests} requests",
    )


def _rounds(ours: Server, theirs: Server, kind: _Kind, size: Size) -> Rounds:
    numbers = count()

    def round_of(server: Server) -> float:
        requests = [load.post(CHAT, kind.body(n)) for n in islice(numbers, kind.requests)]
        before_s = server.cpu_s()
        load.send(server.port, requests, size.connections)
        return (server.cpu_s() - before_s) / kind.units

    sides = {"here": lambda: round_of(ours), "base": lambda: round_of(theirs)}
    return interleave(sides, size.rounds)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The tree of a commit, in a temporary place.

    Raises:
        BenchmarkError: there is no such commit.
    """
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "base"
        _git("worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise BenchmarkError(f"git {arguments[0]} {arguments[1]}: {done.stderr.strip()}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("base", metavar="BASE", help="a commit, or any other name git has for one")
    parser.add_argument("--rounds", type=int, default=FULL.rounds)
    args = parser.parse_args(argv)
    try:
        checkpoint = vocabularies.vocabulary(CHECKPOINT)
        with checked_out(args.base) as base:
            measurements = run(base, checkpoint, Size(rounds=args.rounds))
    except (BenchmarkError, vocabularies.FetchError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    print(f"{headline()}, over {args.base}")
    print(table(measurements))
    return 0


if __name__ == "__main__":
    sys.exit(main())
