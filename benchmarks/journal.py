"""What a journal costs: short chats with one and without, and the time that a restart takes."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from benchmarks.conversation import reply_ids
from benchmarks.driven import Driven
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import router
from benchmarks.short_chat import CHAT, REPLY_LEN, bodies
from slime_router.archive.homes import home_of_session
from slime_router.archive.port import NOTHING_SEEN
from slime_router.archive.sqlite import SqliteArchive
from slime_router.archive.store import ArchivedStore
from slime_router.journal.codec import packed_turn
from slime_router.journal.database import Database, Made, PutTurn
from slime_router.journal.progress import Progress
from slime_router.trajectory.turn import Turn, logprob_array
from slime_router.types import Finish, VersionSpan, token_ids
from tests.archives import older

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
    return [*found, *restart(turns), *restart(10 * turns)]


def restart(turns: int) -> list[Measurement]:
    """How long a journal of so many turns keeps a router from serving, and then a request."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with closing(Database(directory)) as database:  # as an older router wrote it
            made = [replace(_turn(number), seq=number + 1) for number in range(turns)]
            older.write(
                database,
                *(PutTurn(each.seq, each.id, each.session_id, packed_turn(each)) for each in made),
            )
            tokens = sum(each.own_len for each in made)
        seconds = asyncio.run(_opened(directory, turns))
    size = f"{tokens / 1e6:g} M tokens"
    what = f"{turns:,} turns, {tokens:,} tokens with logprobs"
    return [
        Measurement(
            f"journal of {size}: until it can be asked, after a restart",
            seconds["ready"] * 1e3,
            "ms",
            None,
            what,
        ),
        Measurement(
            f"journal of {size}: a session of {CHAIN} turns that is not in memory",
            seconds["session"] * 1e3,
            "ms",
            None,
            what,
        ),
        Measurement(
            f"journal of {size}: the first start after a router that kept no index",
            seconds["indexed"] / (tokens / 1e6),
            "s a million tokens",
            None,
            f"{what}, in {seconds['indexed']:.2f} s",
        ),
    ]


async def _opened(directory: Path, turns: int) -> dict[str, float]:
    """Seconds until an index is made, until a router with one is ready, and to fetch a session."""
    seconds = {}
    for name in ("indexed", "ready"):
        started_s = time.monotonic()
        archive = SqliteArchive(directory, is_shared=False)
        await archive.prepare(Progress(0, 0))
        await archive.number()
        await archive.last_seq()
        await archive.sessions(NOTHING_SEEN)
        seconds[name] = time.monotonic() - started_s
        if name == "ready":
            started_s = time.monotonic()
            session = home_of_session(f"s{turns // CHAIN // 2}")
            store = ArchivedStore(_Gathering(), 2**62)
            news = await archive.news(session, NOTHING_SEEN, store.__contains__)
            store.absorb(news, NOTHING_SEEN, lambda _: 0)
            assert len(store) == CHAIN
            seconds["session"] = time.monotonic() - started_s
        await archive.close()
    return seconds


class _Gathering:
    """Takes changes, to be written in one transaction."""

    def __init__(self) -> None:
        self.waiting: list[Made] = []

    @property
    def position(self) -> int:
        return len(self.waiting)

    def has_written(self, _: int) -> bool:
        return True

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
