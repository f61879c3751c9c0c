"""What a journal costs: short chats with one and without, and the time that a restart takes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.conversation import reply_ids
from benchmarks.driven import Driven
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import router
from benchmarks.short_chat import CHAT, REPLY_LEN, bodies
from slime_router.journal.database import Database, Made
from slime_router.journal.journal import Progress, read_into
from slime_router.journal.reading import Nowhere
from slime_router.journal.store import JournaledStore
from slime_router.trajectory.turn import Turn, logprob_array
from slime_router.types import Finish, VersionSpan, token_ids

CPU_AIM = 1.1
LATENCY_AIM_MS = 2.0
CONNECTIONS = 16
SYNCS = ("normal", "full")
TURN_LEN = 250  # tokens: 50 of the prompt, 200 sampled
CHAIN = 20  # turns of a conversation


def run(
    checkpoint: Path, *, rounds: int = 5, requests: int = 800, turns: int = 4_000
) -> list[Measurement]:
    """CPU of the router over that of one without a journal; latency added at p99; a restart."""
    with (
        tempfile.TemporaryDirectory() as folder,
        worker(reply_ids(checkpoint, REPLY_LEN)) as behind,
    ):
        urls = ("--worker-urls", behind.url)
        with (
            router(checkpoint, *urls) as bare,
            router(checkpoint, *urls, *_flags(folder, "normal")) as normal,
            router(checkpoint, *urls, *_flags(folder, "full")) as full,
        ):
            servers = {"bare": bare, "normal": normal, "full": full}
            sides = {
                name: Driven(server, CHAT, bodies(), requests, CONNECTIONS)
                for name, server in servers.items()
            }
            measured = interleave(sides, rounds)
    found = []
    for sync in SYNCS:
        costs = measured.cost(sync) * 1e6, measured.cost("bare") * 1e6
        added_ms = sides[sync].quantile_ms("latency", 99) - sides["bare"].quantile_ms("latency", 99)
        found += [
            Measurement(
                f"journal, sync {sync}: CPU of a short chat over that without a journal",
                measured.ratio(sync, to="bare"),
                "x",
                CPU_AIM,
                f"{costs[0]:.0f} us over {costs[1]:.0f} us; {rounds} rounds of {requests}",
            ),
            Measurement(
                f"journal, sync {sync}: latency added at p99",
                added_ms,
                "ms",
                LATENCY_AIM_MS,
                f"at {CONNECTIONS} connections, as fast as they go",
            ),
        ]
    return [*found, restart(turns)]


def restart(turns: int) -> Measurement:
    """How long a journal takes to read, for each million tokens in it."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))
        sink = _Gathering()
        store = JournaledStore(sink, 2**62)
        for number in range(turns):
            store.add(_turn(number))
        database.apply([made() for made in sink.waiting])
        started_s = time.monotonic()
        again = JournaledStore(Nowhere(), 2**62)
        for _ in read_into(again, database, lambda _: 0, Progress(0, turns)):
            pass
        seconds = time.monotonic() - started_s
        database.close()
    millions = again.tokens / 1e6
    return Measurement(
        "journal: reading it at the start",
        seconds / millions,
        "s a million tokens",
        None,
        f"{turns:,} turns, {again.tokens:,} tokens with logprobs, in {seconds:.2f} s",
    )


class _Gathering:
    """Takes changes, to be written in one transaction."""

    def __init__(self) -> None:
        self.waiting: list[Made] = []

    def put(self, made: Made) -> None:
        self.waiting.append(made)


def _flags(folder: str, sync: str) -> tuple[str, ...]:
    return "--journal", f"{folder}/{sync}", "--journal-sync", sync


def _turn(number: int) -> Turn:
    step = number % CHAIN
    output = TURN_LEN * 4 // 5
    return Turn(
        id=f"t{number}",
        base=f"t{number - 1}" if step else None,
        base_len=step * TURN_LEN,
        prompt_ids=token_ids(range(number, number + TURN_LEN - output)),
        output_ids=token_ids(range(number, number + output)),
        logprobs=logprob_array([-0.5] * output),
        weight_versions=(VersionSpan("v", 0, output),),
        finish=Finish("stop"),
        keys=(number.to_bytes(16, "little"),),
        session_id=f"s{number // CHAIN}",
    )
