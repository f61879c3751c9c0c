"""What two processes serve against one: many streams at once, as fast as each goes.

The load generator and the worker take their part of the same cores, so the time of a load says
little on a small machine. What does say something is the CPU time of the busiest process: on cores
of their own, the load takes as long as that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from statistics import median

from benchmarks.conversation import reply_ids
from benchmarks.native.drive import Outcome, drive
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import Server, cpu_s, descendants, router, serving
from benchmarks.streamed_tokens import CHAT, body

AIM = 1 / 1.7  # of the time
CPU_AIM = 1.1


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 4
    connections: int = 128  # each with one stream
    streams: int = 128  # a round
    reply_len: int = 128  # tokens
    pause_ms: float = 80.0  # between two tokens: a process that is busy passes many at once


FULL = Size()


@dataclass(slots=True)
class Side:
    """Called, it sends one round; returns the seconds of CPU of the busiest process for a token."""

    server: Server
    bodies: Iterator[bytes]
    size: Size
    path: str = CHAT
    outcomes: list[Outcome] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of the busiest

    def __call__(self) -> float:
        pids = descendants(self.server.pid)
        before_s = [cpu_s(pid) for pid in pids]
        bodies = list(islice(self.bodies, self.size.streams))
        outcome = drive(self.server, self.path, bodies, self.size.connections)
        used_s = [cpu_s(pid) - then_s for pid, then_s in zip(pids, before_s, strict=True)]
        self.outcomes.append(outcome)
        self.shares.append(max(used_s) / sum(used_s))
        return max(used_s) / self.tokens

    @property
    def tokens(self) -> int:
        """Of a round."""
        return self.size.streams * self.size.reply_len

    def cpu_us(self) -> float:
        """Of all processes together, for a token."""
        return median(each.server_cpu_s for each in self.outcomes[1:]) / self.tokens * 1e6

    def events(self) -> float:
        """Of the streams, for a token: a process that is busy passes several in one."""
        return median(each.events for each in self.outcomes[1:]) / self.tokens

    def rate(self) -> float:
        """Tokens in a second."""
        return self.tokens / median(each.seconds for each in self.outcomes[1:])

    def generator_share(self) -> float:
        """Of a core."""
        return median(each.generator_cpu_s / each.seconds for each in self.outcomes[1:])


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """One process, one with a journal that others may share, and two, which share one.

    Beside them one bare hop, and two: what they take more than one is the kernel's and Python's.
    """
    ids = reply_ids(checkpoint, size.reply_len)
    with (
        tempfile.TemporaryDirectory() as folder,
        worker(ids, pause_ms=size.pause_ms, is_incremental=True) as behind,
    ):
        urls = ("--worker-urls", behind.url)
        with (
            router(checkpoint, *urls) as one,
            router(checkpoint, *urls, "--journal", folder, "--journal-shared") as sharing,
            router(checkpoint, *urls, "--processes", "2") as two,
            serving("benchmarks.hop", "--worker-url", behind.url) as hop,
            serving("benchmarks.hop", "--worker-url", behind.url, "--processes", "2") as hops,
        ):
            servers = {"one": one, "sharing": sharing, "two": two}
            given = (body(number) for number in count())
            sides = {name: Side(server, given, size) for name, server in servers.items()}
            for name, server in {"hop": hop, "hops": hops}.items():
                sides[name] = Side(server, given, size, "/generate")
            rounds = interleave(sides, size.rounds)
    one_us, sharing_us, two_us = (sides[name].cpu_us() for name in servers)
    hop_us, hops_us = (sides[name].cpu_us() for name in ("hop", "hops"))
    share = median(sides["two"].shares[1:])
    one_events, events = (sides[name].events() for name in ("one", "two"))
    load = (
        f"{size.connections} streams of {size.reply_len} tokens, one every {size.pause_ms:g} ms; "
        f"{size.rounds} rounds"
    )
    return [
        Measurement(
            "two processes: a streamed token, CPU of the busiest over that of one process",
            rounds.ratio("two", to="one"),
            "x",
            AIM,
            f"{rounds.cost('two') * 1e6:.1f} us over {rounds.cost('one') * 1e6:.1f} us, so "
            f"{1 / rounds.ratio('two', to='one'):.2f} times as many on two cores; the busiest has "
            f"{100 * share:.0f} %; {events:.2f} events a token, {one_events:.2f} of one; {load}",
        ),
        Measurement(
            "two processes: a streamed token, CPU of all over that of one process",
            two_us / one_us,
            "x",
            CPU_AIM,
            f"{two_us:.1f} us over {one_us:.1f} us, {sharing_us:.1f} us of one with a journal to "
            f"share; {load}",
        ),
        Measurement(
            "two bare hops: a streamed token, CPU of the busiest over that of one",
            rounds.ratio("hops", to="hop"),
            "x",
            None,
            f"{1 / rounds.ratio('hops', to='hop'):.2f} times as many on two cores; the busiest has "
            f"{100 * median(sides['hops'].shares[1:]):.0f} %; both take {hops_us:.1f} us, which is "
            f"{hops_us / hop_us:.2f} of the {hop_us:.1f} us of one; {load}",
        ),
        Measurement(
            "two processes: time of a load over that with one process, on a shared machine",
            sides["one"].rate() / sides["two"].rate(),
            "x",
            None,
            f"{sides['two'].rate():,.0f} over {sides['one'].rate():,.0f} tokens/s; the generator "
            f"alone takes {100 * sides['two'].generator_share():.0f} % of a core",
        ),
    ]
